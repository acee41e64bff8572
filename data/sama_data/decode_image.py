"""Decodes one still image."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sama_data.buckets import Geometry
from sama_data.errors import ClipError
from sama_data.media import Media

# Above any camera; a small file can unpack to this many pixels and more.
MAX_PIXELS = 8192 * 8192
_FORMATS = ("PNG", "JPEG", "WEBP")
EXIF_ORIENTATION = 0x0112


def decode_image(
    media: Media, choose_geometry: Callable[[int, int], Geometry] | None, content: bytes | None = None
) -> NDArray[np.uint8]:
    """Returns the picture, upright, as ``[1, H, W, 3]`` uint8 RGB.

    Transparent pixels are laid on white.

    Args:
        media: The file, or the part of one.
        choose_geometry: As in `sama_data.decode.decode_frames`.
        content: Its bytes, where they were read already.

    Raises:
        ClipError: The content is damaged, truncated or too large.
    """
    try:
        with Image.open(_input_of(media, content), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ClipError(media.name, f"is too large: {image.width}x{image.height}, at most {MAX_PIXELS} pixels")
            image.load()
            upright = _to_rgb(_turn_upright(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's own words: "image file is truncated (12 bytes not processed)", "broken PNG file", ...
        raise ClipError(media.name, f"is a damaged image: {error}") from error
    if choose_geometry is not None:
        upright = _fit(upright, choose_geometry(upright.width, upright.height))
    return np.array(upright, dtype=np.uint8)[None]


def _input_of(media: Media, content: bytes | None) -> Path | str | BinaryIO:
    if content is not None:
        return io.BytesIO(content)
    return media.path if media.is_whole else media.open()


def _turn_upright(image: Image.Image) -> Image.Image:
    # exif_transpose copies the picture even where there is nothing to turn.
    if image.getexif().get(EXIF_ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling.
        levels = np.asarray(image, dtype=np.int64).clip(0, 65535) // 257
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def _fit(image: Image.Image, geometry: Geometry) -> Image.Image:
    size = (geometry.width, geometry.height)
    if image.size == (geometry.scaled_width, geometry.scaled_height):
        right, bottom = geometry.left + geometry.width, geometry.top + geometry.height
        return image if image.size == size else image.crop((geometry.left, geometry.top, right, bottom))
    # The crop in the picture's own coordinates: nothing is resampled that would be cut off again.
    across = image.width / geometry.scaled_width
    down = image.height / geometry.scaled_height
    box = (
        geometry.left * across,
        geometry.top * down,
        (geometry.left + geometry.width) * across,
        (geometry.top + geometry.height) * down,
    )
    return image.resize(size, Image.Resampling.BICUBIC, box=box)
