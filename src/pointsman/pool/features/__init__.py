"""Queries as numbers: encoders from text to vectors."""
