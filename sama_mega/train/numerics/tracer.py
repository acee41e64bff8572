"""Looks at every tensor that passes between modules in one step, until one is not finite."""

from __future__ import annotations

import logging
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from inspect import signature
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sama_mega.model import ModelInput, ModelOutput, SamaDiT
from sama_mega.train.numerics.finding import Finding, Phase, describe_tensor
from sama_mega.train.numerics.measures import largest, max_abs, rows_not_finite

WHOLE = "model"
"""Stands for the model itself where a module is named."""
_EMBEDDINGS = {"patch_embedding": 1, "segment_embedding": 1, "siglip_feat_mlp": 1, "text_embedding": 2}
_EMBEDDINGS |= {"time_embedding": 3}
_FIRST_BLOCK = 4
_log = logging.getLogger(__name__)


def part_of_model(module: str, num_layers: int) -> int:
    """Which part of the model a module or parameter is of, in the order in which the parts run.

    Parts are counted over the whole model, so that ranks of different stages, and ranks that embed other numbers of
    pieces of a sequence, can be compared.
    """
    head, _, rest = module.partition(".")
    if head == "blocks":
        return _FIRST_BLOCK + int(rest.partition(".")[0])
    if head in _EMBEDDINGS:
        return _EMBEDDINGS[head]
    return _FIRST_BLOCK + num_layers + {"head": 0, "semantic_head": 1, WHOLE: 2}[head]


@dataclass
class _Pass:
    """One micro-batch's way through one stage, forward and back."""

    micro_batch: int
    sample_ids: Sequence[str]
    found: bool = False
    visits: Counter[tuple[Phase, int]] = field(default_factory=Counter)
    before: dict[Phase, tuple[str, float]] = field(default_factory=dict)


@dataclass
class _Seen:
    """A tensor that was looked at on its way forward, and what to call its gradient."""

    tensor: weakref.ref[Tensor]
    name: tuple[str, str]


class StepTracer:
    """Hooks of one step; while entered, forward and backward passes are looked at.

    Of each micro-batch and stage the first tensor is kept that is not finite. Nothing is changed, and nothing raised: a
    rank that stopped here would leave the others waiting. What a pass computes again for its gradient is not looked at
    twice.

    Args:
        stages: This rank's stages, without wrappers.
        sample_ids: Of each of the step's micro-batches on this rank, in order.
        num_layers: Blocks of the whole model.

    Attributes:
        findings: Without ranks; see `Finding`.
    """

    def __init__(self, stages: Sequence[SamaDiT], sample_ids: Sequence[Sequence[str]], num_layers: int) -> None:
        self.findings: list[Finding] = []
        self._stages = [_StageTracer(stage, sample_ids, num_layers, self.findings) for stage in stages]

    def __enter__(self) -> StepTracer:
        """Puts the hooks in place."""
        for stage in self._stages:
            stage.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes them away."""
        for stage in self._stages:
            stage.detach()


class _StageTracer:
    def __init__(
        self,
        stage: SamaDiT,
        sample_ids: Sequence[Sequence[str]],
        num_layers: int,
        findings: list[Finding],
    ) -> None:
        self._stage = stage
        self._waiting = iter([_Pass(number, ids) for number, ids in enumerate(sample_ids)])
        self._num_layers = num_layers
        self._findings = findings
        self._modules = {(name or WHOLE): module for name, module in stage.named_modules()}
        self._handles: list[Any] = []
        self._forward: _Pass | None = None
        self._backward: _Pass | None = None
        self._seen: dict[int, _Seen] = {}

    def attach(self) -> None:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._before(name)))
            self._handles.append(module.register_forward_hook(self._after(name)))
        for name, parameter in self._stage.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self._parameter_gradient(name)))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    # --- forward ----------------------------------------------------------------------------------

    def _before(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if name == WHOLE:
                # A stage takes the micro-batches in their order, whatever the schedule.
                self._forward = next(self._waiting)
            if self._forward is None:
                return  # computed again, for the gradient
            for label, tensor in _given(module, inputs):
                self._visit_forward(self._forward, name, _role("input", label), tensor, (), True)

        return hook

    def _after(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if self._forward is None:
                return
            given = [tensor for _, tensor in _given(module, inputs)]
            for label, tensor in _tensors(output):
                self._visit_forward(self._forward, name, _role("output", label), tensor, given, False)
            if name == WHOLE:
                self._forward = None
                self._seen.clear()

        return hook

    def _visit_forward(
        self, passing: _Pass, name: str, role: str, tensor: Tensor, given: Sequence[Tensor], is_input: bool
    ) -> None:
        if isinstance(tensor, nn.Parameter):
            return  # modules that only hold a weight; weights are looked at before all else
        seen = self._seen.get(id(tensor))
        if seen is not None and seen.tensor() is tensor:
            # Its gradient is what the last module to read it gives back.
            seen.name = (name, f"gradient of the {role}") if is_input else seen.name
            return
        seen = _Seen(weakref.ref(tensor), (name, f"gradient of the {role}"))
        self._seen[id(tensor)] = seen
        self._look(passing, "forward", name, role, tensor, given)
        if tensor.requires_grad:  # also of a pass that went bad: its parameters' gradients must not count as another's
            tensor.register_hook(self._gradient_of(passing, seen))

    # --- backward ---------------------------------------------------------------------------------

    def _gradient_of(self, passing: _Pass, seen: _Seen) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            self._backward = passing
            module, role = seen.name
            self._look(passing, "backward", module, role, gradient, ())

        return hook

    def _parameter_gradient(self, name: str) -> Callable[[Tensor], None]:
        module, _, parameter = name.rpartition(".")

        def hook(gradient: Tensor) -> None:
            if self._backward is not None:
                role = f"gradient of the {parameter}"
                self._look(self._backward, "backward", module or WHOLE, role, gradient, (), per_sample=False)

        return hook

    # --- both -------------------------------------------------------------------------------------

    def _look(
        self,
        passing: _Pass,
        phase: Phase,
        module: str,
        role: str,
        tensor: Tensor,
        given: Sequence[Tensor],
        per_sample: bool = True,
    ) -> None:
        """Measures a tensor, unless the pass has gone bad before; anything but raising."""
        if passing.found or not tensor.is_floating_point():
            return
        part = 0 if module == WHOLE and role.startswith("input") else part_of_model(module, self._num_layers)
        place = passing.visits[phase, part]
        passing.visits[phase, part] += 1
        backward = phase == "backward"
        order = (passing.micro_batch, int(backward), -part if backward else part, place)
        try:
            with torch.no_grad():
                reached = max_abs(tensor).item()
                if math.isfinite(reached):
                    passing.before[phase] = (f"{role} of {module}", reached)
                    return
                samples = _bad_samples(passing, tensor, module, role) if per_sample else tuple(passing.sample_ids)
                found = describe_tensor(order, phase, module, role, tensor)
                weights = None if module == WHOLE else largest(list(self._modules[module].parameters()))
                found = replace(found, micro_batch=passing.micro_batch, sample_ids=samples, weights_max_abs=weights)
                self._findings.append(replace(found, input_max_abs=largest(given), before=passing.before.get(phase)))
        except Exception as error:  # memory may be short; a rank that stopped here would leave the others waiting
            _log.warning("the %s of %s could not be looked at: %s", role, module, error)
        passing.found = True


def _bad_samples(passing: _Pass, tensor: Tensor, module: str, role: str) -> tuple[str, ...]:
    """The samples whose part of a tensor is not finite; all, where its axes do not tell."""
    count, every = len(passing.sample_ids), tuple(passing.sample_ids)
    # What the model is given and gives has the samples first, tokens have them second, what is made of times first.
    named = module == WHOLE and not role.endswith(("input", "output"))
    axes = [axis for axis in range(1 if named else min(2, tensor.dim())) if tensor.shape[axis] == count]
    return tuple(every[row] for row in rows_not_finite(tensor, axes[0])) if len(axes) == 1 else every


def _given(module: nn.Module, inputs: tuple[Any, ...]) -> list[tuple[str, Tensor]]:
    """The tensors that a module is given, each with its argument's name where there are several."""
    names = list(signature(module.forward).parameters)
    found = [named for name, value in zip(names, inputs, strict=False) for named in _tensors(value, name)]
    return [("", found[0][1])] if len(found) == 1 else found


def _tensors(value: Any, label: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a module is given or gives, with what to call them where there are several."""
    if isinstance(value, Tensor):
        yield label, value
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _tensors(item, f"{label} {number + 1}".strip() if len(value) > 1 else label)
    elif isinstance(value, ModelInput | ModelOutput):
        for one in fields(value):
            yield from _tensors(getattr(value, one.name), one.name)


def _role(kind: str, label: str) -> str:
    return f"{kind} {label}" if label else kind
