"""A step's samples on disk: everything that its losses depend on, beside the weights.

Each data rank writes one file `samples-NNNNN.safetensors`: frames as tensors, the rest as JSON in the header.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sama_data.graph.frames import on_host
from sama_data.loader import Sample
from sama_data.pretext import PretextPlan
from sama_mega.checkpoint.replace import flush_to_disk
from sama_mega.config.errors import ConfigError

_HEADER = "samples"


def samples_path(folder: Path, data_rank: int) -> Path:
    """File of one data rank."""
    return folder / f"samples-{data_rank:05d}.safetensors"


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Writes a data rank's samples and waits for the disk.

    Raises:
        OSError: The disk refuses.
    """
    frames: dict[str, NDArray[np.uint8]] = {}
    described = []
    for sample in samples:
        frames[f"{sample.slot}.target"] = np.ascontiguousarray(on_host(sample.target_frames))
        is_pair = sample.source_frames is not sample.target_frames
        if is_pair:
            frames[f"{sample.slot}.source"] = np.ascontiguousarray(on_host(sample.source_frames))
        described.append(_describe(sample) | {"is_pair": is_pair})
    try:
        save_file(frames, path, {_HEADER: json.dumps(described)})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    flush_to_disk(path)


class SavedSamples:
    """The samples of a step as they were saved by all of its data ranks.

    Args:
        folder: With at least one file.

    Attributes:
        slots_by_rank: The slots that each data rank had.
        sizes: By slot, pixels of its target's frames.

    Raises:
        ConfigError: A file is missing or damaged.
    """

    def __init__(self, folder: Path, num_data_ranks: int) -> None:
        self._files = [samples_path(folder, rank) for rank in range(num_data_ranks)]
        self._described: dict[int, dict[str, Any]] = {}
        self._file_of: dict[int, Path] = {}
        self.slots_by_rank: list[list[int]] = []
        self.sizes: dict[int, int] = {}
        for path in self._files:
            self._read_header(path)

    def read(self, slots: Sequence[int]) -> list[Sample]:
        """Reads some of the samples with their frames.

        Raises:
            ConfigError: A file is damaged.
        """
        return [self._sample(slot) for slot in slots]

    def _read_header(self, path: Path) -> None:
        try:
            with safe_open(path, framework="numpy") as file:
                described = json.loads(file.metadata()[_HEADER])
                for one in described:
                    slot = one["slot"]
                    self._described[slot], self._file_of[slot] = one, path
                    self.sizes[slot] = int(np.prod(file.get_slice(f"{slot}.target").get_shape()[:3]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--replay: {path} cannot be read: {error}") from error
        self.slots_by_rank.append([one["slot"] for one in described])

    def _sample(self, slot: int) -> Sample:
        values, path = dict(self._described[slot]), self._file_of[slot]
        is_pair = values.pop("is_pair")
        plan = values.pop("plan")
        order = plan["tube_order"]
        try:
            with safe_open(path, framework="numpy") as file:
                target = file.get_tensor(f"{slot}.target")
                source = file.get_tensor(f"{slot}.source") if is_pair else target
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"--replay: {path} cannot be read: {error}") from error
        frame_indices = tuple(plan["frame_indices"])
        plan |= {"frame_indices": frame_indices, "tube_order": None if order is None else tuple(order)}
        return Sample(**values, source_frames=source, target_frames=target, plan=PretextPlan(**plan))


def _describe(sample: Sample) -> dict[str, Any]:
    names = ("sample_id", "index", "epoch", "slot", "kind", "task", "prompt", "prompt_prefix")
    return {name: getattr(sample, name) for name in names} | {"plan": asdict(sample.plan)}
