"""The errors that mean "the user's input is wrong": one line each, exit status 2, no traceback."""

from __future__ import annotations


class UserError(Exception):
    """The user's input is wrong; the message is one line that names the thing, its value, rule and fix.

    Attributes:
        told_by_first_rank: Whether rank 0 says the same, so that this rank need not.
    """

    told_by_first_rank = False

    def __init__(self, message: str) -> None:
        """Keep `message` as one line, whatever line breaks a library put into the part it wrote."""
        super().__init__(" ".join(message.split()))


class ConfigError(UserError):
    """A recipe, an override or a layout that breaks a rule."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit the recipe."""
