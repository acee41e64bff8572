"""What is said of a tensor that is not finite, and which of several findings came first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from sama_mega.train.numerics.measures import count_not_finite

Phase = Literal["weights", "forward", "backward", "sums of gradients"]
"""When a tensor is looked at, in this order."""

Order = tuple[int, int, int, int]
"""Micro-batch, forward or backward, part of the model, place in that part."""

BEFORE_ALL, AFTER_ALL = -1, 1 << 30
"""Micro-batches that stand for what is looked at before the first and after the last."""
_SHOWN = 6


@dataclass(frozen=True)
class Finding:
    """A tensor that is not finite, as one rank saw it.

    Attributes:
        order: Compares between ranks.
        phase: When it was looked at.
        module: The module it belongs to, such as `blocks.3.self_attn.o`; `model` for the whole.
        tensor: What it is to the module, such as `output`.
        shape: This rank's part of it.
        dtype: Its type.
        num_elements: How many it has.
        num_not_finite: How many of them are NaN or infinite.
        micro_batch: Whose pass it is of, counted on this data rank; None where it is of all.
        sample_ids: The samples whose part is not finite; where that cannot be told, all of the micro-batch.
        input_max_abs: Largest absolute value of what the module was given.
        weights_max_abs: Largest absolute value of the module's weights.
        before: The tensor looked at before it in this pass, and its largest absolute value.
        ranks: Who saw it, by global rank.
        places: Where those ranks stand, by axis.
    """

    order: Order
    phase: Phase
    module: str
    tensor: str
    shape: tuple[int, ...]
    dtype: str
    num_elements: int
    num_not_finite: int
    micro_batch: int | None = None
    sample_ids: tuple[str, ...] = ()
    input_max_abs: float | None = None
    weights_max_abs: float | None = None
    before: tuple[str, float] | None = None
    ranks: tuple[int, ...] = ()
    places: tuple[Mapping[str, int], ...] = ()

    @property
    def name(self) -> str:
        """What and where, without ranks: the same in every run of the same step."""
        return f"{self.tensor} of {self.module}"

    def describe(self) -> str:
        """One line for a log."""
        words = [f"{self.name} ({self.phase}) on {_ranks(self.ranks, self.places)}"]
        if self.micro_batch is not None:
            plural = "s" if len(self.sample_ids) > 1 else ""
            words.append(f"micro-batch {self.micro_batch}, sample{plural} {_shortened(self.sample_ids)}")
        words.append(f"{self.num_not_finite:,} of {self.num_elements:,} elements are not finite")
        if self.input_max_abs is not None:
            words.append(f"its input reaches {self.input_max_abs:.3g}")
        if self.weights_max_abs is not None:
            words.append(f"its weights reach {self.weights_max_abs:.3g}")
        if self.before is not None:
            words.append(f"the tensor before it, {self.before[0]}, reaches {self.before[1]:.3g}")
        return "; ".join(words)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite becomes its name."""
        values = asdict(self)
        before = None if self.before is None else {"name": self.before[0], "max_abs": json_number(self.before[1])}
        numbers = {key: json_number(values[key]) for key in ("input_max_abs", "weights_max_abs")}
        return {"name": self.name, **values, **numbers, "before": before}


def describe_tensor(order: Order, phase: Phase, module: str, name: str, tensor: Tensor) -> Finding:
    """What a tensor that is not finite says of itself; waits for the device."""
    return Finding(
        order=order,
        phase=phase,
        module=module,
        tensor=name,
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        num_elements=tensor.numel(),
        num_not_finite=count_not_finite(tensor),
    )


def json_number(value: float | None) -> float | str | None:
    """A number as JSON can hold it: `nan`, `inf` and `-inf` as text."""
    return repr(value) if value is not None and not math.isfinite(value) else value


def earliest(findings: Iterable[Finding]) -> list[Finding]:
    """The first of all by order, and those that are first together with it; what several ranks saw alike is one.

    Args:
        findings: Each of one rank.
    """
    found = sorted(findings, key=lambda one: (one.order, one.ranks))
    return _merge_ranks([one for one in found if one.order == found[0].order])


def _merge_ranks(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for each tensor and samples, with all the ranks that saw it; the numbers are the first rank's."""
    together: dict[tuple[object, ...], list[Finding]] = {}
    for one in findings:
        together.setdefault((one.order, one.module, one.tensor, one.sample_ids), []).append(one)
    merged = []
    for same in together.values():
        values = {key: value for key, value in vars(same[0]).items() if key not in ("ranks", "places")}
        ranks = tuple(rank for one in same for rank in one.ranks)
        places = tuple(place for one in same for place in one.places)
        merged.append(Finding(**values, ranks=ranks, places=places))
    return merged


def _ranks(ranks: Sequence[int], places: Sequence[Mapping[str, int]]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} ({', '.join(f'{axis} {place}' for axis, place in places[0].items())})"
    return f"ranks {_shortened(list(map(str, ranks)))}"


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
