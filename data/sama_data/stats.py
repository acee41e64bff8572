"""What a run will see: its datasets, shapes, tokens and how evenly its steps are dealt, without reading a clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sama_data.dataset import Dataset
from sama_data.dealing import Work, deal_work, least_possible
from sama_data.predicted import num_unknown, predict_shapes
from sama_data.rows import Kind
from sama_data.settings import LoaderSettings
from sama_data.step_plan import StepPlanner
from sama_data.streams import Stream

_BATCH_ROWS = 65_536
_GROUP_COLUMNS = ("dataset", "kind", "task", "licence")


@dataclass(frozen=True)
class Group:
    """Rows that agree in what they are; None where the manifest does not say."""

    dataset: str | None
    kind: Kind
    task: str | None
    licence: str | None
    rows: int


@dataclass(frozen=True)
class Share:
    """One manifest's part in one stream.

    Attributes:
        manifest: The file.
        kind: The stream.
        weight: The manifest's.
        rows: Its rows of this kind.
        per_epoch: How many of them an epoch of the stream draws.
        per_step: How many a step draws on average.
        passes: How often each of them is drawn over the whole run.
    """

    manifest: str
    kind: Kind
    weight: float
    rows: int
    per_epoch: int
    per_step: float
    passes: float


@dataclass(frozen=True)
class Spread:
    """Some numbers of many steps."""

    p50: float
    p95: float
    max: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Returns the spread of at least one value."""
        return Spread(*(float(value) for value in np.quantile(np.asarray(values, np.float64), (0.5, 0.95, 1.0))))


@dataclass(frozen=True)
class Imbalance:
    """How evenly steps are dealt to a number of data-parallel ranks.

    Attributes:
        ranks: Their number.
        slowest: The slowest rank's predicted time over the mean of all ranks.
        least_possible: The same for the least time that any deal of the same samples could reach.
        micro_batches: Micro-batches of a step over all ranks, on average.
        ragged_share: Share of the micro-batches that are not full, of those that may hold several samples.
        idle_ranks: Ranks without a sample, on average.
    """

    ranks: int
    slowest: Spread
    least_possible: Spread
    micro_batches: float
    ragged_share: float
    idle_ranks: float


@dataclass(frozen=True)
class Stats:
    """Everything `data stats` shows.

    Attributes:
        groups: Rows by dataset, kind, task and licence, most first.
        shares: What each manifest gives to each stream.
        buckets: Rows by "832x480" and kind.
        frames: Videos by their frames after the cut to 4k+1.
        unknown_sizes: Rows whose size no manifest tells: they count as the first bucket.
        unknown_lengths: Videos whose length no manifest tells: they count as the longest.
        images_per_step: Of all ranks.
        videos_per_step: Likewise.
        train_steps: The run's steps.
        epochs: Of each stream, over the run's steps.
        simulated_steps: On how many steps the rest stands.
        tokens_per_step: Source, semantic and target tokens of a step, over all ranks.
        imbalance: For each number of ranks.
    """

    groups: list[Group]
    shares: list[Share]
    buckets: dict[str, dict[Kind, int]]
    frames: dict[int, int]
    unknown_sizes: int
    unknown_lengths: int
    images_per_step: int
    videos_per_step: int
    train_steps: int
    epochs: dict[Kind, float]
    simulated_steps: int
    tokens_per_step: Spread
    imbalance: list[Imbalance]


def collect_stats(
    dataset: Dataset,
    settings: LoaderSettings,
    train_steps: int,
    ranks: Sequence[int],
    simulated_steps: int,
    rows_per_row: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Stats:
    """Counts a dataset's rows and simulates the first steps of a run.

    Args:
        dataset: The rows.
        settings: How they are drawn and dealt.
        train_steps: Steps of the whole run.
        ranks: Numbers of data-parallel ranks to deal to.
        simulated_steps: Steps to draw and deal, at least 1.
        rows_per_row: How many rows of a larger dataset each row stands for; counts are multiplied by it.
        report: Called with (steps done, steps to do).

    Raises:
        DataError: No stream has both rows and slots.
    """
    planner = StepPlanner(dataset, settings)
    buckets, frames, unknown_sizes, unknown_lengths = _count_shapes(dataset, settings, rows_per_row)
    tokens, imbalance = _simulate(planner, settings, ranks, simulated_steps, report)
    return Stats(
        groups=_count_groups(dataset, rows_per_row),
        shares=[share for stream in planner.streams for share in _shares(dataset, stream, train_steps, rows_per_row)],
        buckets=buckets,
        frames=frames,
        unknown_sizes=unknown_sizes * rows_per_row,
        unknown_lengths=unknown_lengths * rows_per_row,
        images_per_step=planner.num_image_slots,
        videos_per_step=planner.num_slots - planner.num_image_slots,
        train_steps=train_steps,
        epochs={
            stream.kind: train_steps * stream.per_step / (stream.num_places * rows_per_row)
            for stream in planner.streams
        },
        simulated_steps=simulated_steps,
        tokens_per_step=tokens,
        imbalance=imbalance,
    )


def _usable(dataset: Dataset) -> np.ndarray:
    return np.sort(np.concatenate([dataset.indices_of("image"), dataset.indices_of("video")]))


def _count_groups(dataset: Dataset, rows_per_row: int) -> list[Group]:
    table = dataset.columns(_GROUP_COLUMNS).take(pa.array(_usable(dataset)))
    counted = table.group_by(list(_GROUP_COLUMNS)).aggregate([([], "count_all")]).to_pylist()
    groups = [
        Group(row["dataset"], row["kind"], row["task"], row["licence"], row["count_all"] * rows_per_row)
        for row in counted
    ]
    return sorted(groups, key=lambda group: (-group.rows, str(group)))


def _shares(dataset: Dataset, stream: Stream, train_steps: int, rows_per_row: int) -> list[Share]:
    shares = []
    for part, rows, places in zip(dataset.parts, stream.part_rows, stream.part_places, strict=True):
        if rows:
            per_step = stream.per_step * places / stream.num_places
            passes = train_steps * per_step / (rows * rows_per_row)
            real = (rows * rows_per_row, places * rows_per_row)
            shares.append(Share(str(part.manifest), stream.kind, part.weight, *real, per_step, passes))
    return shares


def _count_shapes(
    dataset: Dataset, settings: LoaderSettings, rows_per_row: int
) -> tuple[dict[str, dict[Kind, int]], dict[int, int], int, int]:
    """Rows by bucket and kind, videos by frames, and what is not known."""
    rows = _usable(dataset)
    counts: Counter[tuple[Kind, int, int, int]] = Counter()
    unknown = np.zeros(2, np.int64)
    for start in range(0, len(rows), _BATCH_ROWS):
        some = rows[start : start + _BATCH_ROWS]
        found = predict_shapes(dataset, some, None, settings)
        for shape, count in zip(found.shapes, np.bincount(found.shape_of).tolist(), strict=True):
            counts[shape.kind, shape.width, shape.height, shape.num_frames] += count * rows_per_row
        unknown += num_unknown(dataset, some)
    buckets: dict[str, dict[Kind, int]] = {
        f"{width}x{height}": {"image": 0, "video": 0} for width, height in settings.buckets
    }
    frames: Counter[int] = Counter()
    for (kind, width, height, num_frames), count in counts.items():
        buckets[f"{width}x{height}"][kind] += count
        if kind == "video":
            frames[num_frames] += count
    return buckets, dict(sorted(frames.items())), int(unknown[0]), int(unknown[1])


class _Dealt:
    """What is gathered of many steps' deals to one number of ranks."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._slowest: list[float] = []
        self._least: list[float] = []
        self._calls = self._stackable = self._ragged = self._idle = 0

    def add(self, work: Work, at_least: int) -> None:
        """Deals one more step."""
        dealt = deal_work(work, self._num_ranks, at_least)
        loads = work.loads(dealt)
        mean = int(loads.sum()) / self._num_ranks
        self._slowest.append(int(loads.max()) / mean)
        self._least.append(max(1.0, least_possible(work, self._num_ranks) / mean))
        self._idle += sum(not slots for slots in dealt)
        counts, limits = work.counts(dealt), np.array(work.limits)
        calls = -(-counts // limits)
        self._calls += int(calls.sum())
        self._stackable += int(calls[:, limits > 1].sum())
        self._ragged += int(np.count_nonzero(counts % limits))

    def summary(self) -> Imbalance:
        """Returns what was gathered."""
        steps = len(self._slowest)
        return Imbalance(
            ranks=self._num_ranks,
            slowest=Spread.of(self._slowest),
            least_possible=Spread.of(self._least),
            micro_batches=self._calls / steps,
            ragged_share=self._ragged / max(1, self._stackable),
            idle_ranks=self._idle / steps,
        )


def _simulate(
    planner: StepPlanner,
    settings: LoaderSettings,
    ranks: Sequence[int],
    num_steps: int,
    report: Callable[[int, int], None],
) -> tuple[Spread, list[Imbalance]]:
    dealt = [_Dealt(number) for number in ranks]
    tokens: list[int] = []
    for step in range(num_steps):
        shapes = planner.shapes(step)
        tokens.append(int(settings.cost.tokens(*shapes.columns())[shapes.shape_of].sum()))
        work = planner.work(shapes)
        for one in dealt:
            one.add(work, settings.at_least_per_rank)
        report(step + 1, num_steps)
    return Spread.of(tokens), [one.summary() for one in dealt]
