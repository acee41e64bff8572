"""Fixtures with a Slurm cluster, and the marks of the tests in this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.installation import why_not_here
from tests.slurm.local_cluster import LocalCluster

HERE = Path(__file__).parent
CLUSTERS = pytest.StashKey[list[LocalCluster]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder as slurm."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Say with a failed test where the logs of its clusters are."""
    report = yield
    clusters = item.stash.get(CLUSTERS, [])
    if report.failed and clusters:
        report.sections.append(("Slurm's logs", "\n".join(str(cluster.logs) for cluster in clusters)))
    return report


@pytest.fixture(scope="session")
def slurm_here() -> None:
    """Skips the test, with the reason, on a host that cannot run a cluster."""
    reason = why_not_here()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(slurm_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two healthy nodes for all tests; for faults and other shapes take `make_cluster`."""
    with LocalCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def make_cluster(
    slurm_here: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[..., LocalCluster]]:
    """Makes clusters for one test: `make_cluster(nodes=1, fake_gpus_per_node=2)` returns a LocalCluster that is up."""
    made = request.node.stash.setdefault(CLUSTERS, [])
    with ExitStack() as stack:

        def make(**settings: Any) -> LocalCluster:
            cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), **settings)
            made.append(cluster)
            return stack.enter_context(cluster)

        yield make


@pytest.fixture(autouse=True)
def no_jobs_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends the jobs that a test leaves on the common cluster, so that the next test finds it free."""
    if "cluster" not in request.fixturenames:
        yield
        return
    cluster = request.getfixturevalue("cluster")
    request.node.stash[CLUSTERS] = [cluster]
    yield
    for job_id in cluster.jobs_alive():
        cluster.cancel(job_id)
    cluster.wait_until(lambda: not cluster.jobs_alive(), 30, "the jobs of this test to end")
