"""Starting ranks, forming groups, and the collectives outside megatron's layers, on gloo."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import ParallelRecipe
from tests.support.distributed import IMPORT_PATHS, DistributedError, run_distributed

TIMEOUT_SECONDS = 60.0


def recipe(**parallel: Any) -> Any:
    """What the code under test reads of a recipe."""
    return SimpleNamespace(
        parallel=ParallelRecipe(**parallel),
        model=SimpleNamespace(num_heads=2, ffn_dim=8, num_layers=1),
        train=SimpleNamespace(seed=11),
    )


# --- run by the ranks -----------------------------------------------------------------------------


def run_two_ranks() -> dict[str, Any]:
    """Tensor parallel, then data parallel in the same processes, then each rank alone."""
    from sama_mega.parallel.layout import resolve_layout
    from sama_mega.parallel.runtime import form_groups, solo_context, start_parallel, stop_parallel

    context = start_parallel(recipe(tensor=2), timeout_seconds=30)
    out: dict[str, Any] = {"tensor": describe(context), "random": random_numbers()}
    out |= collectives(context)
    context = form_groups(resolve_layout(recipe(), 2), context.device, seed=11)
    out["data"] = describe(context)
    out["random_again"] = random_numbers()
    out["solo"] = describe(solo_context(context))
    try:
        start_parallel(recipe(tensor=2))
    except RuntimeError as error:
        out["twice"] = str(error)
    stop_parallel()
    out["stopped"] = not torch.distributed.is_initialized()
    return out


def describe(context: Any) -> dict[str, Any]:
    names = ("tensor_group", "data_group", "model_group", "world_group", "host_world_group")
    return {
        "place": (
            context.rank,
            context.tensor_rank,
            context.data_rank,
            context.context_rank,
            context.pipeline_rank,
        ),
        "sizes": {name: getattr(context, name).size() for name in names},
        "host_backend": torch.distributed.get_backend(context.host_world_group),
        "device": str(context.device),
        "sequence": context.layout.sequence,
    }


def random_numbers() -> tuple[float, float, float]:
    """Default generator, megatron's tensor-parallel one, default again: the fork must not disturb it."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    before = torch.rand(()).item()
    with get_cuda_rng_tracker().fork():
        inside = torch.rand(()).item()
    return before, inside, torch.rand(()).item()


def collectives(context: Any) -> dict[str, Any]:
    from sama_mega.parallel.collectives import (
        all_reduce_in_place,
        bind_all_reduce,
        broadcast_object,
        flattened_all_reduce,
        gather_objects,
    )

    tensor = torch.full((3,), 1.0 + context.rank)
    returned = all_reduce_in_place(tensor, context.tensor_group)
    alone = all_reduce_in_place(torch.full((3,), 1.0 + context.rank), context.data_group)
    several = [torch.full((2, 2), float(context.rank)), torch.ones(3, dtype=torch.float64), torch.ones(())]
    flattened_all_reduce(several, context.world_group)
    return {
        "in_place": returned is tensor and tensor.tolist() == [3.0] * 3,
        "one_rank_group": alone.tolist() == [1.0 + context.rank] * 3,
        "bound": bind_all_reduce(context.tensor_group)(torch.ones(1)).item(),
        "flattened": [value.reshape(-1).tolist() for value in several],
        "gathered": gather_objects({"rank": context.rank}, context.world_group),
        "broadcast": broadcast_object(f"from {context.rank}", context.world_group),
    }


def fail_on_rank_one() -> None:
    import os

    if os.environ["RANK"] == "1":
        raise ValueError("rank one's own reason")
    time.sleep(30)


def never_return() -> None:
    time.sleep(60)


# --- run by pytest --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_distributed(run_two_ranks, 2, TIMEOUT_SECONDS)


def test_tensor_parallel_groups(two_ranks: list[dict[str, Any]]) -> None:
    for rank, out in enumerate(two_ranks):
        assert out["tensor"] == {
            "place": (rank, rank, 0, 0, 0),
            "sizes": {
                "tensor_group": 2,
                "data_group": 1,
                "model_group": 2,
                "world_group": 2,
                "host_world_group": 2,
            },
            "host_backend": "gloo",
            "device": "cpu" if not torch.cuda.is_available() else out["tensor"]["device"],
            "sequence": True,
        }


def test_groups_can_be_formed_again(two_ranks: list[dict[str, Any]]) -> None:
    for rank, out in enumerate(two_ranks):
        assert out["data"]["place"] == (rank, 0, rank, 0, 0)
        assert out["data"]["sizes"] == {
            "tensor_group": 1,
            "data_group": 2,
            "model_group": 1,
            "world_group": 2,
            "host_world_group": 2,
        }
        assert out["data"]["host_backend"] == out["solo"]["host_backend"] == "gloo"
        assert not out["data"]["sequence"]
        assert out["solo"]["place"] == (0, 0, 0, 0, 0)
        assert set(out["solo"]["sizes"].values()) == {1}
        assert "already joined" in out["twice"]
        assert out["stopped"]


def test_generators(two_ranks: list[dict[str, Any]]) -> None:
    first, second = (out["random"] for out in two_ranks)
    assert (first[0], first[2]) == (second[0], second[2]), "the default generator is the same on every tensor rank"
    assert first[1] != second[1], "megatron's tensor-parallel generator differs"
    assert first[0] != first[2] != first[1]
    assert two_ranks[0]["random_again"] == first, "the seed alone decides, not what ran before"


def test_collectives(two_ranks: list[dict[str, Any]]) -> None:
    for out in two_ranks:
        assert out["in_place"]
        assert out["one_rank_group"]
        assert out["bound"] == 2.0
        assert out["flattened"] == [[1.0] * 4, [2.0] * 3, [2.0]]
        assert out["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert out["broadcast"] == "from 0"


JOIN = """
from pathlib import Path
from types import SimpleNamespace as Space
if __name__ == "__main__":
    from sama_mega.parallel.runtime import start_parallel, stop_parallel
    from sama_mega.parallel.collectives import gather_objects
    from sama_mega.config.schema import ParallelRecipe
    recipe = Space(parallel=ParallelRecipe(tensor=2),
                   model=Space(num_heads=2, ffn_dim=8, num_layers=1), train=Space(seed=0))
    context = start_parallel(recipe, timeout_seconds=30)
    met = gather_objects(context.rank, context.world_group)
    # A file a rank: torchrun's ranks write to one stdout, and their lines may mix.
    Path(f"joined{context.rank}").write_text(f"{met} {context.tensor_group.size()}")
    stop_parallel()
"""


@pytest.fixture
def join_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, IMPORT_PATHS)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "join.py"
    path.write_text(JOIN)
    return path


def test_ranks_of_torchrun_meet(join_script: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(join_script)], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_all_joined(join_script.parent)


def test_ranks_of_srun_meet(join_script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variables that a plain srun sets; the address and the port are derived."""
    ranks = []
    for rank in range(2):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setenv("SLURM_LOCALID", str(rank))
        monkeypatch.setenv("SLURM_STEP_ID", "0")
        monkeypatch.setenv("SLURM_NTASKS", "2")
        monkeypatch.setenv("SLURM_JOB_NODELIST", "localhost")
        # Another port in every run of the tests.
        monkeypatch.setenv("SLURM_JOB_ID", str(join_script))
        command = [sys.executable, str(join_script)]
        ranks.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    try:
        outputs = [rank.communicate(timeout=TIMEOUT_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert_all_joined(join_script.parent)


def assert_all_joined(folder: Path) -> None:
    for rank in range(2):
        assert (folder / f"joined{rank}").read_text() == "[0, 1] 2"


def test_impossible_layout_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from sama_mega.parallel import runtime

    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("joined a world"))
    environ = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}
    with pytest.raises(ConfigError, match=r"must divide the number of ranks \(3\)"):
        runtime.start_parallel(recipe(tensor=2), environ=environ)
    with pytest.raises(ConfigError, match=r"SAMA_MEGA_BACKEND \(mpi\) must be gloo or nccl"):
        runtime.start_parallel(recipe(), environ={"SAMA_MEGA_BACKEND": "mpi"})


def test_support_reports_the_rank_that_failed() -> None:
    started = time.monotonic()
    with pytest.raises(DistributedError, match="rank one's own reason"):
        run_distributed(fail_on_rank_one, 2, TIMEOUT_SECONDS)
    assert time.monotonic() - started < 20


def test_support_kills_ranks_that_do_not_return() -> None:
    with pytest.raises(DistributedError, match="still running after 3 s"):
        run_distributed(never_return, 2, 3)
