"""The hash text encoder: fixed on every machine, aware of words, places and neighbours."""

from __future__ import annotations

import math

import torch

from sama_mega.encoders.hash_text import HashTextEncoder, hashed_unit_vector, split_words


def test_words() -> None:
    """Case, brackets and punctuation do not matter."""
    assert split_words("[Video edit] Remove the RED circle.") == ["video", "edit", "remove", "the", "red", "circle"]


def test_rows_after_the_prompt_are_zero_and_others_are_not() -> None:
    """Every word has length sqrt(dim); what follows the prompt is zero."""
    encoder = HashTextEncoder(text_length=8, text_dim=64)
    out = encoder.encode(["remove the red circle", ""])
    assert out.shape == (2, 8, 64) and out.dtype == torch.float32
    torch.testing.assert_close(out[0].norm(dim=1), torch.tensor([math.sqrt(64.0)] * 4 + [0.0] * 4))
    assert not out[1].any()


def test_long_prompts_are_cut_and_counted() -> None:
    """count_tokens tells the true length, encode keeps the beginning."""
    encoder = HashTextEncoder(text_length=3, text_dim=64)
    assert encoder.count_tokens("one two three four") == 4
    torch.testing.assert_close(encoder.encode(["one two three four"]), encoder.encode(["one two three"]))


def test_order_and_neighbours_change_the_embedding() -> None:
    """Swapping two words changes every swapped row, but a word stays recognisable."""
    encoder = HashTextEncoder(text_length=4, text_dim=256)
    one, two = encoder.encode(["red circle blue square", "blue circle red square"])
    assert not torch.allclose(one[0], two[0])
    same_word = torch.cosine_similarity(one[0], two[2], dim=0)
    other_word = torch.cosine_similarity(one[0], two[0], dim=0)
    assert same_word > other_word + 0.2


def test_vectors_never_change() -> None:
    """The first numbers of a known vector: a change here would break every stored checkpoint."""
    vector = hashed_unit_vector("word:red", 64)
    torch.testing.assert_close(vector.norm(), torch.tensor(1.0))
    torch.testing.assert_close(
        vector[:4], torch.tensor([-0.0860224, 0.0071685, 0.1214117, 0.0735908]), atol=1e-6, rtol=0
    )


def test_vectors_are_nearly_orthogonal() -> None:
    """Different words share no direction."""
    vectors = torch.stack([hashed_unit_vector(f"word:{i}", 256) for i in range(40)])
    overlap = vectors @ vectors.t() - torch.eye(40)
    assert overlap.abs().max() < 0.35 and abs(float(overlap.mean())) < 0.02
