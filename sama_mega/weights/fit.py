"""Holds stored weights against what a recipe's model wants: every tensor once, none left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.parameters.names import our_place
from sama_mega.parameters.shapes import released_shapes, sama_shapes
from sama_mega.weights.formats import SourceFormat, list_problems, released_name, stored_name
from sama_mega.weights.source import StoredTensor

READABLE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Fit:
    """How stored tensors become a model's parameters.

    Attributes:
        read: Our name -> the stored names of its parts, in order; in the order of a forward pass.
        fresh: Our names of parameters that the format does not have: they are drawn.
    """

    read: dict[str, list[str]] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)


def require_fit(source_format: SourceFormat, tensors: Mapping[str, StoredTensor], recipe: Recipe, label: str) -> Fit:
    """Plans an import, strictly.

    Args:
        source_format: Says what the tensors are called, and whether SAMA's own parts must be there or must not.
        tensors: What the files hold.
        recipe: Its `model` section says what is wanted.
        label: How messages begin.

    Raises:
        ConfigError: A tensor is missing, left over, of another shape or of another dtype; all of them, a few by name.
    """
    wanted = released_shapes(recipe.model)
    own_parts = sama_shapes(recipe.model) if source_format != "sama" else {}
    fit = Fit()
    missing, misshapen, mistyped = [], [], []
    used: set[str] = set()
    for released, shape in wanted.items():
        ours, index, _ = our_place(released)
        if released in own_parts:
            fit.fresh.append(ours)
            continue
        stored = stored_name(source_format, released)
        assert stored is not None, released
        if stored not in tensors:
            missing.append(stored)
            continue
        used.add(stored)
        parts = fit.read.setdefault(ours, [])
        parts.append(stored)
        found = tensors[stored]
        if found.shape != shape:
            misshapen.append(f"{stored}: {list(found.shape)}, must be {list(shape)}")
        if found.dtype not in READABLE_DTYPES:
            mistyped.append(f"{stored}: {found.dtype}, must be {' or '.join(READABLE_DTYPES)}")
        elif index and found.dtype != tensors[parts[0]].dtype:
            mistyped.append(f"{stored}: {found.dtype}, must be {tensors[parts[0]].dtype} like {parts[0]}")
    unused = sorted(tensors.keys() - used)
    problems = list_problems({"missing": missing, "unused": unused, "wrong shape": misshapen, "wrong dtype": mistyped})
    if problems:
        raise ConfigError(f"{label} does not fit the model: {problems}{_hint(source_format, missing, unused)}")
    return fit


def released_tensors(source_format: SourceFormat, tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    """Shapes under the released names, of the tensors whose names the format knows."""
    named = ((released_name(source_format, stored), tensor.shape) for stored, tensor in tensors.items())
    return {released: shape for released, shape in named if released is not None}


def _hint(source_format: SourceFormat, missing: list[str], unused: list[str]) -> str:
    def own(names: list[str]) -> bool:
        return any(name.startswith(("segment_embedding.", "siglip_feat_mlp.", "semantic_head.")) for name in names)

    if source_format == "sama" and own(missing):
        return ": plain Wan weights are imported with `import wan`"
    if source_format == "wan" and own(unused):
        return ": SAMA's weights are imported with `import sama`"
    return ""
