"""Golden folders: the authors' weights, inputs, outputs, gradients and samples, held against our model.

The model, its losses, its gradients and its sampler are the ones that `train` and `edit` run.
"""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sama_kernels.flow_matching import add_noise
from sama_mega.config import build_recipe
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.diffusion.losses import sama_loss
from sama_mega.diffusion.sampler import Condition, sample_edit
from sama_mega.diffusion.schedule import FlowMatchingSchedule
from sama_mega.model import ModelInput, ModelOutput
from sama_mega.model.name_map import from_released, to_released
from sama_mega.model.shards import load_whole
from sama_mega.parallel.collectives import all_reduce_in_place, broadcast_object, gather_objects
from sama_mega.parallel.data_parallel import parameter_names
from sama_mega.parallel.gradients import finalize_gradients
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.schedule import run_forward_backward
from sama_mega.train.forward import NoisedBatch, measure_errors
from sama_mega.train.state import TrainState, build_train_state
from sama_mega.verify.report import Check, compare
from sama_mega.verify.whole_tensors import compare_copies, owned_gradients, put_together

OUTPUT_LIMIT = 1e-5
GRADIENT_LIMIT = 1e-4
SAMPLING_LIMIT = 1e-4
BELL_WEIGHT_LIMIT = 1e-6
EXACT = 0.0
CONFIG_NAMES = (
    *("dim", "in_dim", "ffn_dim", "out_dim", "text_dim", "freq_dim", "eps", "patch_size", "num_heads", "num_layers"),
    *("siglip_dim", "semantic_hidden_dim", "semantic_tokens", "text_len", "semantic_loss_weight"),
)
INPUT_NAMES = (
    *("latents", "noise", "noisy_latents", "velocity_target", "velocity", "text_embeddings", "timesteps", "sigmas"),
    *("loss_weights", "flow_matching_loss", "semantic_loss", "total_loss"),
)
SEMANTIC_INPUT_NAMES = (
    *("semantic_features", "semantic_noise", "noisy_semantic_features", "semantic_velocity_target"),
    "semantic_velocity",
)
SAMPLING_NAMES = (
    *("initial_latents", "initial_semantic", "final_latents", "final_semantic", "source_latents", "sigmas"),
    *("timesteps", "text_embeddings", "negative_text_embeddings"),
)


@dataclass(frozen=True)
class GoldenFolder:
    """One folder's content; tensors by name, float32 on the CPU.

    Attributes:
        config: The authors' model configuration; empty for a schedule folder.
        weights: Released name -> tensor.
        inputs: `io.safetensors`.
        gradients: `grads.safetensors`, or empty.
        sampling: `sampling.safetensors`, or empty.
        sampling_config: `sampling.json`, or empty.
        schedule: `flow_matching.safetensors`, or empty.
    """

    config: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    sampling: dict[str, Tensor] = field(default_factory=dict)
    sampling_config: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Tensor] = field(default_factory=dict)


def read_golden(folder: Path) -> GoldenFolder:
    """Reads a golden folder.

    Raises:
        ConfigError: The folder or one of its files is missing or unreadable.
    """
    if (folder / "flow_matching.safetensors").is_file():
        return GoldenFolder(schedule=_tensors(folder / "flow_matching.safetensors"))
    for name in ("config.json", "weights.safetensors", "io.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(f"golden folder {folder}: {name} is missing: give a folder like tests/golden/edit_tiny")
    return _require_complete(_read_files(folder), folder)


def _read_files(folder: Path) -> GoldenFolder:
    optional = {name: folder / f"{name}.safetensors" for name in ("grads", "sampling")}
    found = {name: _tensors(path) if path.is_file() else {} for name, path in optional.items()}
    return GoldenFolder(
        config=_json(folder / "config.json"),
        weights=_tensors(folder / "weights.safetensors"),
        inputs=_tensors(folder / "io.safetensors"),
        gradients=found["grads"],
        sampling=found["sampling"],
        sampling_config=_json(folder / "sampling.json") if found["sampling"] else {},
    )


def _require_complete(golden: GoldenFolder, folder: Path) -> GoldenFolder:
    """A folder that lacks something would pass for what it lacks."""
    wanted = set(INPUT_NAMES)
    if "source_latents" in golden.inputs:
        wanted |= set(SEMANTIC_INPUT_NAMES)
    gradients = golden.weights.keys() - set(golden.config.get("no_grad", ())) if golden.gradients else set()
    parts: tuple[tuple[str, Set[str], Set[str]], ...] = (
        ("config.json", set(CONFIG_NAMES), golden.config.keys()),
        ("io.safetensors", wanted, golden.inputs.keys()),
        ("grads.safetensors", gradients, golden.gradients.keys()),
        ("sampling.safetensors", set(SAMPLING_NAMES) if golden.sampling else set(), golden.sampling.keys()),
        ("sampling.json", {"steps", "guidance", "shift"} if golden.sampling else set(), golden.sampling_config.keys()),
    )
    for file, needed, present in parts:
        missing = sorted(needed - present)
        if missing:
            raise ConfigError(f"{folder / file} lacks {', '.join(missing[:3])}: the folder is not complete")
    unknown = sorted(golden.gradients.keys() - golden.weights.keys())
    if unknown:
        raise ConfigError(f"{folder / 'grads.safetensors'}: {unknown[0]} is no parameter of weights.safetensors")
    return golden


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: not a readable safetensors file ({error})") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable JSON file ({error})") from None


def golden_recipe(golden: GoldenFolder, parallel: dict[str, Any], kernels: dict[str, str]) -> Recipe:
    """The recipe of the model that made a golden folder, float32.

    Args:
        golden: The folder.
        parallel: The recipe's `parallel` section.
        kernels: The recipe's `kernels` section.
    """
    config = golden.config
    model = {
        "dim": config["dim"],
        "num_layers": config["num_layers"],
        "num_heads": config["num_heads"],
        "ffn_dim": config["ffn_dim"],
        "in_channels": config["in_dim"],
        "out_channels": config["out_dim"],
        "patch_size": config["patch_size"],
        "text_dim": config["text_dim"],
        "text_length": config["text_len"],
        "time_features": config["freq_dim"],
        "norm_eps": config["eps"],
        "semantic_dim": config["siglip_dim"],
        "semantic_hidden_dim": config["semantic_hidden_dim"],
    }
    train = {"stage": 1, "steps": 1, "run_folder": "runs/verify", "precision": "float32"}
    anchor = {"weight": config["semantic_loss_weight"]}
    sections = {"model": model, "parallel": parallel, "kernels": kernels, "train": train, "anchor": anchor}
    return build_recipe(sections, source="golden config.json")


def check_schedule(golden: GoldenFolder) -> list[Check]:
    """Sigmas and timesteps exactly, bell weights to 1e-6."""
    ours = FlowMatchingSchedule()
    checks = [
        compare("train_sigmas", ours.train_sigmas, golden.schedule["train_sigmas"], EXACT),
        compare("train_timesteps", ours.train_timesteps, golden.schedule["train_timesteps"], EXACT),
        compare("train_weights", ours.train_weights, golden.schedule["train_weights"], BELL_WEIGHT_LIMIT),
    ]
    for steps in (10, 50):
        sigmas, timesteps = ours.sampling_schedule(steps)
        checks.append(compare(f"sample_sigmas_{steps}", sigmas[:-1], golden.schedule[f"sample_sigmas_{steps}"], EXACT))
        expected = golden.schedule[f"sample_timesteps_{steps}"]
        checks.append(compare(f"sample_timesteps_{steps}", timesteps, expected, EXACT))
    return checks


def check_model(golden: GoldenFolder, recipe: Recipe, context: ParallelContext) -> list[Check]:
    """Noising, outputs, losses, every gradient and guided sampling, as far as the folder has them.

    Data ranks take turns with the folder's samples.
    """
    state = build_train_state(recipe, context, initialize=False)
    names = dict.fromkeys(name for stage in state.stages for name in parameter_names(stage))
    every_name = [name for names in gather_objects(list(names), context.world_group) for name in names]
    whole = from_released(golden.weights, dict.fromkeys(every_name), recipe.model.num_heads)
    for stage in state.stages:
        load_whole(stage.module, whole, context)
    mine = slice(context.data_rank, None, context.layout.data)
    checks, noised = _check_noising(golden, recipe.kernels.ops, context)
    noised = _samples(noised, mine)
    checks += _check_outputs(golden, state, noised, context)
    checks += _check_losses_and_gradients(golden, recipe, context, state, noised)
    if golden.sampling:
        checks += _check_sampling(golden, state, context)
    # The first rank alone has whole gradients; its verdict is everybody's.
    found: list[Check] = broadcast_object(checks, context.world_group)
    return found


def _samples(noised: NoisedBatch, chosen: slice) -> NoisedBatch:
    """Some samples of a batch."""

    def cut(values: Any) -> dict[str, Any]:
        by_name = {field.name: getattr(values, field.name) for field in fields(values)}
        return {name: None if value is None else value[chosen] for name, value in by_name.items()}

    given = ModelInput(**cut(noised.given))
    return NoisedBatch(given, noised.velocity_target[chosen], noised.timestep_weights[chosen])


def _check_noising(golden: GoldenFolder, backend: str, context: ParallelContext) -> tuple[list[Check], NoisedBatch]:
    io = {name: tensor.to(context.device) for name, tensor in golden.inputs.items()}
    sigmas = io["sigmas"]
    noisy, target = add_noise(io["latents"], io["noise"], sigmas, backend=backend)
    checks = [
        compare("noisy_latents", noisy, io["noisy_latents"], OUTPUT_LIMIT),
        compare("velocity_target", target, io["velocity_target"], OUTPUT_LIMIT),
    ]
    noisy_semantic = semantic_target = source = None
    if "source_latents" in io:
        source = io["source_latents"]
        noisy_semantic, semantic_target = add_noise(
            io["semantic_features"], io["semantic_noise"], sigmas, backend=backend
        )
        expected = io["noisy_semantic_features"]
        checks.append(compare("noisy_semantic_features", noisy_semantic, expected, OUTPUT_LIMIT))
        expected = io["semantic_velocity_target"]
        checks.append(compare("semantic_velocity_target", semantic_target, expected, OUTPUT_LIMIT))
    given = ModelInput(noisy, io["timesteps"], io["text_embeddings"], source, noisy_semantic, semantic_target)
    return checks, NoisedBatch(given, velocity_target=target, timestep_weights=io["loss_weights"])


def _check_outputs(
    golden: GoldenFolder, state: TrainState, noised: NoisedBatch, context: ParallelContext
) -> list[Check]:
    output = state.model(replace(noised.given, semantic_target=None)) if len(noised.timestep_weights) else None
    checks = []
    for name in ("velocity", "semantic_velocity"):
        mine = None if output is None else getattr(output, name)
        by_rank = gather_objects(None if mine is None else mine.cpu(), context.data_group)
        if by_rank[0] is not None:
            expected = golden.inputs[name]
            ours = torch.full_like(expected, float("nan"))
            for rank, theirs in enumerate(by_rank):
                if theirs is not None:
                    ours[rank :: context.layout.data] = theirs
            checks.append(compare(name, ours, expected, OUTPUT_LIMIT))
    return checks


def _check_losses_and_gradients(
    golden: GoldenFolder, recipe: Recipe, context: ParallelContext, state: TrainState, noised: NoisedBatch
) -> list[Check]:
    losses = torch.zeros(2, device=context.device)
    num_samples = golden.inputs["loss_weights"].numel()

    def forward_step(stage: nn.Module, batch: NoisedBatch) -> Tensor:
        output = stage(batch.given)
        if not isinstance(output, ModelOutput):
            return output
        errors = measure_errors(output, batch, recipe.kernels.ops)
        weights = torch.ones_like(errors.flow_matching)
        share = sama_loss(errors.flow_matching, errors.semantic_share, weights, num_samples, recipe.anchor.weight)
        if context.reports_samples:
            losses[0] += share.flow_matching.detach()
        if context.reports_token_shares:
            losses[1] += share.semantic.detach()
        return share.total

    def hidden_shape(batch: NoisedBatch) -> tuple[int, int, int]:
        return state.stages[0].module.hidden_shape(batch.given)

    state.optimizer.zero_grad()
    # One sample a micro-batch, so that a pipeline has several.
    items = [slice(one, one + 1) for one in range(len(noised.timestep_weights))]
    run_forward_backward(state.stages, items, lambda item: _samples(noised, item), forward_step, hidden_shape, context)
    finalize_gradients(state.stages, state.optimizer.owned, context)
    all_reduce_in_place(losses, context.world_group)
    flow_matching, semantic = losses
    expected = {name: golden.inputs[name][0] for name in ("flow_matching_loss", "semantic_loss", "total_loss")}
    total = flow_matching + recipe.anchor.weight * semantic
    checks = [compare("flow_matching_loss", flow_matching, expected["flow_matching_loss"], OUTPUT_LIMIT)]
    if noised.given.noisy_semantic is not None:
        checks.append(compare("semantic_loss", semantic, expected["semantic_loss"], OUTPUT_LIMIT))
    checks.append(compare("total_loss", total, expected["total_loss"], OUTPUT_LIMIT))
    return checks + (_check_gradients(golden, recipe, state, context) if golden.gradients else [])


def _check_gradients(golden: GoldenFolder, recipe: Recipe, state: TrainState, context: ParallelContext) -> list[Check]:
    gradients = put_together(owned_gradients(state), context)
    if not context.is_first_rank:
        return []
    found: dict[str, list[Tensor]] = {}
    for name, copies in gradients.items():
        for copy in copies:
            for released, gradient in to_released({name: copy}, recipe.model.num_heads).items():
                found.setdefault(released, []).append(gradient)
    return [
        compare_copies(f"grad {name}", found[name], gradient, GRADIENT_LIMIT)
        for name, gradient in golden.gradients.items()
    ]


def _check_sampling(golden: GoldenFolder, state: TrainState, context: ParallelContext) -> list[Check]:
    model = state.model
    tensors = {name: tensor.to(context.device) for name, tensor in golden.sampling.items()}
    config = golden.sampling_config
    sigmas, timesteps = FlowMatchingSchedule(shift=config["shift"]).sampling_schedule(config["steps"])

    def predict(
        latents: Tensor, semantic: Tensor | None, timestep: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor | None]:
        text = tensors["text_embeddings" if condition is Condition.BOTH else "negative_text_embeddings"]
        output = model(ModelInput(latents, timestep, text, tensors["source_latents"], semantic))
        return output.velocity, output.semantic_velocity

    latents, semantic = sample_edit(
        predict,
        tensors["initial_latents"],
        tensors["initial_semantic"],
        sigmas,
        timesteps,
        config["guidance"],
    )
    assert semantic is not None
    return [
        compare("sampling sigmas", sigmas[:-1], golden.sampling["sigmas"], EXACT),
        compare("sampling timesteps", timesteps, golden.sampling["timesteps"], EXACT),
        compare("final_latents", latents, golden.sampling["final_latents"], SAMPLING_LIMIT),
        compare("final_semantic", semantic, golden.sampling["final_semantic"], SAMPLING_LIMIT),
    ]
