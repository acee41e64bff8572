"""Background saves of two ranks: who writes what, which layouts read it, and failures of one rank.

Two ranks are started once and run every case; what they wrote is read in this process.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex

from tests.support.distributed import run_distributed
from tests.support.tiny_recipe import alone, assert_bitwise_equal, tiny_recipe

pytestmark = pytest.mark.distributed

TIMEOUT_SECONDS = 120.0
STEP = 4
ROUNDS = 200
"""Messages of the main thread beside a save."""
PRECISIONS = ("float32", "bfloat16")
OVERLAP = {"parallel.overlap_grad_reduce": True, "parallel.overlap_param_gather": True}


def recipe_of(folder: Path, precision: str, changes: dict[str, Any] | None = None) -> Any:
    changes = {"model.num_layers": 1, "train.precision": precision} | (changes or {})
    return tiny_recipe(0, folder, Path("none.jsonl"), changes=changes)


# --- run by the two ranks -------------------------------------------------------------------------


def run_cases(root: Path) -> dict[str, Any]:
    from sama_mega.parallel.runtime import start_parallel

    out: dict[str, Any] = {}
    context = start_parallel(recipe_of(root, "float32"), timeout_seconds=60)
    for precision in PRECISIONS:
        data = {"parallel.data": 2} | OVERLAP
        out[precision] = save_on_two_data_ranks(context, recipe_of(root / f"data-{precision}", precision, data))
        tensor = recipe_of(root / f"tensor-{precision}", precision, {"parallel.tensor": 2})
        load_on_two_tensor_ranks(context, tensor, root / f"data-{precision}")
    out["failure"] = fail_on_one_rank(context, recipe_of(root / "failure", "float32"))
    out["departure"] = leave_one_rank_alone(context, recipe_of(root / "departure", "float32"))
    return out


def make_saver(context: Any, recipe: Any) -> tuple[Any, Any, Any]:
    """A saver, a state to save and the layout they are of; the run folder is made."""
    from sama_mega.parallel.layout import resolve_layout
    from sama_mega.parallel.runtime import form_groups
    from sama_mega.train.checkpoint_saver import CheckpointSaver
    from sama_mega.train.run_folder import RunFolder
    from sama_mega.train.state import build_train_state

    context = form_groups(resolve_layout(recipe, 2), context.device, seed=1)
    folder = RunFolder(recipe.train.run_folder)
    if context.is_first_rank:
        RunFolder.create(folder.root)
        folder.start_life({})
    torch.distributed.barrier()
    state = build_train_state(recipe, context, initialize=True)
    state.step = STEP
    return CheckpointSaver(folder, recipe, context, life=1), state, context


def save_on_two_data_ranks(context: Any, recipe: Any) -> dict[str, Any]:
    """Saves behind a step whose result is not yet with the other rank, while the main threads talk."""
    from sama_mega.parallel.collectives import gather_objects
    from sama_mega.parallel.data_parallel import parameter_names, synchronize_parameters

    saver, state, context = make_saver(context, recipe)
    take_step(state)
    saver.save(state)
    heard = []
    for number in range(ROUNDS):
        total = torch.tensor([float(number + context.rank)])
        torch.distributed.all_reduce(total, group=context.world_group)
        heard.append(total.item() == 2 * number + 1)
        heard.append(gather_objects((number, context.rank), context.world_group) == [(number, 0), (number, 1)])
    late = {name: value.detach().clone() for name, value in parameter_names(state.stages[0].module).items()}
    synchronize_parameters(state.stages[0])
    whole = {name: value.detach().clone() for name, value in parameter_names(state.stages[0].module).items()}
    take_step(state)
    saver.wait()
    return {
        "heard_everything": all(heard),
        "gather_was_late": any(not torch.equal(late[name], whole[name]) for name in whole),
        "model": whole,
    }


def take_step(state: Any) -> None:
    """With gradients from nowhere."""
    state.optimizer.zero_grad()
    for number, parameter in enumerate(state.stages[0].module.parameters()):
        parameter.main_grad.fill_(0.1 + number)
    state.optimizer.step(0.05, None)
    state.average.update()


def load_on_two_tensor_ranks(context: Any, recipe: Any, run_folder: Path) -> None:
    """Loads what two data ranks wrote and writes it again."""
    from sama_mega.train.checkpoint import load_checkpoint

    saver, state, _ = make_saver(context, recipe)
    load_checkpoint(checkpoint_in(run_folder), state)
    saver.save(state)
    saver.wait()


def fail_on_one_rank(context: Any, recipe: Any) -> dict[str, str]:
    """The last rank's disk is full; what the others' main threads hear of it, and when."""
    from torch.distributed.checkpoint import filesystem

    saver, state, context = make_saver(context, recipe)
    write_item = filesystem._write_item
    if context.rank == 1:
        filesystem._write_item = full_disk
    said = {"first": message_of(lambda: saver.save(state)), "next": message_of(lambda: saver.save(state))}
    filesystem._write_item = write_item
    said["after"] = message_of(lambda: (saver.save(state), saver.wait()))
    return said


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def message_of(action: Any) -> str:
    from sama_mega.config.errors import CheckpointError

    try:
        action()
    except CheckpointError as error:
        return str(error)
    return ""


def leave_one_rank_alone(context: Any, recipe: Any) -> float:
    """Seconds that a rank waits at the end of its run for a save whose other half is gone; the worlds end here."""
    saver, state, context = make_saver(context, recipe)
    torch.distributed.barrier()
    started = time.monotonic()
    if context.rank == 1:
        torch.distributed.destroy_process_group()
    else:
        saver.save(state)
        saver.close()
        assert "was not saved" in str(saver._problem)
        # A rank that is gone is no fault of the user's: with a UserError, the job would not start again.
        assert isinstance(saver._problem, RuntimeError)
    return time.monotonic() - started


# --- run by pytest --------------------------------------------------------------------------------


def checkpoint_in(run_folder: Path) -> Path:
    return run_folder / f"checkpoints/step-{STEP:08d}"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the run folders, and what each rank saw."""
    root = tmp_path_factory.mktemp("saver")
    return root, run_distributed(run_cases, 2, TIMEOUT_SECONDS, (root,))


def elements_by_file(checkpoint: Path, section: str) -> dict[str, int]:
    metadata = FileSystemReader(checkpoint).read_metadata()
    elements: dict[str, int] = {}
    for key, entry in metadata.state_dict_metadata.items():
        for chunk in entry.chunks if key.startswith(section) else ():
            file = metadata.storage_data[MetadataIndex(key, chunk.offsets)].relative_path
            elements[file] = elements.get(file, 0) + chunk.sizes.numel()
    return elements


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_main_threads_talk_undisturbed(cases: Any, precision: str) -> None:
    for rank in cases[1]:
        assert rank[precision]["heard_everything"]


@pytest.mark.parametrize("section", ["model.", "ema.", "optimizer."])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_both_data_ranks_write_their_half(cases: Any, precision: str, section: str) -> None:
    elements = elements_by_file(checkpoint_in(cases[0] / f"data-{precision}"), section)
    assert len(elements) == 2
    assert min(elements.values()) > 0.45 * sum(elements.values())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_is_whole_though_the_last_step_is_not_with_every_rank(cases: Any, precision: str) -> None:
    """With overlap_param_gather a rank's copy of the others' share is one step old; their own is not."""
    from sama_mega.parallel.checkpoint_io import read_plain

    root, ranks = cases
    assert all(rank[precision]["gather_was_late"] for rank in ranks)
    written = read_plain(checkpoint_in(root / f"data-{precision}"), "model.")
    assert_bitwise_equal(written, ranks[0][precision]["model"])
    assert {value.dtype for value in written.values()} >= {getattr(torch, precision)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_tensor_ranks_read_what_two_data_ranks_wrote(cases: Any, precision: str) -> None:
    from sama_mega.parallel.checkpoint_io import read_plain

    written, rewritten = (read_plain(checkpoint_in(cases[0] / f"{name}-{precision}")) for name in ("data", "tensor"))
    assert any(name.startswith("optimizer.master.") for name in written) == (precision == "bfloat16")
    assert_bitwise_equal(rewritten, written)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_rank_reads_what_two_data_ranks_wrote(cases: Any, precision: str, tmp_path: Path) -> None:
    from sama_mega.parallel.checkpoint_io import read_plain
    from sama_mega.train.checkpoint import load_checkpoint
    from sama_mega.train.state import build_train_state

    checkpoint = checkpoint_in(cases[0] / f"data-{precision}")
    recipe = recipe_of(tmp_path, precision)
    with alone(recipe) as context:
        state = build_train_state(recipe, context, initialize=False)
        load_checkpoint(checkpoint, state)
        loaded = {name: value.detach().clone() for name, value in state.stages[0].module.named_parameters()}
    assert_bitwise_equal(loaded, read_plain(checkpoint, "model."))


def test_a_failure_of_one_rank_comes_up_on_both_at_the_next_save(cases: Any) -> None:
    root, ranks = cases
    for rank in ranks:
        said = rank["failure"]
        assert said["first"] == said["after"] == ""
        assert "No space left on device" in said["next"] and "\n" not in said["next"]
    assert ranks[0]["failure"] == ranks[1]["failure"]
    assert [path.name for path in (root / "failure/checkpoints").iterdir()] == [f"step-{STEP:08d}"]


def test_a_rank_that_is_left_alone_does_not_wait_for_ever(cases: Any) -> None:
    assert max(rank["departure"] for rank in cases[1]) < 20
