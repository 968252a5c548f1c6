"""Networks as rows of blocks, whatever they are made of."""
