"""What makes a network elastic: modules with choices."""
