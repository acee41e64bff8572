"""Editing a clip with a trained model, and what is written of it."""
