"""Scenes: which shapes there are, how they move, what is behind them. Pure functions of a random generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sama_data.synth.spec import BACKGROUND_COLOURS, SHAPE_COLOURS, SHAPE_NAMES, WorldSpec

_CANDIDATES = 48  # places tried at once for a shape; a shape that finds none is left out


@dataclass(frozen=True)
class Shape:
    """One moving object: it keeps its speed, and its stripes move with it."""

    name: str
    colour: str
    radius: float
    centre: tuple[float, float]  # x, y at frame 0, pixels
    velocity: tuple[float, float]  # pixels a frame
    stripe_phase: float
    stripe_angle: float
    stripe_amplitude: float

    @property
    def phrase(self) -> str:
        """What an instruction calls it, such as `red circle`."""
        return f"{self.colour} {self.name}"


@dataclass(frozen=True)
class Background:
    """A sum of plane waves over a base colour, seen by a panning camera; `waves` rows are (kx, ky, phase, r, g, b)."""

    colour: str
    base: tuple[float, float, float]
    waves: np.ndarray
    pan: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """A background and the shapes before it; the last shape is in front."""

    background: Background
    shapes: tuple[Shape, ...]


def draw_background(rng: np.random.Generator, spec: WorldSpec) -> Background:
    """Draws a textured background and the camera's speed."""
    colour = str(rng.choice(list(BACKGROUND_COLOURS)))
    base = np.asarray(BACKGROUND_COLOURS[colour]) * rng.uniform(0.9, 1.1) + rng.uniform(-0.04, 0.04, size=3)
    count = 3
    speed, heading = rng.uniform(*spec.pan_speed) * spec.scale, rng.uniform(0, 2 * np.pi)
    wavelength = rng.uniform(*spec.texture_wavelength, size=count) * spec.scale
    # No wave runs along the camera's path: there the pan could not be seen.
    angle = heading + rng.uniform(-np.pi / 3, np.pi / 3, size=count)
    phase = rng.uniform(0, 2 * np.pi, size=count)
    strength = rng.uniform(0.4, 1.0, size=(count, 1))
    tint = strength * (1.0 + rng.uniform(-0.15, 0.15, size=(count, 3)))
    tint *= spec.texture_amplitude / np.sqrt((strength**2).sum())
    wave_number = 2 * np.pi / wavelength
    waves = np.column_stack([wave_number * np.cos(angle), wave_number * np.sin(angle), phase, tint])
    pan = (float(speed * np.cos(heading)), float(speed * np.sin(heading)))
    return Background(colour, (float(base[0]), float(base[1]), float(base[2])), waves, pan)


def paths(centre: np.ndarray, velocity: np.ndarray, num_frames: int) -> np.ndarray:
    """Returns positions [..., T, 2] of points that start at `centre` [..., 2] with `velocity` [..., 2]."""
    times = np.arange(num_frames, dtype=np.float64)
    return centre[..., None, :] + velocity[..., None, :] * times[:, None]


def find_place(
    rng: np.random.Generator,
    spec: WorldSpec,
    radius: float,
    others: tuple[Shape, ...],
    companion: tuple[float, float] = (0.0, 0.0),
) -> tuple[np.ndarray, np.ndarray] | None:
    """Finds a start and a speed that keep a shape inside the frame and off the others at every frame.

    Args:
        rng: the generator to draw from.
        spec: the world's sizes.
        radius: of the shape, pixels.
        others: the shapes that are already there.
        companion: offset of a second shape of the same radius that must fit too (an edit will add it), pixels.

    Returns:
        (centre [2], velocity [2]), or None when no candidate fits.
    """
    extent = np.asarray([spec.width, spec.height], dtype=np.float64)
    shift = np.asarray(companion, dtype=np.float64)
    low = radius + np.maximum(0.0, -shift)
    high = extent - 1 - radius - np.maximum(0.0, shift)
    start = low + rng.random((_CANDIDATES, 2)) * np.maximum(high - low, 0.0)
    limit = spec.shape_speed * spec.scale * (spec.num_frames - 1)
    goal = np.clip(start + rng.uniform(-limit, limit, size=(_CANDIDATES, 2)), low, high)
    velocity = (goal - start) / max(1, spec.num_frames - 1)
    fits = np.full(_CANDIDATES, bool((high >= low).all()))
    own = paths(start, velocity, spec.num_frames)
    for other in others:
        theirs = paths(np.asarray(other.centre), np.asarray(other.velocity), spec.num_frames)
        gap = radius + other.radius + spec.scale
        for offset in (np.zeros(2), shift):
            distance = np.sqrt((((own + offset) - theirs) ** 2).sum(-1)).min(-1)
            fits &= distance >= gap
    index = int(np.argmax(fits))
    return (start[index], velocity[index]) if fits[index] else None


def draw_shapes(
    rng: np.random.Generator, spec: WorldSpec, companion: tuple[float, float] = (0.0, 0.0)
) -> tuple[Shape, ...]:
    """Draws one to `spec.max_shapes` shapes of different colours; only the first leaves room for `companion`."""
    wanted = int(rng.integers(1, spec.max_shapes + 1))
    colours = rng.permutation(list(SHAPE_COLOURS))
    shapes: tuple[Shape, ...] = ()
    for number in range(wanted):
        radius = float(rng.uniform(*spec.radius) * spec.scale)
        name = str(rng.choice(SHAPE_NAMES))
        texture = rng.uniform(0, np.pi, size=2)
        room = companion if number == 0 else (0.0, 0.0)
        if number == 0 and companion != (0.0, 0.0):
            radius = min(radius, 0.44 * max(abs(companion[0]), abs(companion[1])))
        place = find_place(rng, spec, radius, _with_companion(shapes, companion), room)
        if place is None:
            continue
        centre, velocity = place
        shape = Shape(
            name=name,
            colour=str(colours[number]),
            radius=radius,
            centre=(float(centre[0]), float(centre[1])),
            velocity=(float(velocity[0]), float(velocity[1])),
            stripe_phase=float(texture[0] * 2),
            stripe_angle=float(texture[1]),
            stripe_amplitude=spec.shape_texture,
        )
        shapes = (*shapes, shape)
    return shapes


def _with_companion(shapes: tuple[Shape, ...], companion: tuple[float, float]) -> tuple[Shape, ...]:
    """Adds to `shapes` the place beside the first one that an edit is going to fill."""
    if not shapes or companion == (0.0, 0.0):
        return shapes
    return (*shapes, beside(shapes[0], companion))


def beside(shape: Shape, offset: tuple[float, float], **changes: object) -> Shape:
    """Returns a copy of `shape` moved by `offset` (x, y pixels), with other fields changed as given."""
    fields = {**shape.__dict__, **changes}
    fields["centre"] = (shape.centre[0] + offset[0], shape.centre[1] + offset[1])
    return Shape(**fields)


def caption(scene: Scene) -> str:
    """Describes a scene in one sentence, for stage 0."""
    names = [f"a {shape.phrase}" for shape in scene.shapes]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    article = "an" if scene.background.colour[0] in "aeiou" else "a"
    return f"{listed[0].upper()}{listed[1:]} over {article} {scene.background.colour} background."
