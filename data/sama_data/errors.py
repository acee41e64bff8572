"""Errors that users of the data package see."""

from __future__ import annotations

from pathlib import Path


class DataError(Exception):
    """The data or a request for it is wrong; one line that names the thing, the rule and the fix.

    Attributes:
        told_by_first_rank: Whether rank 0 of several says the same, so that this one need not.
    """

    told_by_first_rank = False


class ClipError(DataError):
    """One image or clip cannot be used; the run can go on without it.

    Attributes:
        path: The file, in words: for a member of a file with its bytes.
        reason: What is wrong with it, as written to the quarantine.
        is_passing: Whether it is the fault of a disk or a network, which may be well again later.
    """

    def __init__(self, path: Path | str, reason: str, is_passing: bool = False) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason
        self.is_passing = is_passing

    def __reduce__(self) -> tuple[object, ...]:
        # As exceptions pickle by themselves, their message would be the only argument.
        return type(self), (self.path, self.reason), self.__dict__


class DecoderLostError(ClipError):
    """Decoding took too long, or the process that did it died.

    The clip may be to blame; when it happens to one clip after the other, the machine is.
    """
