"""Claims about networks that hold networks for every budget."""
