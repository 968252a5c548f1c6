"""Published systems, each a function of about ten lines that puts parts together."""
