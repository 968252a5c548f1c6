"""Claims about how deep into one network an input goes."""
