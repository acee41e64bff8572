"""Probes a manifest's rows in guarded processes, each of them once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sama_data.dataset import Dataset
from sama_data.media import require_protocol
from sama_data.probe.doubts import Doubts, Loss
from sama_data.probe.findings import KEY_COLUMNS, Findings, row_key
from sama_data.probe.row import Finding, probe_row
from sama_data.rows import Row
from sama_data.workers.pool import WorkerDiedError, WorkerPool, WorkerTimeoutError

# More jobs than workers, so that none of these waits for the next row.
_JOBS_PER_WORKER = 2
_BATCH_ROWS = 4096
_PRELOAD = ("sama_data.probe.row",)

Report = Callable[[int], object]


@dataclass(frozen=True)
class Probed:
    """What a run did.

    Attributes:
        keys: For each row the key of its finding, uint64 ``[rows]``; 0 for a row that was rejected before.
        num_decoded: Rows whose clips were decoded now; the others were known, or are equal to one of these.
    """

    keys: NDArray[np.uint64]
    num_decoded: int


def probe_rows(
    dataset: Dataset, findings: Findings, workers: int, timeout_seconds: float, report: Report = lambda done: None
) -> Probed:
    """Probes all rows that are not known yet and not rejected already.

    Args:
        dataset: The rows of one manifest.
        findings: Where what is found goes, each as soon as it is there.
        workers: Processes that decode.
        timeout_seconds: The longest that one row may take; longer, and it is rejected.
        report: Called with the number of rows that are done.

    Raises:
        DataError: The journal cannot be written, workers cannot be started, a URL cannot be read here, or whatever is
            decoded on this machine hangs or crashes.
    """
    for protocol in sorted(dataset.traits.protocols):
        require_protocol(protocol)
    run = _Run(dataset, findings, timeout_seconds, report)
    with ThreadPoolExecutor(workers, "probe") as threads, WorkerPool(workers, _PRELOAD) as pool:
        try:
            run.all(threads, pool, workers)
        finally:
            # Before the pool is closed: a job that begins afterwards would start a worker again.
            threads.shutdown(wait=False, cancel_futures=True)
    return Probed(run.keys, run.num_decoded)


class _Run:
    """One run's state; the threads of its jobs touch nothing of it but the findings."""

    def __init__(self, dataset: Dataset, findings: Findings, timeout_seconds: float, report: Report) -> None:
        self.keys = np.zeros(len(dataset), np.uint64)
        self.num_decoded = 0
        self._dataset = dataset
        self._findings = findings
        self._timeout_seconds = timeout_seconds
        self._report = report
        self._jobs: dict[Future[None], int] = {}
        self._keys_under_way: set[int] = set()

    def all(self, threads: ThreadPoolExecutor, pool: WorkerPool, workers: int) -> None:
        doubts = Doubts(self._findings, workers, lambda row: self._can_be_probed(pool, row))
        for index, key in self._wanted():
            self.keys[index] = key
            if key not in self._findings and key not in self._keys_under_way:
                if len(self._jobs) == _JOBS_PER_WORKER * workers:
                    self._take_finished()
                job = threads.submit(self._probe, pool, doubts, key, self._dataset[index])
                self._jobs[job] = key
                self._keys_under_way.add(key)
            self._report(index + 1 - len(self._jobs))
        while self._jobs:
            self._take_finished()
            self._report(len(self._dataset) - len(self._jobs))
        doubts.clear()

    def _wanted(self) -> Iterator[tuple[int, int]]:
        """Yields the place and the key of every row that is not rejected."""
        folder, index = self._dataset.parts[0].folder, 0
        for batch in self._dataset.batches([*KEY_COLUMNS, "rejected"]):
            for start in range(0, len(batch), _BATCH_ROWS):
                for row in batch.slice(start, _BATCH_ROWS).to_pylist():
                    if row["rejected"] is None:
                        yield index, row_key(row, folder)
                    index += 1

    def _take_finished(self) -> None:
        finished, _ = wait(self._jobs, return_when=FIRST_COMPLETED)
        for job in finished:
            self._keys_under_way.remove(self._jobs.pop(job))
            job.result()
            self.num_decoded += 1

    def _probe(self, pool: WorkerPool, doubts: Doubts, key: int, row: Row) -> None:
        seconds = self._timeout_seconds
        try:
            finding = pool.run(probe_row, row, timeout_seconds=seconds)
        except WorkerTimeoutError as error:
            doubts.add(Loss(key, row.sample_id, Finding(rejected=f"decoding {error}"), seconds))
        except WorkerDiedError as error:
            doubts.add(Loss(key, row.sample_id, Finding(rejected=f"decoding {error}", is_passing=True), None))
        else:
            self._findings.add(key, row.sample_id, finding)
            doubts.clear(row)

    def _can_be_probed(self, pool: WorkerPool, row: Row) -> bool:
        try:
            pool.run(probe_row, row, timeout_seconds=self._timeout_seconds)
        except (WorkerTimeoutError, WorkerDiedError):
            return False
        return True
