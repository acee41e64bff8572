"""Where log records go: the run folder's log.txt and the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PROGRESS_LOGGER = "sama_mega.progress"
"""Numbers every few steps: they go to the log file, and to the terminal only where no bar is drawn."""

_PACKAGES = ("sama_mega", "sama_data", "sama_kernels")
_log = logging.getLogger(__name__)


class RunLog:
    """While entered, sends the packages' records to files and to stderr; takes its handlers away after.

    A file that cannot be opened is said once and done without. Other libraries' loggers stay as they are.
    """

    def __init__(
        self,
        log_path: Path | None,
        *,
        rank_log_path: Path | None = None,
        life: int | None = None,
        draws_bar: bool = False,
        stamps_terminal: bool = False,
        earlier: Sequence[logging.LogRecord] = (),
        plain_errors: tuple[type[Exception], ...] = (),
    ) -> None:
        """Chooses the targets.

        Args:
            log_path: Log of the whole run, appended to, or None on ranks that do not keep it: they show warnings and
                errors only.
            rank_log_path: Log of this rank in this life, or None for none; its folder is made.
            life: Number of this life, on every line of `log_path`.
            draws_bar: A progress bar is on the terminal, so lines of progress stay out of it.
            stamps_terminal: Whether lines on stderr begin with the time of day, as in a job's log.
            earlier: Records of `SetupLog`, written first.
            plain_errors: Errors whose message says it all: of others that pass, the files get the stack as well.
        """
        self._log_path = log_path
        self._rank_log_path = rank_log_path
        self._life = life
        self._draws_bar = draws_bar
        self._stamps_terminal = stamps_terminal
        self._earlier = earlier
        self._plain_errors = plain_errors
        self._handlers: list[logging.Handler] = []

    def __enter__(self) -> RunLog:
        """Attaches the handlers."""
        terminal = _StderrHandler()
        stamp = "%(asctime)s " if self._stamps_terminal else ""
        terminal.setFormatter(logging.Formatter(f"{stamp}%(message)s", datefmt="%H:%M:%S"))
        terminal.setLevel(logging.INFO if self._log_path is not None else logging.WARNING)
        if self._draws_bar:
            terminal.addFilter(lambda record: record.name != PROGRESS_LOGGER)
        self._handlers.append(terminal)
        life = "" if self._life is None else f"life {self._life} "
        unopened = [
            *self._add_file(self._log_path, f"%(asctime)s {life}%(levelname)s %(message)s"),
            *self._add_file(self._rank_log_path, "%(asctime)s %(levelname)s %(message)s"),
        ]
        for package in _PACKAGES:
            logger = logging.getLogger(package)
            logger.setLevel(logging.INFO)
            for handler in self._handlers:
                logger.addHandler(handler)
        for record in self._earlier:
            logging.getLogger(record.name).handle(record)
        for problem in unopened:
            _log.warning("a log cannot be written: %s", problem)
        return self

    def _add_file(self, path: Path | None, line_format: str) -> list[OSError]:
        """Adds a file, unless there is none to add; returns why it cannot be written."""
        if path is None:
            return []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _LogFile(path, encoding="utf-8")
        except OSError as error:
            return [error]
        file.setFormatter(logging.Formatter(line_format))
        self._handlers.append(file)
        return []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detaches and closes the handlers; the files, not the terminal, get an error that passes."""
        if error is not None:
            stack = None if isinstance(error, self._plain_errors) else (type(error), error, trace)
            ended = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "ended: %s", (error,), stack)
            for handler in self._handlers:
                if isinstance(handler, _LogFile):
                    handler.handle(ended)
        for handler in self._handlers:
            for package in _PACKAGES:
                logging.getLogger(package).removeHandler(handler)
            handler.close()
        self._handlers.clear()


class SetupLog(logging.Handler):
    """While entered, keeps the packages' warnings and errors until the run has a log.

    Attributes:
        records: What was said so far.
    """

    def __init__(self) -> None:
        """Holds nothing yet."""
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record."""
        self.records.append(record)

    def __enter__(self) -> SetupLog:
        """Starts listening."""
        for package in _PACKAGES:
            logging.getLogger(package).addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops listening."""
        for package in _PACKAGES:
            logging.getLogger(package).removeHandler(self)


class _LogFile(logging.FileHandler):
    """A log that a full disk ends quietly: what must be kept is written elsewhere, and fails there with a reason."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Closes the file, whatever the disk says."""
        with suppress(OSError):
            super().close()


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever sys.stderr is at the moment: a live progress bar puts itself there."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self):  # type: ignore[no-untyped-def,override]
        return sys.stderr
