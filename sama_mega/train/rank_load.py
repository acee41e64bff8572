"""What a rank holds and has met: its memory, and the samples that it could not use as they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_GIB = 2**30
_MAX_REASONS = 12
_OTHER_REASONS = "other reasons"


@dataclass(frozen=True)
class RankLoad:
    """One rank's.

    Attributes:
        memory_gib: By what is measured.
        num_truncated_prompts: Distinct samples of this life whose prompt was cut; 0 on a rank that shares its samples
            with one that tells.
    """

    memory_gib: dict[str, float]
    num_truncated_prompts: int = 0


def measure_memory(device: torch.device) -> dict[str, float]:
    """This process's memory in GiB: a GPU's as torch's allocator counts it, else what is resident of the process.

    Asks the host alone; the device is not waited for.
    """
    if device.type != "cuda":
        return {"resident_gib": psutil.Process().memory_info().rss / _GIB}
    statistics = torch.cuda.memory_stats(device)
    return {
        "allocated_gib": statistics["allocated_bytes.all.current"] / _GIB,
        "peak_allocated_gib": statistics["allocated_bytes.all.peak"] / _GIB,
        "reserved_gib": statistics["reserved_bytes.all.current"] / _GIB,
        "peak_reserved_gib": statistics["reserved_bytes.all.peak"] / _GIB,
    }


def most_memory(ranks: Sequence[RankLoad]) -> dict[str, float]:
    """Of every kind of memory, what the rank that has most of it has."""
    return {name: max(rank.memory_gib[name] for rank in ranks) for name in ranks[0].memory_gib}


class QuarantineTally:
    """Counts the samples in a run's quarantine, by the first words of what is wrong; reads on where it stopped.

    Args:
        path: The file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_to = 0
        self._reasons: Counter[str] = Counter()

    def read(self) -> dict[str, float]:
        """Samples in the quarantine, over all ranks and lives, and how many of them for each reason."""
        with (
            suppress(OSError),
            open(self._path, "rb") as file,
        ):  # none yet, or a disk whose failure ends the run elsewhere
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_to += len(line)
                self._count(line)
        common = dict(self._reasons.most_common(_MAX_REASONS))
        counts: dict[str, float] = {f"quarantined/{reason}": number for reason, number in common.items()}
        others = self._reasons.total() - sum(common.values())
        if others:
            counts[f"quarantined/{_OTHER_REASONS}"] = others
        return {"quarantined": self._reasons.total(), **counts}

    def _count(self, line: bytes) -> None:
        try:
            reason = str(json.loads(line)["reason"])
        except (ValueError, KeyError, TypeError):
            return  # torn by a kill
        # What follows is of this one sample. A tracker takes few characters in a name.
        words = re.sub(r"[^A-Za-z ]", "", re.split(r"[:;(\d]", reason)[0]).strip()
        self._reasons[words or _OTHER_REASONS] += 1


@dataclass(frozen=True)
class LoadMeter:
    """Measures this rank's load.

    Attributes:
        device: Where it computes.
        count_truncated_prompts: Says how many prompts were cut so far.
    """

    device: torch.device
    count_truncated_prompts: Callable[[], int]

    def measure(self) -> RankLoad:
        """The load now."""
        return RankLoad(measure_memory(self.device), self.count_truncated_prompts())
