"""Claims of systems that leave out steps."""
