"""Claims about which model of a pool answers."""
