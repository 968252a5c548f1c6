"""Scores that need no training, and how well they rank networks."""
