"""The networks that compare trains: described by plain data, built from the description.

A `Spec` is all that a saved policy needs to build a network again, so it holds only JSON values.
"""
