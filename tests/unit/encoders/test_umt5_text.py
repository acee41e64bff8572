"""UMT5: what transformers computes of the prompt's tokens, zero after them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sama_mega.encoders.umt5_text import Umt5TextEncoder, clean_prompt
from tests.support.pretrained_folders import END_TOKEN, pretrained_weights

PRECISIONS = (torch.float32, torch.bfloat16)
LENGTH = 12
PROMPTS = ["a red circle", "[Video edit] make it bigger", "remove the blue square of a red video"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained_weights(tmp_path_factory)


def reference(root: Path, dtype: torch.dtype) -> Any:
    """transformers' own loader."""
    from transformers import UMT5EncoderModel

    return UMT5EncoderModel.from_pretrained(root / "text_encoder", dtype=dtype, local_files_only=True).eval()


def reference_ids(root: Path, prompt: str, **options: Any) -> Any:
    """transformers' own tokenizer."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(root / "tokenizer" / "tokenizer.json"), pad_token="<pad>")
    return tokenizer(prompt, return_tensors="pt", **options)


@pytest.mark.parametrize("dtype", PRECISIONS)
@torch.no_grad()
def test_embeddings_are_the_last_hidden_states_and_zero_beyond(root: Path, dtype: torch.dtype) -> None:
    model = reference(root, dtype)
    embeddings = Umt5TextEncoder(root, 30, "cpu", dtype).encode(PROMPTS)
    assert embeddings.dtype == torch.float32 and embeddings.shape == (3, 30, 24)
    for embedding, prompt in zip(embeddings, PROMPTS, strict=True):
        ids = reference_ids(root, prompt, padding=False)["input_ids"]
        length = ids.shape[1]
        assert ids[0, -1] == END_TOKEN and 3 < length < 30
        assert torch.equal(embedding[:length], model(input_ids=ids).last_hidden_state[0].float())
        assert not embedding[length:].any() and embedding[:length].abs().sum(-1).min() > 0


@torch.no_grad()
def test_padding_first_as_the_authors_do_gives_the_same_numbers(root: Path) -> None:
    model = reference(root, torch.float32)
    inputs = reference_ids(root, PROMPTS[0], padding="max_length", max_length=30)
    hidden = model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
    expected = hidden * inputs["attention_mask"][..., None]
    ours = Umt5TextEncoder(root, 30, "cpu", torch.float32).encode(PROMPTS[:1])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [3, 5, 8])
@torch.no_grad()
def test_a_long_prompt_is_cut_and_still_ends(root: Path, length: int) -> None:
    encoder = Umt5TextEncoder(root, length, "cpu", torch.float32)
    assert encoder.max_tokens == length and encoder.text_dim == 24
    count = encoder.count_tokens(PROMPTS[2])
    assert count == reference_ids(root, PROMPTS[2], padding=False)["input_ids"].shape[1] > 8
    ids = reference_ids(root, PROMPTS[2], padding=False, truncation=True, max_length=length)["input_ids"]
    assert ids.shape[1] == length and ids[0, -1] == END_TOKEN
    expected = reference(root, torch.float32)(input_ids=ids).last_hidden_state
    assert torch.equal(encoder.encode(PROMPTS[2:]), expected)


def test_an_empty_prompt_is_its_end_alone(root: Path) -> None:
    encoder = Umt5TextEncoder(root, LENGTH, "cpu", torch.float32)
    embedding = encoder.encode([""])
    assert encoder.count_tokens("") == 1 and embedding[0, 0].any() and not embedding[0, 1:].any()
    assert encoder.encode([]).shape == (0, LENGTH, 24)


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  a\tred\n\ncircle ", "a red circle"),
        ("cats &amp; dogs", "cats & dogs"),
        ("1 &amp;lt; 2", "1 < 2"),
        ("the man\u2019s \u201cred\u201d hat", 'the man\'s "red" hat'),
        ("a cafÃ©", "a café"),
        ("\u00a0a\u3000b", "a b"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned(root: Path, prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned
    encoder = Umt5TextEncoder(root, LENGTH, "cpu", torch.float32)
    assert torch.equal(encoder.encode([prompt]), encoder.encode([cleaned]))


def test_words_and_their_order_matter(root: Path) -> None:
    encoder = Umt5TextEncoder(root, LENGTH, "cpu", torch.float32)
    first, second, third = encoder.encode(["a red circle", "a circle red", "a blue circle"])
    assert not torch.equal(first, second) and not torch.equal(first, third)
