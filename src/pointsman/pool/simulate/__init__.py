"""Small worlds in which systems of the model level are tried."""
