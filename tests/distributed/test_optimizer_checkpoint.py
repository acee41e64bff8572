"""The distributed optimizer and sharded checkpoints against plain AdamW, across layouts.

Two worlds run one after the other, of one rank and of two; the second goes through several layouts. Each
layout trains the same toy model on the same global batch, resumes, and reads what an earlier world wrote.
Checkpoints are read back whole in this process, so they also serve to compare parameters and moments tensor
by tensor.
"""

from __future__ import annotations

import resource
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex

from tests.support.distributed import run_distributed

DIM, HIDDEN, TOKENS, SAMPLES = 6, 10, 8, 4
STEPS_BEFORE, STEPS_AFTER = 3, 2
LEARNING_RATE, CLIP = 3e-2, 0.05
TIMEOUT_SECONDS = 60.0

LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "tensor": {"tensor": 2},
    "data": {},
    "tensor-whole-sequence": {"tensor": 2, "sequence": False},
    "data-overlap": {"overlap_grad_reduce": True, "overlap_param_gather": True},
}
WORLDS = {1: ["one"], 2: ["tensor", "data", "data-overlap", "tensor-whole-sequence"]}
EARLIER = {"tensor": "one", "data": "tensor", "tensor-whole-sequence": "data-overlap"}
"""Whose checkpoint a layout loads beside its own."""

RELATIVE_LIMIT = {"model": 1e-5, "optimizer": 1e-4}
"""Largest relative error (norm of difference over norm) against plain AdamW, by checkpoint section."""


class Scale(nn.Module):
    """One factor a feature; a module of its own, so that it can come behind the linears."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class ToyReference(nn.Module):
    """The toy model in plain torch: scale, linear, GELU, linear, shift."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.scale = Scale()
        self.up = nn.Linear(DIM, HIDDEN)
        self.down = nn.Linear(HIDDEN, DIM)
        with torch.no_grad():
            self.scale.weight.copy_(1 + torch.randn(1, DIM, generator=generator) / 4)
            for parameter in (*self.up.parameters(), *self.down.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.gelu(self.up(self.scale(x))))


def batch(step: int) -> torch.Tensor:
    """Tokens, samples, width: the global batch of one step."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(TOKENS, SAMPLES, DIM, generator=generator)


def recipe(**parallel: Any) -> Any:
    """What the code under test reads of a recipe."""
    degrees = {"tensor": 1, "context": 1, "pipeline": 1, "data": "auto", "sequence": True}
    degrees |= {"overlap_grad_reduce": False, "overlap_param_gather": False}
    degrees |= {"ulysses": "auto", "interleave": 1, "stage_layers": None} | parallel
    optimizer = {"learning_rate": 1.0, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    return SimpleNamespace(
        parallel=SimpleNamespace(**degrees),
        model=SimpleNamespace(num_heads=2, ffn_dim=HIDDEN, num_layers=1),
        optimizer=SimpleNamespace(**optimizer),
        train=SimpleNamespace(seed=1),
    )


# --- run by the ranks -----------------------------------------------------------------------------


class Run:
    """One rank's toy model and optimizer."""

    def __init__(self, recipe: Any, context: Any, dtype: torch.dtype = torch.float32) -> None:
        from megatron.core.transformer.transformer_config import TransformerConfig

        from sama_mega.parallel.data_parallel import wrap_data_parallel
        from sama_mega.parallel.optimizer import build_optimizer

        self.context = context
        config = TransformerConfig(
            num_layers=1,
            hidden_size=DIM,
            num_attention_heads=2,
            tensor_model_parallel_size=context.layout.tensor,
            sequence_parallel=context.layout.sequence,
            params_dtype=dtype,
            perform_initialization=False,
            use_cpu_initialization=True,
            gradient_accumulation_fusion=False,
            calculate_per_token_loss=True,
        )
        self.model = wrap_data_parallel(recipe, toy_shard(config, context, dtype), config, context)
        self.optimizer = build_optimizer(recipe, [self.model], context)

    def backward(self, step: int) -> None:
        """Gradients of the mean over the global batch; the data ranks hold three samples and one."""
        from sama_mega.parallel.gradients import finalize_gradients

        self.optimizer.zero_grad()
        samples = range(SAMPLES)
        if self.context.layout.data == 2:
            samples = (range(3), range(3, 4))[self.context.data_rank]
        for index, sample in enumerate(samples):
            x = batch(step)[:, sample : sample + 1]
            if self.context.layout.sequence:
                x = x.chunk(2)[self.context.tensor_rank]
            last = index == len(samples) - 1
            if last:
                self._loss(x).backward()
            else:
                with self.model.no_sync():
                    self._loss(x).backward()
        finalize_gradients([self.model], self.optimizer.owned, self.context)

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).float().square().sum() / (TOKENS * DIM * SAMPLES)

    def train(self, first: int, count: int) -> list[float]:
        norms = []
        for step in range(first, first + count):
            self.backward(step)
            norms.append(self.optimizer.gradient_norm())
            self.optimizer.step(LEARNING_RATE, CLIP)
        return norms

    def state(self) -> dict:
        owned = self.optimizer.owned
        model = self.optimizer.sharded_masters("model.", [part.view_in(part.parameter) for part in owned])
        return model | self.optimizer.sharded_state()

    def save(self, folder: Path) -> None:
        from sama_mega.parallel.checkpoint_io import save_sharded

        save_sharded(self.state(), folder)

    def load(self, folder: Path) -> None:
        """Of a checkpoint after the first steps; the number of steps is not among the tensors."""
        from sama_mega.parallel.checkpoint_io import load_sharded

        load_sharded(self.state(), folder)
        self.optimizer.finish_loading(STEPS_BEFORE)


def toy_shard(config: Any, context: Any, dtype: torch.dtype) -> nn.Module:
    """The toy model on megatron's parallel linears, with the reference's weights; `scale` stays float32."""
    from megatron.core.tensor_parallel.layers import (
        ColumnParallelLinear,
        RowParallelLinear,
        set_tensor_model_parallel_attributes,
    )

    class ToyShard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            common = {"config": config, "init_method": lambda _: None, "tp_group": context.tensor_group}
            self.up = ColumnParallelLinear(DIM, HIDDEN, **common)
            self.down = RowParallelLinear(HIDDEN, DIM, bias=True, input_is_parallel=True, skip_bias_add=False, **common)
            # After the linears: a float32 parameter behind bfloat16 ones is what megatron's index map confuses.
            self.scale = Scale()
            self.scale.weight.sequence_parallel = config.sequence_parallel
            for parameter, axis in ((self.up.weight, 0), (self.up.bias, 0), (self.down.weight, 1)):
                if not getattr(parameter, "tensor_model_parallel", False):
                    set_tensor_model_parallel_attributes(parameter, True, axis, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.up(self.scale(x).to(dtype))[0]
            return self.down(nn.functional.gelu(hidden))[0]

    module = ToyShard()
    whole = dict(ToyReference().named_parameters())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = whole[name]
            if getattr(parameter, "tensor_model_parallel", False):
                value = value.chunk(context.layout.tensor, parameter.partition_dim)[context.tensor_rank]
            parameter.copy_(value)
    return module.to(context.device)


def run_layouts(names: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Everything a world of ranks does, one layout after the other; returns what the tests assert on."""
    from sama_mega.parallel.layout import resolve_layout
    from sama_mega.parallel.runtime import form_groups, start_parallel, stop_parallel

    context = start_parallel(recipe(**LAYOUTS[names[0]]), timeout_seconds=30)
    out = {}
    for name in names:
        layout = resolve_layout(recipe(**LAYOUTS[name]), context.world_size)
        context = form_groups(layout, context.device, seed=1)
        out[name] = run_layout(name, recipe(**LAYOUTS[name]), context, folder)
    stop_parallel()
    return out


def run_layout(name: str, recipe: Any, context: Any, folder: Path) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        out[precision] = train_and_resume(recipe, context, dtype, folder / f"{name}-{precision}")
        earlier = EARLIER.get(name)
        if earlier is not None:
            run = Run(recipe, context, dtype)
            run.load(folder / f"{earlier}-{precision}")
            run.save(folder / f"{name}-from-{earlier}-{precision}")
            run.train(STEPS_BEFORE, STEPS_AFTER)
            run.save(folder / f"{name}-continued-{earlier}-{precision}")
    out["skip"] = skipped_step(recipe, context)
    out["weights"] = other_weights(recipe, context, folder / f"{name}-ema")
    out["errors"] = failures(recipe, context, folder, f"{name}-float32")
    return out


def train_and_resume(recipe: Any, context: Any, dtype: torch.dtype, folder: Path) -> dict[str, Any]:
    """Trains through a save, then again from that save; also says whether both ends are bitwise equal."""
    run = Run(recipe, context, dtype)
    norms = run.train(0, STEPS_BEFORE)
    run.save(folder)
    norms += run.train(STEPS_BEFORE, STEPS_AFTER)
    resumed = Run(recipe, context, dtype)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.fill_(float("nan"))
    resumed.load(folder)
    norms_resumed = resumed.train(STEPS_BEFORE, STEPS_AFTER)
    run.save(folder.with_name(f"{folder.name}-end"))
    straight, again = run.state(), resumed.state()
    return {
        "norms": norms,
        "resumed_norms_equal": norms_resumed == norms[STEPS_BEFORE:],
        "differing": [key for key in straight if not torch.equal(straight[key].data, again[key].data)],
        "num_compared": len(straight),
        "own_step_counts": own_step_counts(resumed),
        "steps_taken": [run.optimizer.steps_taken, resumed.optimizer.steps_taken],
    }


def own_step_counts(run: Run) -> bool:
    steps = [run.optimizer._adam.state[owned.master]["step"] for owned in run.optimizer.owned]
    return len({step.data_ptr() for step in steps}) == len(steps)


def skipped_step(recipe: Any, context: Any) -> dict[str, bool]:
    """A step refused after its norm was seen must leave no trace."""
    straight, skipping = Run(recipe, context), Run(recipe, context)
    straight.train(0, 2)
    skipping.train(0, 1)
    before = {key: piece.data.clone() for key, piece in skipping.state().items()}
    skipping.backward(77)
    norm = skipping.optimizer.gradient_norm()
    unchanged = all(torch.equal(before[key], piece.data) for key, piece in skipping.state().items())
    count = skipping.optimizer.steps_taken
    skipping.train(1, 1)
    expected = straight.state()
    equal = all(torch.equal(expected[key].data, piece.data) for key, piece in skipping.state().items())
    skipping.backward(1)
    skipping.optimizer.owned[0].parameter.main_grad.fill_(float("inf"))
    return {
        "unchanged": unchanged and norm > 0 and count == 1,
        "equal_later": equal,
        "sees_infinity": not torch.isfinite(torch.tensor(skipping.optimizer.gradient_norm())),
    }


def other_weights(recipe: Any, context: Any, folder: Path) -> dict[str, Any]:
    """A moving average held like the masters: swapped in and out, saved, and loaded as a run's weights."""
    from sama_mega.parallel.checkpoint_io import load_sharded, save_sharded
    from sama_mega.parallel.data_parallel import synchronize_parameters

    out: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        run = Run(recipe, context, dtype)
        run.train(0, 1)
        # With overlap the last update is still on its way to the other data ranks.
        synchronize_parameters(run.model)
        average = [owned.master.detach() * 0.5 for owned in run.optimizer.owned]
        parameters = [parameter.detach().clone() for parameter in run.model.parameters()]
        with run.optimizer.temporary_weights(average):
            halved = all(
                torch.equal(now, before / 2) for now, before in zip(run.model.parameters(), parameters, strict=True)
            )
        restored = all(map(torch.equal, run.model.parameters(), parameters))
        target = folder.with_name(f"{folder.name}-{dtype}".replace("torch.", ""))
        save_sharded(run.optimizer.sharded_masters("ema.", average), target)
        fresh = Run(recipe, context, dtype)
        load_sharded(fresh.optimizer.sharded_masters("ema."), target)
        fresh.optimizer.masters_to_model()
        loaded = all(
            torch.equal(now, before / 2) for now, before in zip(fresh.model.parameters(), parameters, strict=True)
        )
        exact = all(map(torch.equal, (owned.master for owned in fresh.optimizer.owned), average))
        out[str(dtype)] = {"halved": halved, "restored": restored, "loaded": loaded, "exact_masters": exact}
    return out


def failures(recipe: Any, context: Any, folder: Path, good: str) -> dict[str, str]:
    """Messages of everything that must fail alike on every rank; a hang would trip the test's time-out."""
    from sama_mega.parallel.checkpoint_io import load_sharded, save_sharded
    from sama_mega.parallel.sharded_state import shard_parameters

    run = Run(recipe, context)
    state = shard_parameters(run.model, context, "model.") | run.optimizer.sharded_state()
    key = "model.scale.weight"
    wrong_shape = dict(state)
    # Whole on every rank and taller than the stored one.
    wrong_shape[key] = _taller(state[key])
    renamed = {name: piece for name, piece in state.items() if name != key} | {"model.other": _renamed(state[key])}
    without = {name: piece for name, piece in state.items() if name != key}
    damaged = folder / f"damaged-{good}"
    if context.rank == 0:
        _damage(folder / good, damaged)
    return {
        "renamed": _message(lambda: load_sharded(renamed, folder / good)),
        "unused": _message(lambda: load_sharded(without, folder / good)),
        "shape": _message(lambda: load_sharded(wrong_shape, folder / good)),
        "nothing": _message(lambda: load_sharded(state, folder / "nowhere")),
        "damaged": _message(lambda: _after_barrier(lambda: load_sharded(state, damaged))),
        "weights_only": _message(lambda: load_sharded(_section(run.state(), "model."), folder / good)),
        "contradiction": _message(lambda: save_sharded(_two_shapes(), folder / f"contradiction-{good}")),
        "unwritable": _message(lambda: save_sharded(state, Path("/proc/none"))),
        "full_disk": _message(lambda: _with_tiny_files(context, lambda: run.save(folder / f"full-{good}"))),
    }


def _message(action: Any) -> str:
    from sama_mega.config.errors import CheckpointError

    try:
        action()
    except CheckpointError as error:
        return str(error)
    return ""


def _section(state: dict, prefix: str) -> dict:
    return {key: piece for key, piece in state.items() if key.startswith(prefix)}


def _taller(piece: Any) -> Any:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    return ShardedTensor.from_rank_offsets(piece.key, torch.zeros(3, DIM), replica_id=piece.replica_id)


def _renamed(piece: Any) -> Any:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    return ShardedTensor.from_rank_offsets("model.other", piece.data, replica_id=piece.replica_id)


def _two_shapes() -> dict:
    """Two pieces of one tensor that do not agree how large it is."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    return {str(size): ShardedTensor.from_rank_offsets("model.x", torch.zeros(size)) for size in (2, 3)}


def _damage(good: Path, target: Path) -> None:
    import shutil

    shutil.copytree(good, target)
    for file in target.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])


def _after_barrier(action: Any) -> Any:
    torch.distributed.barrier()
    return action()


def _with_tiny_files(context: Any, action: Any) -> None:
    """The last rank alone cannot write more than a few hundred bytes a file, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if context.rank == context.world_size - 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- run by pytest --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """Runs all layouts: the folder of their checkpoints and, by layout, what each rank reported."""
    folder = tmp_path_factory.mktemp("checkpoints")
    results: dict[str, list[dict[str, Any]]] = {}
    for world_size, names in WORLDS.items():
        ranks = run_distributed(run_layouts, world_size, TIMEOUT_SECONDS, (names, folder))
        results |= {name: [rank[name] for rank in ranks] for name in names}
    return folder, results


@pytest.fixture(scope="module")
def reference() -> dict[int, dict[str, torch.Tensor]]:
    """Plain AdamW in one process: parameters and moments after every step, under the checkpoint's keys."""
    model = ToyReference()
    adam = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    states = {}
    for step in range(STEPS_BEFORE + STEPS_AFTER):
        adam.zero_grad()
        (model(batch(step)).square().mean()).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()
        states[step + 1] = {"norm": norm.clone()}
        for name, parameter in model.named_parameters():
            states[step + 1][f"model.{name}"] = parameter.detach().clone()
            for key in ("exp_avg", "exp_avg_sq"):
                states[step + 1][f"optimizer.{key}.{name}"] = adam.state[parameter][key].clone()
    return states


def assert_close_to_reference(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    expected = {key: value for key, value in expected.items() if key != "norm"}
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        error = (tensors[key] - value).norm() / value.norm()
        assert error <= RELATIVE_LIMIT[key.split(".")[0]], (key, error)


def written_model_pieces(checkpoint: Path) -> list[tuple[str, int]]:
    """File and number of elements of every piece of the model."""
    metadata = FileSystemReader(checkpoint).read_metadata()
    return [
        (metadata.storage_data[MetadataIndex(key, chunk.offsets)].relative_path, chunk.sizes.numel())
        for key, entry in metadata.state_dict_metadata.items()
        if key.startswith("model.")
        for chunk in entry.chunks
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_takes_the_steps_of_plain_adamw(layouts: Any, reference: Any, name: str) -> None:
    from sama_mega.parallel.checkpoint_io import read_plain

    folder, results = layouts
    for suffix, steps in (("", STEPS_BEFORE), ("-end", STEPS_BEFORE + STEPS_AFTER)):
        assert_close_to_reference(read_plain(folder / f"{name}-float32{suffix}"), reference[steps])
    for rank in results[name]:
        assert rank["float32"]["steps_taken"] == [STEPS_BEFORE + STEPS_AFTER] * 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradient_norm_is_the_whole_models(layouts: Any, reference: Any, name: str) -> None:
    _, results = layouts
    expected = [float(reference[step + 1]["norm"]) for step in range(STEPS_BEFORE + STEPS_AFTER)]
    # Clipping must have happened, or the clipped branch went untested.
    assert max(expected) > CLIP
    for rank in results[name]:
        assert rank["float32"]["norms"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_resume_is_bitwise(layouts: Any, name: str, precision: str) -> None:
    _, results = layouts
    for rank in results[name]:
        outcome = rank[precision]
        assert outcome["num_compared"] >= 5
        assert outcome["differing"] == []
        assert outcome["resumed_norms_equal"]
        assert outcome["own_step_counts"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "earlier"), EARLIER.items())
def test_checkpoint_loads_in_another_layout(layouts: Any, name: str, earlier: str, precision: str) -> None:
    from sama_mega.parallel.checkpoint_io import read_plain

    folder, _ = layouts
    written = read_plain(folder / f"{earlier}-{precision}")
    rewritten = read_plain(folder / f"{name}-from-{earlier}-{precision}")
    assert written.keys() == rewritten.keys()
    assert any(key.startswith("optimizer.master.") for key in written) == (precision == "bfloat16")
    for key, value in written.items():
        assert torch.equal(value, rewritten[key]), key


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["data", "data-overlap"])
def test_every_data_rank_writes_its_share_of_the_model(layouts: Any, name: str, precision: str) -> None:
    folder, _ = layouts
    elements = Counter[str]()
    for place, length in written_model_pieces(folder / f"{name}-{precision}"):
        elements[place] += length
    assert len(elements) == 2
    assert min(elements.values()) > sum(elements.values()) / 3


@pytest.mark.parametrize(("name", "earlier"), EARLIER.items())
def test_training_continues_in_another_layout(layouts: Any, reference: Any, name: str, earlier: str) -> None:
    from sama_mega.parallel.checkpoint_io import read_plain

    folder, _ = layouts
    continued = read_plain(folder / f"{name}-continued-{earlier}-float32")
    assert_close_to_reference(continued, reference[STEPS_BEFORE + STEPS_AFTER])


@pytest.mark.parametrize("name", LAYOUTS)
def test_refused_step_leaves_no_trace(layouts: Any, name: str) -> None:
    _, results = layouts
    for rank in results[name]:
        assert rank["skip"] == {"unchanged": True, "equal_later": True, "sees_infinity": True}


@pytest.mark.parametrize("name", LAYOUTS)
def test_other_weights_come_and_go(layouts: Any, name: str) -> None:
    _, results = layouts
    for rank in results[name]:
        for outcome in rank["weights"].values():
            assert outcome == {"halved": True, "restored": True, "loaded": True, "exact_masters": True}


@pytest.mark.parametrize("name", LAYOUTS)
def test_failures_reach_every_rank_in_one_line(layouts: Any, name: str) -> None:
    _, results = layouts
    expected = {
        "renamed": "lacks model.other",
        "unused": "has model.scale.weight",
        "shape": "model.scale.weight is [1, 6]",
        "nothing": "not a complete checkpoint",
        "damaged": "cannot read the checkpoint",
        "contradiction": "cannot write the checkpoint",
        "unwritable": "cannot write the checkpoint",
        "full_disk": "cannot write the checkpoint",
    }
    for rank in results[name]:
        assert rank["errors"].pop("weights_only") == ""
        assert rank["errors"].keys() == expected.keys()
        for case, part in expected.items():
            assert part in rank["errors"][case], (case, rank["errors"][case])
            assert "\n" not in rank["errors"][case]
    folder, _ = layouts
    assert not list(folder.glob("full-*/metadata.json")), "an incomplete checkpoint must not look complete"
