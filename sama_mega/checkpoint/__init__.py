"""Checkpoint folders: their names, what lies in them besides tensors, and how they become complete or absent."""
