"""Joins manifest, order, decoding and perturbation plans into the samples of a step."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType

from sama_data.clip_reader import ClipReader
from sama_data.clips import Clip, ClipCache
from sama_data.dataset import Dataset
from sama_data.errors import ClipError
from sama_data.health import Health
from sama_data.media import require_protocol
from sama_data.prefetch import prefetch_in_order
from sama_data.pretext import plan_for
from sama_data.prompts import make_prompt
from sama_data.quarantine import Quarantine
from sama_data.rows import Row
from sama_data.samples import Sample, StepSamples
from sama_data.settings import LoaderSettings
from sama_data.step_plan import StepPlanner
from sama_data.streams import Draw

__all__ = ["LoaderSettings", "Quarantine", "Sample", "SampleLoader", "StepSamples"]


@dataclass(frozen=True, slots=True)
class _Job:
    """One of this rank's slots, to be read with so many decoder threads."""

    step: int
    draw: Draw
    threads: int


class SampleLoader:
    """One data-parallel rank's samples, for any step. To be closed: its decoders are processes.

    Stateless between steps except for caches: step k is the same whichever steps were asked for before, and
    the slots of a step over all ranks are the same for any number of ranks. One thread uses a loader at a
    time.

    Args:
        dataset: The rows.
        settings: How to draw and read them.
        data_rank: This rank's place among the data-parallel ranks.
        data_world: Their number.
        quarantine: Where bad samples are recorded.
        reader: Reads the clips, as the settings say; None makes one.

    Raises:
        DataError: No stream has both rows and slots, or what reads the manifest's URLs is not installed.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: LoaderSettings,
        data_rank: int,
        data_world: int,
        quarantine: Quarantine,
        reader: ClipReader | None = None,
    ) -> None:
        if not 0 <= data_rank < data_world:
            raise ValueError(f"data_rank {data_rank} must be in 0..{data_world - 1}")
        self._dataset = dataset
        self._settings = settings
        self._data_rank = data_rank
        self._data_world = data_world
        for protocol in sorted(dataset.traits.protocols):
            require_protocol(protocol)
        self._planner = StepPlanner(dataset, settings)
        self.num_slots = self._planner.num_slots
        self.num_image_slots = self._planner.num_image_slots
        self.health = Health(
            len(dataset),
            {stream.kind: stream.num_rows for stream in self._planner.streams},
            settings.max_bad_share,
            quarantine,
            settings.decode_threads,
        )
        self._reader = reader or ClipReader(
            settings.buckets, settings.max_frames, settings.decode_timeout_seconds, settings.decode_threads
        )
        self._cache = ClipCache(settings.decoded_cache_mib)

    def draws(self, step: int) -> list[Draw]:
        """Returns a step's draws over all ranks, by slot: the same for any number of ranks."""
        return self._planner.draws(step)

    def step(self, step: int) -> StepSamples:
        """Reads this rank's samples of one step.

        Raises:
            DataError: Too many samples are bad.
        """
        with closing(self._prefetched(range(step, step + 1), steps_ahead=0)) as only:
            return next(only)

    def prefetching(self, start_step: int, num_steps: int) -> Generator[StepSamples, None, None]:
        """Yields the samples of num_steps steps from start_step on, read ahead on background threads.

        Close the generator (or let go of it) to end the threads, and the decoders with them, early.

        Raises:
            DataError: Too many samples are bad; raised at the step that met the last of them.
        """
        return self._prefetched(range(start_step, start_step + num_steps), self._settings.prefetch_steps)

    def close(self) -> None:
        """Ends the decoders; reading another step starts new ones."""
        self._reader.close()

    def __enter__(self) -> SampleLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prefetched(self, steps: range, steps_ahead: int) -> Generator[StepSamples, None, None]:
        threads, interrupt = self._settings.decode_threads, self._reader.close
        prepared = prefetch_in_order(steps, self._plan_step, self._read_job, steps_ahead, threads, interrupt)
        with closing(prepared):
            for step, read in prepared:
                yield StepSamples(
                    step=step,
                    samples=read,
                    num_slots=self.num_slots,
                    num_image_slots=self.num_image_slots,
                )

    def _plan_step(self, step: int) -> list[_Job]:
        """Returns this rank's share of the step."""
        draws = self.draws(step)
        mine = self._planner.deal(step, self._data_world)[self._data_rank]
        # Threads that no other sample of the step would use go to each sample's decoder.
        threads = max(1, self._settings.decode_threads // max(1, len(mine)))
        return [_Job(step, draws[slot], threads) for slot in mine]

    def _read_job(self, job: _Job) -> Sample:
        """Returns the first good sample of the drawn one and its stand-ins."""
        draw = job.draw
        for index, epoch in draw.stream.candidates(draw):
            if self.health.is_bad(index):
                continue
            row = self._dataset[index]
            try:
                clip = self._read_clip(row, job.threads)
            except ClipError as error:
                self.health.record_bad(row, error, job.step)
                continue
            self.health.record_good(row)
            return self._make_sample(row, epoch, draw.slot, clip)
        # Every candidate was known to be bad; the slot that met the last of them says so in record_bad.
        raise self.health.all_bad(draw.stream.kind, None)

    def _read_clip(self, row: Row, threads: int) -> Clip:
        clip = self._cache.get(row.index)
        if clip is None:
            clip = self._reader.read(row, threads)
            self._cache.put(row.index, clip)
        return clip

    def _make_sample(self, row: Row, epoch: int, slot: int, clip: Clip) -> Sample:
        num_frames, height, width = clip.target.shape[:3]
        plan = plan_for(row, num_frames, height, width, self._settings.motion, self._settings.seed, epoch)
        prompt, prefix = make_prompt(row, plan)
        return Sample(
            sample_id=row.sample_id,
            index=row.index,
            epoch=epoch,
            slot=slot,
            kind=row.kind,
            task=plan.task,
            source_frames=clip.source,
            target_frames=clip.target,
            plan=plan,
            prompt=prompt,
            prompt_prefix=prefix,
        )
