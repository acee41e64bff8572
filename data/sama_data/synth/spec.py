"""What the synthetic world can hold: its size, palettes, shapes, styles and kinds of edit."""

from __future__ import annotations

from dataclasses import dataclass, field

from sama_data.errors import DataError

EDIT_KINDS: tuple[str, ...] = ("recolour", "remove", "add", "replace", "style", "background")

# Far apart, so that a recoloured object is well away from what it was; not fully saturated, because errors in pixels
# grow with the contrast.
SHAPE_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.75, 0.26, 0.26),
    "green": (0.25, 0.62, 0.30),
    "blue": (0.27, 0.35, 0.78),
    "yellow": (0.80, 0.75, 0.27),
    "white": (0.81, 0.81, 0.81),
}

# Other words than the shapes', and calmer colours: an object stays visible on every background.
BACKGROUND_COLOURS: dict[str, tuple[float, float, float]] = {
    "gray": (0.50, 0.50, 0.50),
    "navy": (0.33, 0.36, 0.52),
    "brown": (0.52, 0.42, 0.35),
    "olive": (0.46, 0.50, 0.33),
    "lavender": (0.59, 0.55, 0.68),
    "beige": (0.64, 0.59, 0.49),
}

# Big and unlike each other: every one survives a codec of 16 coefficients a block.
SHAPE_NAMES: tuple[str, ...] = ("circle", "square", "triangle", "cross")

STYLE_PHRASES: dict[str, str] = {
    "black_and_white": "black and white",
    "negative": "a photo negative",
    "night": "a night scene",
}

DIRECTIONS: dict[str, tuple[int, int]] = {
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}


def default_kind_weights() -> dict[str, float]:
    """Returns how often each kind of edit is drawn: the ones that redraw an object in place more often."""
    return {"recolour": 4.0, "remove": 4.0, "add": 2.5, "replace": 2.5, "style": 1.5, "background": 3.5}


@dataclass(frozen=True)
class WorldSpec:
    """Size and ranges of the synthetic world; lengths are in pixels of a 64-pixel-high frame and scale with it."""

    num_frames: int = 17
    height: int = 64
    width: int = 64
    fps: int = 16
    max_shapes: int = 2
    radius: tuple[float, float] = (12.0, 15.0)
    shape_speed: float = 0.7  # pixels a frame at most, along each axis
    pan_speed: tuple[float, float] = (2.0, 3.5)  # pixels a frame
    texture_wavelength: tuple[float, float] = (36.0, 72.0)
    texture_amplitude: float = 0.14
    shape_texture: float = 0.08
    vignette: float = 0.30  # how much darker the corners are: the only hint of an absolute position
    add_offset: float = 32.0
    kind_weights: dict[str, float] = field(default_factory=default_kind_weights)

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            DataError: a size is out of range or a kind of edit is unknown.
        """
        if self.num_frames < 1 or self.num_frames % 4 != 1:
            raise DataError(f"num_frames ({self.num_frames}) must be 4k+1: use 1, 5, 9, 13, 17, ...")
        for name, value in (("height", self.height), ("width", self.width)):
            if value < 32 or value % 2:
                raise DataError(f"{name} ({value}) must be even and at least 32: use 64")
        if self.fps < 1:
            raise DataError(f"fps ({self.fps}) must be at least 1: use 16")
        unknown = sorted(set(self.kind_weights) - set(EDIT_KINDS))
        if unknown:
            raise DataError(f"kind_weights has unknown kinds {unknown}: use {', '.join(EDIT_KINDS)}")
        if sum(self.kind_weights.values()) <= 0 or min(self.kind_weights.values()) < 0:
            raise DataError("kind_weights must be non-negative with a positive sum")

    @property
    def scale(self) -> float:
        """Pixels per unit of length: 1.0 at 64 pixels."""
        return min(self.height, self.width) / 64.0
