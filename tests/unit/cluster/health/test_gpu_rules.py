"""Too few GPUs, broken ones, busy ones, and ones of another kind."""

from __future__ import annotations

from sama_mega.cluster.health.facts import GpuFacts, RankReport
from sama_mega.cluster.health.settings import Settings
from tests.support.health_reports import gpu, gpu_nodes, gpus, node_reports, status, told, world_of


def test_more_ranks_than_gpus() -> None:
    world = world_of(node_reports("node1", 0, 8, gpus=gpus(1)))
    assert told(world) == [
        "error: node1: 8 ranks for 1 GPU; every rank must have one of its own: submit with --gpus-per-node=8, or start "
        "1 rank a node"
    ]
    assert status(world) == 1
    visible = world_of(node_reports("node1", 0, 3, gpus=gpus(2, granted=None)))
    assert "3 ranks for 2 GPUs" in told(visible)[0] and status(visible) == 1


def test_fewer_ranks_than_gpus_is_a_warning() -> None:
    world = world_of(node_reports("node1", 0, 4, gpus=gpus(8)))
    assert told(world) == [
        "warning: node1: 4 ranks for 8 GPUs: the others stay idle: start 8 ranks a node (--ntasks-per-node=8)"
    ]
    incomplete = world_of(node_reports("node1", 0, 4, gpus=gpus(8)), world_size=8)
    assert not any("idle" in line for line in told(incomplete))


def test_ranks_over_gloo_may_share_gpus_or_have_none() -> None:
    assert told(world_of(node_reports("node1", 0, 8, gpus=gpus(1), backend="gloo"))) == []
    assert told(world_of(node_reports("node1", gpus=gpus(0, granted=2), backend="gloo"))) == []


def test_a_grant_that_the_driver_does_not_show() -> None:
    hidden = GpuFacts(granted=8, gpus=(), error="nvidia-smi did not answer within 20 s")
    assert told(gpu_nodes(second=hidden)) == [
        "error: node2: Slurm granted 8 GPUs and the driver shows none (nvidia-smi did not answer within 20 s); it must "
        "show all of them: have the node drained and its GPUs and driver looked at, or leave it out with sbatch "
        "--exclude=node2"
    ]
    assert "granted 8 GPUs and the driver shows 7;" in told(gpu_nodes(second=gpus(7, granted=8)))[0]


def test_a_driver_that_shows_more_than_the_grant() -> None:
    (line,) = told(gpu_nodes(ranks=2, first=gpus(2), second=gpus(8, granted=2)))[:1]
    assert line.startswith("warning: node2: Slurm granted 2 GPUs and the driver shows 8: some are another job's")


def test_slices_are_not_counted() -> None:
    facts = gpus(1, granted=7, has_slices=True)
    assert told(world_of(node_reports("node1", 0, 7, gpus=facts))) == []


def test_gpus_of_ranks_that_see_one_each_are_put_together() -> None:
    ranks = [
        RankReport(
            rank=rank,
            local_rank=rank,
            node="node1",
            python="3.11.7",
            gpus=gpus(0, granted=2, gpus=(gpu(0, uuid=f"GPU-{rank}"),)),
        )
        for rank in range(2)
    ]
    assert told(world_of(ranks)) == []


def test_broken_and_busy_gpus() -> None:
    sick = gpus(
        8,
        gpus=(
            gpu(0, fault="GPU requires reset", uncorrected_errors=None),
            gpu(1, uncorrected_errors=2),
            gpu(2, memory_free_mib=40960.0),
            gpu(3, memory_total_mib=None, memory_free_mib=None, uncorrected_errors=None),
            *(gpu(index) for index in range(4, 8)),
        ),
    )
    repair = "have the node drained and the GPU reset or replaced, or leave it out with sbatch --exclude=node2"
    one, two, three = (f"error: node2: GPU {index} (NVIDIA H100 80GB HBM3)" for index in range(3))
    assert told(gpu_nodes(second=sick)) == [
        f"{one}: the driver says 'GPU requires reset'; a GPU must answer: {repair}",
        f"{two} has 2 uncorrected ECC errors since its driver started; it must have none: {repair}",
        f"{three} has 40.0 of 79.6 GiB free (0.50); SAMA_MEGA_MIN_FREE_GPU_MEMORY_SHARE is 0.9: end "
        "the process that holds it (nvidia-smi shows it), or leave it out with sbatch --exclude=node2",
    ]
    assert told(gpu_nodes(second=gpus(8, gpus=tuple(gpu(index, memory_free_mib=60000.0) for index in range(8)))))
    assert not told(
        gpu_nodes(second=gpus(8, gpus=tuple(gpu(index, memory_free_mib=60000.0) for index in range(8)))),
        settings=Settings(min_free_gpu_memory_share=0.7),
    )


def test_the_same_gpu_on_many_nodes_is_one_line() -> None:
    busy = gpus(1, gpus=(gpu(memory_free_mib=1000.0),))
    world = world_of(*[node_reports(f"gpu{index:03d}", index, gpus=busy) for index in range(128)])
    (line,) = told(world)
    assert line.startswith("error: gpu[000-127]: GPU 0 (") and "--exclude" not in line


def test_hardware_errors_in_the_log_are_a_warning() -> None:
    world = gpu_nodes(second=gpus(8, log=("Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",)))
    (line,) = told(world)
    assert line.startswith("warning: node2: the kernel's log has 'Xid (PCI:0000:3b:00): 79") and status(world) == 0


def test_a_node_without_gpus_among_nodes_with_them() -> None:
    none = GpuFacts(granted=None, gpus=(), error="nvidia-smi is not installed")
    world = gpu_nodes(second=none)
    (line,) = told(world)
    assert line.startswith(
        "error: node2: it has no GPU (nvidia-smi is not installed), node1 has 8; all nodes must have"
    )
    assert status(world) == 1


def test_other_gpus_and_drivers_are_a_warning() -> None:
    other = gpus(8, gpus=tuple(gpu(index, name="NVIDIA A100", driver="550.1") for index in range(8)))
    world = gpu_nodes(second=other)
    assert told(world) == [
        "warning: node2: GPUs 8 x NVIDIA A100, on node1 8 x NVIDIA H100 80GB HBM3; the slowest node sets the pace: "
        "request one kind with --constraint, or leave it out with sbatch --exclude=node2",
        "warning: node2: driver 550.1, on node1 570.86.15; the slowest node sets the pace: request one kind with "
        "--constraint, or leave it out with sbatch --exclude=node2",
    ]
    assert status(world) == 0
