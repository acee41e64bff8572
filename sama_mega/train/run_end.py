"""How a run ended, in the words of its life's record."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Literal

from sama_data.errors import DataError
from sama_mega.config.errors import UserError
from sama_mega.parallel.launch import lost_touch
from sama_mega.train.lives import SupersededError

EndReason = Literal["finished", "stopped", "interrupted", "superseded", "refused", "failed"]
"""`stopped`: told to by a signal, everything saved. `superseded`: a newer life of the run has begun. `refused`: what
the user gave (data, a disk) is at fault, and would be again. `failed`: all else; another start may fare better."""


_PASSING_TROUBLE = [os.strerror(number) for number in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)]
"""What a file system says on a node that lost touch with it: other nodes, or a later start, may fare better."""


@dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    Attributes:
        reason: The kind of end.
        message: Why, in one line; empty when it finished.
    """

    reason: EndReason
    message: str = ""


def end_by(error: BaseException) -> RunEnd:
    """The end that an error means."""
    message = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return RunEnd("interrupted", "by the keyboard")
    if isinstance(error, SupersededError):
        return RunEnd("superseded", message)
    if isinstance(error, (UserError, DataError)) and not any(trouble in message for trouble in _PASSING_TROUBLE):
        return RunEnd("refused", message)
    if lost_touch(message):
        return RunEnd("failed", "lost touch with another rank, which has ended")
    return RunEnd("failed", f"{type(error).__name__}: {message}")
