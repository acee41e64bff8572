"""Joins manifest, order, decoding and perturbation plans into the samples of a step."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType

from sama_data.clips import Clip, ClipCache
from sama_data.dataset import Dataset
from sama_data.errors import ClipError
from sama_data.graph.frames import DeviceClip
from sama_data.health import Health
from sama_data.media import require_protocol
from sama_data.prefetch import prefetch_in_order
from sama_data.pretext import plan_for
from sama_data.prompts import make_prompt
from sama_data.quarantine import Quarantine
from sama_data.readers import BatchReader, Read, make_reader
from sama_data.rows import Row
from sama_data.samples import Sample, StepSamples
from sama_data.settings import LoaderSettings
from sama_data.step_plan import StepPlanner
from sama_data.streams import Draw

__all__ = ["LoaderSettings", "Quarantine", "Sample", "SampleLoader", "StepSamples"]


_log = logging.getLogger(__name__)


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
        reader: Reads the clips; None makes the one that the settings ask for.
        device: The number of the GPU that it may decode to, None where there is none.

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
        reader: BatchReader | None = None,
        device: int | None = None,
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
        self._reader = reader or make_reader(settings, device)
        self._num_callers = self._reader.num_callers or settings.decode_threads
        self.health = Health(
            len(dataset),
            {stream.kind: stream.num_rows for stream in self._planner.streams},
            settings.max_bad_share,
            quarantine,
            self._num_callers * self._reader.batch_size,
        )
        self._cache = ClipCache(settings.decoded_cache_mib)
        self._told_decoder = False

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
        """Ends what decodes; samples that were handed over stay valid, and reading another step starts it anew."""
        self._reader.close()

    def __enter__(self) -> SampleLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prefetched(self, steps: range, steps_ahead: int) -> Generator[StepSamples, None, None]:
        if not self._told_decoder:  # not when it is made: a run has no log yet
            _log.info("clips are decoded by %s (data.decoder: %s)", self._reader.name, self._settings.decoder)
            self._told_decoder = True
        threads, interrupt = self._num_callers, self._reader.close
        prepared = prefetch_in_order(steps, self._plan_batches, self._read_jobs, steps_ahead, threads, interrupt)
        with closing(prepared):
            for step, read in prepared:
                yield StepSamples(
                    step=step,
                    samples=[sample for batch in read for sample in batch],
                    num_slots=self.num_slots,
                    num_image_slots=self.num_image_slots,
                )

    def _plan_batches(self, step: int) -> list[list[_Job]]:
        """Returns this rank's share of the step in the batches that the reader takes."""
        jobs, size = self._plan_step(step), self._reader.batch_size
        return [jobs[start : start + size] for start in range(0, len(jobs), size)]

    def _plan_step(self, step: int) -> list[_Job]:
        """Returns this rank's share of the step."""
        draws = self.draws(step)
        mine = self._planner.deal(step, self._data_world)[self._data_rank]
        # Threads that no other sample of the step would use go to each sample's decoder.
        threads = max(1, self._settings.decode_threads // max(1, len(mine)))
        return [_Job(step, draws[slot], threads) for slot in mine]

    def _read_jobs(self, jobs: Sequence[_Job]) -> list[Sample]:
        """Returns for each job the first good sample of the drawn one and its stand-ins."""
        tried = [self._candidates(job) for job in jobs]
        samples: dict[int, Sample] = {}
        while missing := [place for place in range(len(jobs)) if place not in samples]:
            found = [next(tried[place]) for place in missing]
            clips = self._read_clips([row for row, _ in found], jobs[0].threads)
            for place, (row, epoch), clip in zip(missing, found, clips, strict=True):
                if isinstance(clip, ClipError):
                    self.health.record_bad(row, clip, jobs[place].step)
                    continue
                self.health.record_good(row)
                samples[place] = self._make_sample(row, epoch, jobs[place].draw.slot, clip)
        return [samples[place] for place in range(len(jobs))]

    def _candidates(self, job: _Job) -> Iterator[tuple[Row, int]]:
        """The drawn sample and its stand-ins that are not known to be bad, with their epochs."""
        draw = job.draw
        for index, epoch in draw.stream.candidates(draw):
            if not self.health.is_bad(index):
                yield self._dataset[index], epoch
        # Every candidate was known to be bad; the slot that met the last of them says so in record_bad.
        raise self.health.all_bad(draw.stream.kind, None)

    def _read_clips(self, rows: Sequence[Row], threads: int) -> list[Read]:
        """Reads those that the cache does not have."""
        clips: dict[int, Read] = {}
        for place, row in enumerate(rows):
            kept = self._cache.get(row.index)
            if kept is not None:
                clips[place] = kept
        missing = [place for place in range(len(rows)) if place not in clips]
        if missing:
            read = self._reader.read([rows[place] for place in missing], threads)
            clips.update(zip(missing, read, strict=True))
            for place, clip in zip(missing, read, strict=True):
                if isinstance(clip, Clip):  # not what is on a GPU
                    self._cache.put(rows[place].index, clip)
        return [clips[place] for place in range(len(rows))]

    def _make_sample(self, row: Row, epoch: int, slot: int, clip: Clip | DeviceClip) -> Sample:
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
