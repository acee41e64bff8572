"""Rendering: a scene to float planes and to uint8 frames, with the exact coverage of every shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sama_data.synth.scene import Background, Scene, Shape, paths
from sama_data.synth.spec import SHAPE_COLOURS, WorldSpec


@dataclass(frozen=True)
class Layer:
    """A shape's coverage [T,h,w] in [0,1] and brightness [T,h,w] within `rows` x `columns` of the frame."""

    shape: Shape
    rows: slice
    columns: slice
    coverage: np.ndarray
    brightness: np.ndarray


def vignette(spec: WorldSpec) -> np.ndarray:
    """Returns the lens's falloff [H,W] float32: 1 in the middle, 1 - spec.vignette in the corners."""
    y = np.linspace(-1, 1, spec.height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, spec.width, dtype=np.float32)[None, :]
    return 1.0 - spec.vignette * 0.5 * (x * x + y * y)


def render_background(background: Background, spec: WorldSpec) -> np.ndarray:
    """Returns the background [T,3,H,W] float32, without the lens's falloff."""
    times = np.arange(spec.num_frames)
    x = np.arange(spec.width)[None, :] + times[:, None] * background.pan[0]
    y = np.arange(spec.height)[None, :] + times[:, None] * background.pan[1]
    wave_x, wave_y, phase, tint = np.split(background.waves, [1, 2, 3], axis=1)
    angle_x = (wave_x[:, :, None] * x).astype(np.float32)  # [K,T,W]
    angle_y = (wave_y[:, :, None] * y + phase[:, :, None]).astype(np.float32)  # [K,T,H]
    # sin(a+b) = sin a cos b + cos a sin b: every wave is two outer products, and all of them one matrix product.
    across = np.concatenate([np.sin(angle_x), np.cos(angle_x)])  # [2K,T,W]
    down = np.concatenate([np.cos(angle_y), np.sin(angle_y)])  # [2K,T,H]
    amplitude = np.concatenate([tint, tint]).astype(np.float32)  # [2K,3]
    left = down.transpose(1, 2, 0)[:, None] * amplitude.T[None, :, None, :]  # [T,3,H,2K]
    left = left.reshape(spec.num_frames, 3 * spec.height, -1)
    waves = np.matmul(left, across.transpose(1, 0, 2)).reshape(spec.num_frames, 3, spec.height, spec.width)
    waves += np.asarray(background.base, dtype=np.float32)[:, None, None]
    return waves


def signed_distance(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns how far outside a silhouette of unit size a point (u right, v down) lies; negative inside."""
    if name == "circle":
        return np.sqrt(u * u + v * v) - 1.0
    across, down = np.abs(u), np.abs(v)
    if name == "square":
        return np.maximum(across, down) - 0.88
    if name == "triangle":
        return np.maximum(v - 0.8, (1.8 * across - v - 1.0) / 2.059)
    if name == "cross":
        return np.minimum(np.maximum(across - 1.0, down - 0.38), np.maximum(across - 0.38, down - 1.0))
    raise ValueError(f"no silhouette named {name!r}")


def render_layer(shape: Shape, spec: WorldSpec) -> Layer:
    """Renders a shape's coverage and stripes over the box that it visits."""
    path = paths(np.asarray(shape.centre), np.asarray(shape.velocity), spec.num_frames).astype(np.float32)
    reach = shape.radius + 1.5
    x0, y0 = np.maximum(np.floor(path.min(0) - reach).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(path.max(0) + reach).astype(int) + 1, (spec.width, spec.height))
    u = (np.arange(x0, x1, dtype=np.float32)[None, None, :] - path[:, 0, None, None]) / shape.radius
    v = (np.arange(y0, y1, dtype=np.float32)[None, :, None] - path[:, 1, None, None]) / shape.radius
    distance = np.asarray(signed_distance(shape.name, u, v), dtype=np.float32) * np.float32(shape.radius)
    coverage = np.clip(0.5 - distance, 0.0, 1.0)
    along = np.float32(np.cos(shape.stripe_angle)) * u + np.float32(np.sin(shape.stripe_angle)) * v
    stripes = np.sin(np.float32(4.5) * along + np.float32(shape.stripe_phase))
    brightness = 1.0 + np.float32(shape.stripe_amplitude) * stripes
    return Layer(shape, slice(y0, y1), slice(x0, x1), coverage, brightness)


def paint(planes: np.ndarray, layer: Layer, colour: str) -> None:
    """Paints a layer in a palette colour over `planes` [T,3,H,W], which it changes."""
    window = planes[:, :, layer.rows, layer.columns]
    for channel, value in enumerate(SHAPE_COLOURS[colour]):
        plane = window[:, channel]
        plane += layer.coverage * (layer.brightness * np.float32(value) - plane)


def full_coverage(layer: Layer, spec: WorldSpec) -> np.ndarray:
    """Returns where a layer covers at least half of a pixel: [T,H,W] bool."""
    mask = np.zeros((spec.num_frames, spec.height, spec.width), dtype=bool)
    mask[:, layer.rows, layer.columns] = layer.coverage >= 0.5
    return mask


def to_frames(planes: np.ndarray) -> np.ndarray:
    """Returns planes [T,3,H,W] in [0,1] as frames [T,H,W,3] uint8."""
    values = np.clip(planes * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1))


def render_scene(scene: Scene, spec: WorldSpec) -> tuple[np.ndarray, np.ndarray, list[Layer]]:
    """Returns a scene as planes [T,3,H,W], its bare background [T,3,H,W], and its layers, back to front."""
    background = render_background(scene.background, spec) * vignette(spec)
    layers = [render_layer(shape, spec) for shape in scene.shapes]
    planes = background.copy()
    for layer in layers:
        paint(planes, layer, layer.shape.colour)
    return planes, background, layers
