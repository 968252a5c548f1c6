"""Token level."""
