"""Still images: every mode becomes upright RGB of the wanted size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import sama_data.decode_image
from sama_data.buckets import Geometry, cover
from sama_data.decode import decode_frames
from sama_data.errors import ClipError


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_lossless_images_come_back_exactly(name, tmp_path, make_frames):
    frames = make_frames(1, 40, 56)
    Image.fromarray(frames[0]).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    np.testing.assert_array_equal(decode_frames(tmp_path / name).frames, frames)


def test_jpeg(tmp_path, make_frames, measure_psnr):
    frames = make_frames(1, 40, 56)
    Image.fromarray(frames[0]).save(tmp_path / "a.jpg", quality=95)
    assert measure_psnr(decode_frames(tmp_path / "a.jpg").frames, frames) > 35


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    frame = decode_frames(tmp_path / "a.png").frames[0]
    assert (frame[:, :4] == 255).all()
    assert (frame[:, 4:] == (10, 20, 30)).all()


def test_grey_of_16_bits_is_scaled_not_clipped(tmp_path):
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    frame = decode_frames(tmp_path / "a.png").frames[0]
    np.testing.assert_allclose(frame[..., 0], levels / 257, atol=1.0)
    assert (frame[..., 0] == frame[..., 2]).all()


def test_exif_orientation_is_applied(tmp_path, make_frames):
    picture = make_frames(1, 24, 40)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode_frames(tmp_path / "a.png").frames[0], np.rot90(picture, -1))


def test_scales_and_crops_in_the_middle(tmp_path, make_frames, measure_psnr):
    picture = Image.fromarray(make_frames(1, 64, 96)[0])
    picture.save(tmp_path / "a.png")
    frame = decode_frames(tmp_path / "a.png", choose_geometry=lambda w, h: cover(w, h, (32, 32))).frames[0]
    scaled = np.asarray(picture.resize((48, 32), Image.Resampling.BICUBIC))
    assert measure_psnr(frame, scaled[:, 8:40]) > 45


def test_a_crop_alone_does_not_resample(tmp_path, make_frames):
    picture = make_frames(1, 64, 96)[0]
    Image.fromarray(picture).save(tmp_path / "a.png")
    frame = decode_frames(tmp_path / "a.png", choose_geometry=lambda w, h: Geometry(w, h, 7, 3, 64, 48)).frames[0]
    np.testing.assert_array_equal(frame, picture[3:51, 7:71])


def test_a_huge_image_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, make_frames):
    Image.fromarray(make_frames(1, 64, 96)[0]).save(tmp_path / "a.png")
    monkeypatch.setattr(sama_data.decode_image, "MAX_PIXELS", 1000)
    with pytest.raises(ClipError, match="is too large: 96x64, at most 1000 pixels"):
        decode_frames(tmp_path / "a.png")
