"""What a verification found, tensor by tensor, worst first."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

SHOWN_ROWS = 8


@dataclass(frozen=True)
class Check:
    """One tensor compared.

    Attributes:
        tensor: What was compared.
        error: ||ours - expected|| / ||expected||.
        limit: The largest error allowed.
    """

    tensor: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit; NaN is not."""
        return self.error <= self.limit


def compare(tensor: str, ours: Tensor, expected: Tensor, limit: float) -> Check:
    """Relative error in the L2 norm, computed in float64; shapes must agree, and what is expected must be finite.

    A vanishing expected tensor is compared absolutely.
    """
    if ours.shape != expected.shape:
        return Check(f"{tensor} (shape {tuple(ours.shape)}, expected {tuple(expected.shape)})", float("inf"), limit)
    if not expected.isfinite().all():
        return Check(f"{tensor} (expected is not finite: it says nothing)", float("inf"), limit)
    ours, expected = ours.double().cpu(), expected.double().cpu()
    scale = expected.norm().item() or 1.0
    return Check(tensor, (ours - expected).norm().item() / scale, limit)


@dataclass(frozen=True)
class Report:
    """All checks of one verification.

    Attributes:
        checks: Every tensor compared.
        must_break: With a planted bug, the tensors that its written expectation names; else None.
    """

    checks: tuple[Check, ...]
    must_break: frozenset[str] | None = None

    @property
    def ok(self) -> bool:
        """Whether every check passed; False without any check."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def worst_first(self) -> list[Check]:
        """Checks by error over limit, the largest first."""
        return sorted(self.checks, key=lambda check: _badness(check), reverse=True)

    @property
    def not_as_written(self) -> list[str]:
        """Where a planted bug broke something else than its expectation names, or did not break what it names."""
        wrong = {check.tensor for check in self.checks if not check.passed}
        return sorted(wrong ^ (self.must_break or frozenset()))

    def to_json(self) -> dict[str, Any]:
        """``{"ok", "worst", "checks"}`` as contract of `verify --json`; with a plant also ``"not_as_written"``."""
        ordered = self.worst_first
        planted = {} if self.must_break is None else {"not_as_written": self.not_as_written}
        return {
            "ok": self.ok,
            "worst": _as_row(ordered[0]) if ordered else None,
            "checks": [_as_row(check) for check in ordered],
            **planted,
        }

    def show(self, title: str) -> None:
        """Prints the failed and the worst checks as a table."""
        table = Table(title=title, title_justify="left")
        for column in ("tensor", "error", "limit", ""):
            table.add_column(column)
        num_failed = sum(not check.passed for check in self.checks)
        for check in self.worst_first[: max(SHOWN_ROWS, num_failed)]:
            verdict = "ok" if check.passed else "WRONG"
            table.add_row(check.tensor, f"{check.error:.2e}", f"{check.limit:.0e}", verdict)
        Console().print(table)
        Console().print(f"{len(self.checks)} compared, {num_failed} wrong")
        if self.must_break is not None:
            differing = self.not_as_written
            verdict = f"NOT as written: {', '.join(differing)}" if differing else "exactly the tensors it should break"
            Console().print(f"planted bug: {verdict}")


def _as_row(check: Check) -> dict[str, Any]:
    # NaN and infinity are no JSON: an error that is not finite is null, and never ok.
    return asdict(check) | {"error": check.error if math.isfinite(check.error) else None}


def _badness(check: Check) -> float:
    if check.error != check.error:
        return float("inf")
    return check.error / check.limit if check.limit else check.error * 1e300
