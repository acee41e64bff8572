"""Editing pairs with their exact ground truth: pure functions of (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sama_data.errors import DataError
from sama_data.synth.render import full_coverage, paint, render_layer, render_scene, to_frames, vignette
from sama_data.synth.scene import Scene, Shape, beside, caption, draw_background, draw_shapes
from sama_data.synth.spec import (
    BACKGROUND_COLOURS,
    DIRECTIONS,
    EDIT_KINDS,
    SHAPE_COLOURS,
    SHAPE_NAMES,
    STYLE_PHRASES,
    WorldSpec,
)

# Rows: output red, green, blue; columns: weights of the input's red, green, blue and a constant.
_STYLES: dict[str, np.ndarray] = {
    "black_and_white": np.asarray([[0.30, 0.59, 0.11, 0.0]] * 3, dtype=np.float32),
    "negative": np.asarray([[-1, 0, 0, 1], [0, -1, 0, 1], [0, 0, -1, 1]], dtype=np.float32),
    "night": np.asarray(
        [[0.25, 0.03, 0.02, 0.0], [0.02, 0.30, 0.03, 0.02], [0.05, 0.10, 0.45, 0.12]], dtype=np.float32
    ),
}


@dataclass(frozen=True)
class EditPair:
    """A clip, the same clip edited, and what is needed to learn from it and to judge an edit of it.

    Attributes:
        source, target: [T,H,W,3] uint8.
        mask: [T,H,W] bool, where the edit may change pixels (style: everywhere).
        instruction: the edit in words; names its object unambiguously.
        kind: one of EDIT_KINDS.
        caption: the source in words.
        seed, index: the pair is a pure function of these two, the world's spec and whether a kind was asked for.
    """

    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    instruction: str
    kind: str
    caption: str
    seed: int
    index: int


def make_pair(seed: int, index: int, spec: WorldSpec | None = None, kind: str | None = None) -> EditPair:
    """Makes one editing pair.

    Args:
        seed: of the world; different seeds share no clip.
        index: of the pair within the world.
        spec: sizes and ranges; the default world when None. `num_frames=1` makes an image pair.
        kind: one of EDIT_KINDS, or None to draw it.

    Returns:
        The pair, a pure function of the arguments.

    Raises:
        DataError: a negative seed or index, or an unknown kind.
    """
    world = spec if spec is not None else WorldSpec()
    if seed < 0 or index < 0:
        raise DataError(f"seed ({seed}) and index ({index}) must not be negative")
    if kind is not None and kind not in EDIT_KINDS:
        raise DataError(f"unknown kind of edit {kind!r}: use {', '.join(EDIT_KINDS)}")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, index))))
    drawn = _draw_kind(rng, world)
    kind = kind if kind is not None else drawn
    way = str(rng.choice(list(DIRECTIONS)))
    offset = (0.0, 0.0)
    if kind == "add":
        distance = world.add_offset * world.scale
        offset = (DIRECTIONS[way][0] * distance, DIRECTIONS[way][1] * distance)
    shapes: tuple[Shape, ...] = ()
    while not shapes:  # a first shape finds its place at once, except in a frame that it hardly fits
        shapes = draw_shapes(rng, world, offset)
    scene = Scene(draw_background(rng, world), shapes)
    target, mask, instruction, source = _apply(rng, world, scene, kind, way, offset)
    return EditPair(to_frames(source), to_frames(target), mask, instruction, kind, caption(scene), seed, index)


def _draw_kind(rng: np.random.Generator, spec: WorldSpec) -> str:
    """Draws a kind of edit by the world's weights."""
    weights = np.asarray([spec.kind_weights.get(kind, 0.0) for kind in EDIT_KINDS])
    return str(rng.choice(EDIT_KINDS, p=weights / weights.sum()))


def _apply(
    rng: np.random.Generator,
    spec: WorldSpec,
    scene: Scene,
    kind: str,
    way: str,
    offset: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, str, np.ndarray]:
    """Renders a scene and its edit; returns target planes, mask, instruction and source planes."""
    source, background, layers = render_scene(scene, spec)
    if kind == "style":
        name = str(rng.choice(list(STYLE_PHRASES)))
        mask = np.ones((spec.num_frames, spec.height, spec.width), dtype=bool)
        return restyle(np.clip(source, 0, 1), name), mask, f"Turn the video into {STYLE_PHRASES[name]}.", source
    if kind == "background":
        word = str(rng.choice([name for name in BACKGROUND_COLOURS if name != scene.background.colour]))
        behind = np.asarray(BACKGROUND_COLOURS[word], dtype=np.float32)[None, :, None, None] * vignette(spec)
        target = np.broadcast_to(behind, source.shape).copy()
        for layer in layers:
            paint(target, layer, layer.shape.colour)
        mask = ~np.any([full_coverage(layer, spec) for layer in layers], axis=0)
        return target, mask, f"Change the background to plain {word}.", source
    chosen = 0 if kind == "add" else int(rng.integers(len(layers)))
    subject = scene.shapes[chosen]
    used = {shape.colour for shape in scene.shapes}
    fresh = str(rng.choice([name for name in SHAPE_COLOURS if name not in used]))
    drawn = layers
    mask = full_coverage(layers[chosen], spec)
    colours = [shape.colour for shape in scene.shapes]
    if kind == "recolour":
        colours[chosen] = fresh
        words = f"Change the color of the {subject.phrase} to {fresh}."
    elif kind == "remove":
        drawn = layers[:chosen] + layers[chosen + 1 :]
        colours.pop(chosen)
        words = f"Remove the {subject.phrase}."
    elif kind == "replace":
        name = str(rng.choice([other for other in SHAPE_NAMES if other != subject.name]))
        new = render_layer(beside(subject, (0.0, 0.0), name=name), spec)
        drawn = [*layers[:chosen], new, *layers[chosen + 1 :]]
        colours[chosen] = fresh
        mask = mask | full_coverage(new, spec)
        words = f"Replace the {subject.phrase} with a {fresh} {name}."
    else:
        name = str(rng.choice(SHAPE_NAMES))
        new = render_layer(beside(subject, offset, name=name, stripe_amplitude=0.0), spec)
        drawn = [*layers, new]
        colours.append(fresh)
        mask = full_coverage(new, spec)
        words = f"Add a {fresh} {name} {way} the {subject.phrase}."
    target = background.copy()
    for layer, colour in zip(drawn, colours, strict=True):
        paint(target, layer, colour)
    return target, mask, words, source


def restyle(planes: np.ndarray, name: str) -> np.ndarray:
    """Returns planes [T,3,H,W] in [0,1] in a style: the same affine map of the colours everywhere."""
    matrix = _STYLES[name]
    mixed = np.einsum("oc,tchw->tohw", matrix[:, :3], planes, optimize=True)
    return np.asarray(mixed + matrix[:, 3][:, None, None])
