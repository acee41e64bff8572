"""Holds the model that `train` builds against tensors from the authors' code."""
