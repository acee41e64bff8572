"""pretext against a plain numpy reading of the plan, and refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sama_kernels.pretext import pretext, tube_slices
from tests.support.host_waits import HostWaits


def _frames(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))


def _plain(frames: np.ndarray, indices: list[int], order: tuple[int, ...] | None) -> np.ndarray:
    """Pixel by pixel, written apart from the tensor code."""
    t, (h, w) = len(indices), frames.shape[1:3]
    picked = [np.zeros_like(frames[0]) if i == -1 else frames[i] for i in indices]
    out = np.empty((3, t, h, w))
    starts = [(0, (t + 1) // 2), (0, h // 2), (0, w // 2)]
    for f, y, x in itertools.product(range(t), range(h), range(w)):
        source = f, y, x
        if order is not None and y < h // 2 * 2 and x < w // 2 * 2:
            part = int(f >= (t + 1) // 2), int(y >= h // 2), int(x >= w // 2)
            moved = order[part[0] * 4 + part[1] * 2 + part[2]]
            to = moved // 4, moved // 2 % 2, moved % 2
            source = tuple(p - s[a] + s[b] for p, s, a, b in zip((f, y, x), starts, part, to, strict=True))
        out[:, f, y, x] = picked[source[0]][source[1], source[2]] / 127.5 - 1
    return out


@pytest.mark.parametrize(
    ("shape", "indices", "order"),
    [
        ((5, 4, 6), list(range(5)), None),
        ((5, 4, 6), [0, 1, -1, -1, 4], None),
        ((9, 4, 6), [0, 2, 4, 6, 8], None),
        ((3, 4, 6), [0, 1, 2, 2, 2], None),
        ((5, 4, 6), list(range(5)), (1, 0, 3, 2, 7, 6, 5, 4)),
        ((4, 4, 6), list(range(4)), (7, 6, 5, 4, 3, 2, 1, 0)),
        ((5, 5, 7), list(range(5)), (3, 2, 0, 1, 4, 5, 7, 6)),
        ((1, 4, 4), [0], (1, 2, 3, 0, 4, 5, 6, 7)),
    ],
)
def test_plans_are_applied_as_written(
    shape: tuple[int, int, int], indices: list[int], order: tuple[int, ...] | None
) -> None:
    frames = _frames(*shape)
    before = frames.clone()
    with HostWaits() as waits:
        out = pretext(frames, indices, order)
    assert waits.places == []
    assert out.dtype == torch.float32 and out.is_contiguous()
    np.testing.assert_allclose(out.numpy(), _plain(frames.numpy(), indices, order), atol=1e-6)
    assert torch.equal(frames, before)


def test_levels_map_to_the_ends_of_the_range() -> None:
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 1, 3)
    out = pretext(frames, torch.tensor([0, 1, -1]))
    assert out[0, :, 0, 0].tolist() == [-1.0, 1.0, -1.0]


def test_bfloat16_is_rounded_once() -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    out = pretext(frames, [0], dtype=torch.bfloat16)
    assert torch.equal(out, pretext(frames, [0]).bfloat16())


@pytest.mark.parametrize(("t", "h", "w"), [(5, 7, 9), (4, 4, 4), (17, 64, 64), (5, 5, 5), (1, 2, 2)])
def test_tubes_never_overlap_and_can_always_move(t: int, h: int, w: int) -> None:
    seen = np.zeros((t, h, w), dtype=int)
    bounds = tube_slices(t, h, w)
    for tube in bounds:
        seen[tube] += 1
    assert seen.max() == 1
    assert seen[:, : h // 2 * 2, : w // 2 * 2].min() == 1
    assert seen[:, h // 2 * 2 :].sum() == 0 and seen[:, :, w // 2 * 2 :].sum() == 0
    for half in (bounds[:4], bounds[4:]):
        assert len({tuple(part.stop - part.start for part in tube) for tube in half}) == 1


@pytest.mark.parametrize(
    ("indices", "order", "message"),
    [
        ([], None, "empty"),
        ([0, 5], None, "frame index 5"),
        ([-2], None, "frame index -2"),
        ([0, 1, 2, 3, 4], (0, 0, 1, 2, 3, 4, 5, 6), "permutation"),
        ([0, 1, 2, 3, 4], (4, 1, 2, 3, 0, 5, 6, 7), "equal shapes"),
    ],
)
def test_impossible_plans_are_refused(indices: list[int], order: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretext(_frames(5, 4, 4), indices, order)


def test_wrong_frames_and_backends_are_named() -> None:
    with pytest.raises(ValueError, match="uint8"):
        pretext(torch.zeros(1, 2, 2, 3), [0])
    with pytest.raises(ValueError, match="T, H, W, 3"):
        pretext(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), [0])
    with pytest.raises(ValueError, match=r"triton.*pretext"):
        pretext(_frames(1, 2, 2), [0], backend="triton")
