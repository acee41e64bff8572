"""Encodes a recipe's samples into a feature cache: all that training would encode alike in every epoch.

That is the latents of targets, and of sources that no perturbation touches; the features of anchor frames; the prompts
that the rows can have. Rows are cut into blocks, a shard each, and dealt to the processes; a block that is done is not
done again, nor a content that the cache has; of a block with rows that could not be read, these are tried again by the
next life. Nothing is sent between processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sama_data.clip_reader import ClipReader
from sama_data.clips import Clip
from sama_data.dataset import Dataset
from sama_data.errors import ClipError
from sama_data.prefetch import prefetch_in_order
from sama_data.prompts import row_prompts
from sama_data.rows import Kind as RowKind
from sama_data.rows import Row
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.encoders import Encoders
from sama_mega.encoders.feature_cache import CacheFolder, Content, FeatureCache, Keys, Kind
from sama_mega.encoders.feature_cache.folder import SUFFIX
from sama_mega.encoders.feature_cache.index import index_is_current, write_index
from sama_mega.encoders.feature_cache.stored import pack
from sama_mega.train.encode import FrameEncoders

ROWS_PER_SHARD: dict[RowKind, int] = {"video": 64, "image": 512}
"""About a gigabyte at 480p, and what a killed process loses."""
_CLIPS_AHEAD = 2
_WITHOUT = "-without-"
"""In the name of a block's shard that lacks rows."""


@dataclass
class CacheReport:
    """What one process did; filled as it works.

    Attributes:
        rows: Of its blocks, those done before included.
        rows_done_before: Of them in blocks that were done already.
        encoded: New features.
        skipped: Why rows were left out, a line each.
        finished: Whether the cache now has every block of the recipe, this process's and the others'.
    """

    rows: int = 0
    rows_done_before: int = 0
    encoded: int = 0
    skipped: list[str] = field(default_factory=list)
    finished: bool = False


@dataclass(frozen=True)
class _Block:
    """Rows of one shard."""

    kind: RowKind
    number: int
    indices: NDArray[np.int64]

    @property
    def label(self) -> str:
        """The part of the shard's name that says which rows it holds."""
        return f"{self.kind}-{self.number:06d}"


class FeatureCacher:
    """Fills a cache with one process's share of the blocks.

    Args:
        recipe: The whole recipe; `data`, `anchor` and `motion` say what is encoded.
        dataset: Its rows.
        encoders: On `device`.
        folder: The cache; claimed here.
        device: Where to encode.

    Raises:
        ConfigError: The folder is another cache's or cannot be written.
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset, encoders: Encoders, folder: CacheFolder, device: torch.device
    ) -> None:
        self._recipe = recipe
        self._dataset = dataset
        self._folder = folder
        self._encode = FrameEncoders(recipe, encoders, device)
        self._text_length = encoders.text.max_tokens
        self._identity = encoders.identity()
        self._keys = Keys(self._identity)
        folder.claim(self._identity)
        self._known = self._open_known()
        data = recipe.data
        self._reader = ClipReader(data.buckets, data.max_frames, data.decode_timeout_seconds, data.decode_threads)
        self._blocks = list(_cut(dataset))

    def run(self, rank: int, world_size: int, on_rows: Callable[[int], None]) -> CacheReport:
        """Encodes every block number ``rank`` modulo ``world_size``.

        Args:
            rank: This process among those that fill the cache.
            world_size: Their number; another one than in an earlier life is as well.
            on_rows: Called with the number of rows done.

        Returns:
            What was done. The index lists all shards that are there, once the last process has ended.
        """
        report = CacheReport()
        there = set(self._folder.shard_names())
        with self._reader:
            for block in self._blocks[rank::world_size]:
                name = self._shard_name(block)
                if name in there:
                    report.rows_done_before += len(block.indices)
                    report.rows += len(block.indices)
                    on_rows(report.rows)
                else:
                    self._encode_block(block, name, report, on_rows)
        self._finish(rank, report)
        return report

    def num_rows(self, rank: int, world_size: int) -> int:
        """Rows of a process's blocks."""
        return sum(len(block.indices) for block in self._blocks[rank::world_size])

    def _encode_block(self, block: _Block, name: str, report: CacheReport, on_rows: Callable[[int], None]) -> None:
        features: dict[str, Tensor] = {}
        absent = hashlib.blake2b(digest_size=4)
        num_skipped = len(report.skipped)
        with closing(self._clips(block)) as clips:
            for row, clip in clips:
                report.rows += 1
                if isinstance(clip, ClipError):
                    report.skipped.append(str(clip))
                    absent.update(f"{row.index} ".encode())
                else:
                    self._encode_row(row, clip, features)
                on_rows(report.rows)
        if len(report.skipped) > num_skipped:
            # Not the name of a block that is done: the rows are tried again by the next life.
            name = name.replace(SUFFIX, f"{_WITHOUT}{absent.hexdigest()}{SUFFIX}")
            if not features and (self._folder.shards / name).exists():
                return  # of an earlier life, which found the same rows at fault
        self._folder.write(self._folder.shards / name, features)
        report.encoded += len(features)

    def _encode_row(self, row: Row, clip: Clip, features: dict[str, Tensor]) -> None:
        """Adds a row's features to `features`, which is mutated."""
        encode = self._encode
        # A raw clip's source is its target, as long as nothing perturbs it.
        for frames in (clip.target, clip.source) if row.is_edit else (clip.target,):
            self._add("latents", frames, partial(encode.clips, [frames], [None]), features)
        if self._recipe.anchor.num_frames:
            anchors = encode.anchors_of(clip.target)
            self._add("semantic", anchors, partial(encode.anchors, [anchors]), features)
        for prompt in row_prompts(row, self._recipe.motion):
            self._add("text", prompt, partial(encode.prompts, [prompt]), features)

    @torch.no_grad()
    def _add(self, kind: Kind, content: Content, encode: Callable[[], Tensor], features: dict[str, Tensor]) -> None:
        """Encodes a content that is not in the cache yet."""
        key = self._keys.key(kind, content)
        if key.hex() not in features and not (self._known and self._known.holds(key)):
            features[key.hex()] = pack(kind, encode()[0])

    def _clips(self, block: _Block) -> Generator[tuple[Row, Clip | ClipError], None, None]:
        """The block's rows, decoded ahead on threads."""

        def read(index: int) -> tuple[Row, Clip | ClipError]:
            row = self._dataset[index]
            try:
                return row, self._reader.read(row)
            except ClipError as error:
                return row, error

        threads = self._recipe.data.decode_threads
        ahead, order, interrupt = _CLIPS_AHEAD * threads, block.indices.tolist(), self._reader.close
        with closing(prefetch_in_order(order, lambda index: [index], read, ahead, threads, interrupt)) as steps:
            for _, (one,) in steps:
                yield one

    def _finish(self, rank: int, report: CacheReport) -> None:
        """Brings the index up to date, if nobody comes later who would."""
        there = {name.partition(_WITHOUT)[0].removesuffix(SUFFIX) for name in self._folder.shard_names()}
        labels = {name.rpartition("-")[0] for name in there}
        # Labels first: names take a look at every row, which only the last processes need.
        report.finished = all(block.label in labels for block in self._blocks) and all(
            self._shard_name(block).removesuffix(SUFFIX) in there for block in self._blocks
        )
        if (report.finished or rank == 0) and not index_is_current(self._folder):
            write_index(self._folder)
        if report.finished:
            self._folder.remove_drafts()

    def _shard_name(self, block: _Block) -> str:
        """Tells a block from that of other rows, and from that of the same rows encoded for another purpose."""
        recipe = self._recipe
        state = hashlib.blake2b(digest_size=8)
        for part in (recipe.data.buckets, recipe.data.max_frames, recipe.anchor.num_frames):
            state.update(repr(part).encode())
        for index in block.indices.tolist():
            row = self._dataset[index]
            place = (row.source, row.target, row.frame_start, row.frame_end, row_prompts(row, recipe.motion))
            state.update(repr(place).encode())
        return f"{block.label}-{state.hexdigest()}{SUFFIX}"

    def _open_known(self) -> FeatureCache | None:
        """What earlier lives left, as far as they finished."""
        if not self._folder.index.exists():
            return None
        try:
            return FeatureCache(self._folder.path, self._identity, self._text_length)
        except ConfigError:  # of an index that is damaged: it is written anew at the end
            return None


def _cut(dataset: Dataset) -> Iterator[_Block]:
    """Blocks of all rows: dearest first, so that processes that end last have small ones."""
    kinds: tuple[RowKind, RowKind] = ("video", "image")
    for kind in kinds:
        indices, size = dataset.indices_of(kind), ROWS_PER_SHARD[kind]
        for number, start in enumerate(range(0, len(indices), size)):
            yield _Block(kind, number, indices[start : start + size])
