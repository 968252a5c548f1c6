"""Whom to ask, whom to ask next, and whose answer to give."""
