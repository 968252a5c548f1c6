"""Routers: what each model would score and cost, predicted before any is called."""
