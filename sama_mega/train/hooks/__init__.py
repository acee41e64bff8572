"""Hooks: everything about a run that is not the training step itself, one concern a file."""
