"""pretext against a plain numpy reading of the plan, and refusals."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from sama_kernels.pretext import kernel, launch, pretext, tube_slices
from tests.support.host_waits import HostWaits
from tests.support.triton_checks import BACKENDS, needs_interpreter, plant

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")


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


PLANS = [
    ((5, 4, 6), list(range(5)), None),
    ((5, 4, 6), [0, 1, -1, -1, 4], None),
    ((9, 4, 6), [0, 2, 4, 6, 8], None),
    ((3, 4, 6), [0, 1, 2, 2, 2], None),
    ((5, 4, 6), list(range(5)), (1, 0, 3, 2, 7, 6, 5, 4)),
    ((4, 4, 6), list(range(4)), (7, 6, 5, 4, 3, 2, 1, 0)),
    ((5, 5, 7), list(range(5)), (3, 2, 0, 1, 4, 5, 7, 6)),
    ((1, 4, 4), [0], (1, 2, 3, 0, 4, 5, 6, 7)),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "indices", "order"), PLANS)
def test_plans_are_applied_as_written(
    backend: str, shape: tuple[int, int, int], indices: list[int], order: tuple[int, ...] | None
) -> None:
    frames = _frames(*shape)
    before = frames.clone()
    with HostWaits() as waits:
        out = pretext(frames, indices, order, backend=backend)
    if backend == "reference":  # the interpreter reads arguments on the host
        assert waits.places == []
    assert out.dtype == torch.float32 and out.is_contiguous()
    np.testing.assert_allclose(out.numpy(), _plain(frames.numpy(), indices, order), atol=1e-6)
    assert torch.equal(frames, before)


@needs_interpreter
def test_every_level_is_the_references_to_the_bit() -> None:
    """In frames that are larger than a program's block, and a view of a larger clip."""
    frames = _frames(3, 37, 41)[1:]
    frames[0, :8, :32, 0] = torch.arange(256, dtype=torch.uint8).view(8, 32)
    for dtype in (torch.float32, torch.float16):
        for order in (None, (5, 4, 7, 6, 1, 0, 3, 2)):
            ours, plain = (pretext(frames, [1, 0], order, dtype, backend=name) for name in ("triton", "reference"))
            assert torch.equal(ours, plain)


BUGS = {
    "frames in their own order": ("tl.load(plan + picked)", "tl.load(plan + picked) * 0 + frame"),
    "channels last": ("channel * plane + place", "channel + place * 3"),
    "black frames that show the first": ("inside & (index >= 0)", "inside"),
    "tubes that take an odd last line along": ("(line < 2 * half_height) &", "(line < height) &"),
    "a time half that is too short": ("(num_frames + 1) // 2", "num_frames // 2"),
}


@needs_interpreter
@pytest.mark.parametrize("bug", BUGS)
def test_a_kernel_with_a_bug_fails(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, tmp_path, kernel, launch, *BUGS[bug])
    plans = [([0, -1, 3, 2, 1], None), (list(range(5)), (3, 2, 0, 1, 4, 5, 7, 6))]
    frames = _frames(5, 5, 7)
    both = [[pretext(frames, *plan, backend=name) for name in ("triton", "reference")] for plan in plans]
    assert not all(torch.equal(*pair) for pair in both)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "indices", "order"), PLANS)
def test_a_gpu_gives_the_references_bits(
    shape: tuple[int, int, int], indices: list[int], order: tuple[int, ...] | None, dtype: torch.dtype
) -> None:
    frames = _frames(*shape)
    ours = pretext(frames.cuda(), indices, order, dtype, backend="triton")
    assert torch.equal(ours.cpu(), pretext(frames, indices, order, dtype, backend="reference"))


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
    with pytest.raises(ValueError, match=r"cudnn.*pretext"):
        pretext(_frames(1, 2, 2), [0], backend="cudnn")
