"""Which backend computes attention: the recipe's, or the fastest here for each kind of sequence that the recipe makes.

`kernels.attention: auto` on a GPU is settled before the model is built. The world's first rank times every available
backend on the recipe's shapes, once on a machine: a file remembers. Its answer is every rank's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import sama_kernels
from sama_kernels.attention.libraries import unavailable
from sama_kernels.attention.measure import AttentionShape, Trial, fastest, measure_backends
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import FRAMES_PER_LATENT, LATENT_STRIDE, Recipe
from sama_mega.model.config import PRECISIONS
from sama_mega.parallel.collectives import broadcast_object
from sama_mega.parallel.layout import Layout
from sama_mega.parallel.runtime import ParallelContext

CACHE_FOLDER_VARIABLE = "SAMA_MEGA_CACHE"
_PACKAGES = ("torch", "triton", "flash-attn-4", "nvidia-cutlass-dsl", "transformer-engine")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttentionChoice:
    """Backends by the shape of a call.

    Attributes:
        by_shape: (queries, keys, backend), at least one.
    """

    by_shape: tuple[tuple[int, int, str], ...]

    def backend(self, queries: int, keys: int) -> str:
        """The backend of the shape whose numbers of tokens are nearest, as ratios."""
        nearest = min(
            self.by_shape, key=lambda known: abs(math.log(known[0] / queries)) + abs(math.log(known[1] / keys))
        )
        return nearest[2]


def always(backend: str) -> AttentionChoice:
    """One backend for every shape."""
    return AttentionChoice(((1, 1, backend),))


def choose_attention(recipe: Recipe, context: ParallelContext) -> AttentionChoice:
    """Settles which backend computes attention; every rank calls this, and all get one answer.

    Args:
        recipe: `kernels.attention` by name is taken as it is; `auto` on a GPU is measured, but in float32 torch's.
        context: The running layout.

    Raises:
        ConfigError: A backend cannot run here; says what is missing.
    """
    requested, device = recipe.kernels.attention, context.device
    # Float32 runs are checks: the libraries do not take it, and what they are held against should not change.
    if requested != "auto" or device.type != "cuda" or recipe.train.precision == "float32":
        choice = always(requested)
    else:
        choice = _measured_by_first_rank(recipe, context)
    for _, _, backend in choice.by_shape:
        reason = None if backend == "auto" else unavailable(backend, device, PRECISIONS[recipe.train.precision])
        if reason is not None:
            raise ConfigError(f"kernels.attention ({requested}): {reason}")
    return choice


def _measured_by_first_rank(recipe: Recipe, context: ParallelContext) -> AttentionChoice:
    """One rank measures; where it fails, the others must not wait for its answer."""
    found: AttentionChoice | None = None
    failure: Exception | None = None
    if context.is_first_rank:
        try:
            found = _measured(recipe, context)
        except Exception as error:
            failure = error
    answer = broadcast_object(found, context.host_world_group)
    if failure is not None:
        raise failure
    if answer is None:
        raise RuntimeError("the first rank could not measure attention: see its log")
    choice: AttentionChoice = answer
    return choice


def attention_shapes(recipe: Recipe, layout: Layout) -> list[AttentionShape]:
    """The calls of one block on one rank, for an image pair and for the longest video, in the largest bucket.

    Args:
        recipe: Its buckets, frames, anchors and model.
        layout: Its tensor and context ranks share heads and tokens.
    """
    model, data = recipe.model, recipe.data
    _, patch_height, patch_width = model.patch_size
    per_frame = max(
        (height // (LATENT_STRIDE * patch_height)) * (width // (LATENT_STRIDE * patch_width))
        for width, height in data.buckets
    )
    longest = 1 + (data.max_frames - 1) // FRAMES_PER_LATENT
    heads = model.num_heads // layout.tensor
    shapes = []
    for frames, batch in ((1, data.micro_batch_images), (longest, data.micro_batch_videos)):
        tokens = 2 * frames * per_frame + recipe.anchor.num_tokens
        per_rank = math.ceil(tokens / layout.context)
        for queries, keys, shared_heads in (
            (per_rank * layout.ulysses, tokens, heads // layout.ulysses),
            (per_rank, model.text_length, heads),
        ):
            shape = AttentionShape(queries, keys, shared_heads, model.head_dim, batch, recipe.train.precision)
            shapes.append(shape)
    return shapes


def _measured(recipe: Recipe, context: ParallelContext) -> AttentionChoice:
    """On one rank: what the file remembers, or else what is measured now."""
    remembered = ChoiceFile.at(cache_folder())
    found = []
    for shape in attention_shapes(recipe, context.layout):
        trials = remembered.trials(shape, context.device)
        if trials is None:
            trials = measure_backends(shape, context.device)
            if all(trial.lasting for trial in trials):
                remembered.remember(shape, context.device, trials)
        # What Transformer Engine computes cannot be kept for a repeated pass: it would attend twice.
        keeps = recipe.train.recompute in ("selective", "selective_ffn")
        usable = [trial for trial in trials if not keeps or trial.backend != "te"]
        found.append((shape.queries, shape.keys, fastest(usable)))
        _log.info(
            "attention of %d queries over %d keys: %s", shape.queries, shape.keys, _describe(found[-1][2], trials)
        )
    return AttentionChoice(tuple(found))


def _describe(chosen: str, trials: Sequence[Trial]) -> str:
    timed = [f"{trial.backend} {trial.seconds * 1000:.1f} ms" for trial in trials if trial.seconds is not None]
    others = [f"{trial.backend}: {trial.reason}" for trial in trials if trial.seconds is None]
    return f"{chosen} (forward and backward: {', '.join(timed)})" + "".join(f"; {other}" for other in others)


def cache_folder() -> Path:
    """Where this user's machine remembers: $SAMA_MEGA_CACHE, else sama-mega in $XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get(CACHE_FOLDER_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sama-mega"


@dataclass(frozen=True)
class ChoiceFile:
    """Trials of earlier runs, by device, versions and shape; a file that cannot be read or written is done without.

    Attributes:
        path: The JSON file.
    """

    path: Path

    @classmethod
    def at(cls, folder: Path) -> ChoiceFile:
        """The file in a cache folder."""
        return cls(folder / "attention.json")

    def trials(self, shape: AttentionShape, device: torch.device) -> list[Trial] | None:
        """What was measured on such a device with these versions, or None."""
        entry = self._read().get(_key(shape, device))
        try:
            return None if entry is None else [Trial(**trial) for trial in entry]
        except TypeError:  # Another version's file.
            return None

    def remember(self, shape: AttentionShape, device: torch.device, trials: Sequence[Trial]) -> None:
        """Adds trials; a reader sees the file before or after, never a part of it."""
        content = self._read() | {_key(shape, device): [asdict(trial) for trial in trials]}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as error:
            _log.warning("%s cannot be written (%s): attention is measured again in the next run", self.path, error)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _key(shape: AttentionShape, device: torch.device) -> str:
    """Everything that may change which backend is fastest."""
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    versions = [f"{package} {_version(package)}" for package in _PACKAGES]
    described = [f"{name} {value}" for name, value in asdict(shape).items()]
    device_name = torch.cuda.get_device_name(device)
    return "; ".join([device_name, *versions, f"cudnn {cudnn}", f"kernels {_own_kernels()}", *described])


def _own_kernels() -> str:
    """Changes with what this project's attention is made of; its version need not, from one commit to the next."""
    package, digest = Path(sama_kernels.__file__).parent, hashlib.sha256()
    for folder in ("attention", "rope_attention", "qk_norm_rope"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
