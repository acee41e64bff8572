"""The tiny semantic encoder: the right tokens in the right order, the same numbers everywhere."""

from __future__ import annotations

import torch

from sama_data.synth import make_pair
from sama_mega.encoders.tiny_semantic import TinySemanticEncoder


def frames(count: int) -> torch.Tensor:
    """Synthetic frames [count,1,3,64,64] in [-1,1]."""
    pictures = torch.stack([torch.from_numpy(make_pair(6, i).source[:1]) for i in range(count)])
    return pictures.movedim(-1, 2).float() / 127.5 - 1


def test_shapes_and_global_token() -> None:
    """Local tokens come first, then their mean, anchor by anchor."""
    encoder = TinySemanticEncoder(grid=4, semantic_dim=48)
    two_anchors = torch.cat([frames(2), frames(2).flip(0)], dim=1)
    out = encoder.encode(two_anchors)
    assert encoder.tokens_per_anchor == 17 and out.shape == (2, 34, 48) and out.dtype == torch.float32
    torch.testing.assert_close(out[:, 16], out[:, :16].mean(1))
    torch.testing.assert_close(out[0, 17:], out[1, :17])
    without = TinySemanticEncoder(grid=4, semantic_dim=48, global_token=False)
    torch.testing.assert_close(without.encode(two_anchors)[:, :16], out[:, :16])
    assert without.encode(two_anchors).shape == (2, 32, 48)


def test_a_token_sees_its_own_cell_in_raster_order() -> None:
    """Changing one cell of the frame changes that token and the global one only."""
    encoder = TinySemanticEncoder(grid=4, semantic_dim=48)
    picture = frames(1)
    changed = picture.clone()
    changed[..., 16:32, 48:64] *= -1  # row 1, column 3
    moved = (encoder.encode(picture) != encoder.encode(changed)).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == [1 * 4 + 3, 16]


def test_features_are_about_unit_size() -> None:
    """Noise of unit variance neither drowns nor ignores them."""
    out = TinySemanticEncoder(grid=4, semantic_dim=48).encode(frames(32))
    assert 0.5 < float(out.std()) < 1.5


def test_other_sizes() -> None:
    """Frames need not be a multiple of the grid."""
    assert TinySemanticEncoder(grid=3, semantic_dim=8).encode(torch.zeros(1, 2, 3, 40, 56)).shape == (1, 20, 8)


def test_numbers_never_change() -> None:
    """A known value: a change here would break every stored checkpoint."""
    ramp = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 1, 3, 64, 64)
    out = TinySemanticEncoder(grid=4, semantic_dim=48).encode(ramp)
    torch.testing.assert_close(out[0, 5, :3], torch.tensor([-1.19051, 0.827445, 1.788954]), atol=1e-5, rtol=0)
