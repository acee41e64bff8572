"""UMT5's encoder, as transformers builds it, behind the TextEncoder interface."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sama_mega.config.errors import ConfigError
from sama_mega.encoders.interface import Identity, arithmetic
from sama_mega.encoders.weights_folder import (
    WeightNames,
    WeightsFolder,
    digest_files,
    import_class,
    load_frozen,
    open_weights_folder,
)
from sama_mega.parallel.transfer import to_device

KEY = "encoders.text_path"
NEEDED_BY = "encoders.text (umt5)"
TOKENIZER_FILE = "tokenizer.json"
_NAMES = WeightNames(aliases={"encoder.embed_tokens.weight": "shared.weight"}, unread=("decoder.", "lm_head."))


class Umt5TextEncoder:
    """UMT5's last hidden states of a prompt's tokens, zero after them, as Wan reads them.

    Prompts are encoded one by one, without padding: a prompt's embedding does not depend on what else is in the batch,
    and a short one costs little. The authors pad first and mask; the numbers agree to rounding.
    """

    def __init__(self, path: Path, text_length: int, device: torch.device | str, dtype: torch.dtype) -> None:
        """Loads the weights and the tokenizer.

        Args:
            path: Folder of a UMT5 encoder, with `tokenizer.json` in it or in the folder `tokenizer` beside it; or of a
                pipeline that holds them as `text_encoder` and `tokenizer`.
            text_length: Tokens of a prompt, its end included; a longer one is cut.
            device: Where the weights live and the results appear.
            dtype: Of the weights and of the arithmetic.

        Raises:
            ConfigError: The folder does not hold a UMT5 encoder and its tokenizer, or a package is not installed.
        """
        folder = open_weights_folder(KEY, path, "text_encoder")
        kind = folder.config.get("model_type")
        if kind != "umt5":
            raise ConfigError(f"{folder.label} holds a model of type {kind}: it must be umt5")
        self._tokenizer_file = _find_tokenizer(folder)
        self._tokenizer = _load_tokenizer(self._tokenizer_file)
        import_class("ftfy", "fix_text", NEEDED_BY)
        config_class = import_class("transformers", "UMT5Config", NEEDED_BY)
        model_class = import_class("transformers", "UMT5EncoderModel", NEEDED_BY)
        self._model = load_frozen(
            lambda: model_class(config_class.from_dict(dict(folder.config))), folder, _NAMES, device, dtype
        )
        self._folder = folder
        self._dtype = dtype
        self._device = torch.device(device)
        self.max_tokens = text_length
        self.text_dim: int = self._model.config.d_model
        _require_matching_tokenizer(self._tokenizer, self._model.config, folder)

    def count_tokens(self, prompt: str) -> int:
        """Counts a prompt's tokens, its end included, before any truncation."""
        return len(self._token_ids(prompt))

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Encodes prompts to [B,text_length,text_dim] float32; longer prompts are cut, the rest of a row is zero."""
        out = torch.zeros(len(prompts), self.max_tokens, self.text_dim, device=self._device)
        for row, prompt in zip(out, prompts, strict=True):
            ids = self._token_ids(prompt)
            if len(ids) > self.max_tokens:
                ids = [*ids[: self.max_tokens - 1], ids[-1]]  # a cut prompt ends like a whole one
            hidden = self._model(input_ids=to_device(torch.tensor([ids]), self._device)).last_hidden_state
            row[: len(ids)] = hidden[0].float()
        return out

    def identity(self) -> Identity:
        """Weights, config, tokenizer, length and precision."""
        return {
            "encoder": "umt5",
            "weights": self._folder.digest(),
            "tokenizer": digest_files(KEY, [self._tokenizer_file]),
            "cleaning": "ftfy",
            "tokens": self.max_tokens,
            "arithmetic": arithmetic(self._dtype),
        }

    def _token_ids(self, prompt: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(clean_prompt(prompt)).ids
        return ids


def clean_prompt(prompt: str) -> str:
    """Cleans a prompt as Wan does: mended characters, resolved HTML entities, one space for every run of white space.

    Mending undoes wrong decodings and makes typographic quotes straight ones.

    Source: Wan2.1's tokenizer, ``clean="whitespace"``.
    """
    from ftfy import fix_text

    return " ".join(html.unescape(html.unescape(fix_text(prompt))).split())


def _find_tokenizer(folder: WeightsFolder) -> Path:
    places = [folder.path / TOKENIZER_FILE, folder.path.parent / "tokenizer" / TOKENIZER_FILE]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ConfigError(
            f"{folder.label} has no {TOKENIZER_FILE}, neither in it nor in {places[1].parent}: put UMT5's there"
        )
    return file


def _load_tokenizer(file: Path) -> Any:
    tokenizer_class = import_class("tokenizers", "Tokenizer", NEEDED_BY)
    try:
        tokenizer = tokenizer_class.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"{KEY}: {file} cannot be read: {error}") from error
    # A file may carry the settings of its last use.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _require_matching_tokenizer(tokenizer: Any, config: Any, folder: WeightsFolder) -> None:
    """Refuses a tokenizer of other weights: ids beyond the table would stop a GPU in the middle of a run."""
    num_words = tokenizer.get_vocab_size()
    if num_words > config.vocab_size:
        raise ConfigError(
            f"{folder.label}: its tokenizer has {num_words} words and the weights {config.vocab_size}: they do not"
            " belong together"
        )
    if tokenizer.encode("").ids != [config.eos_token_id]:
        raise ConfigError(
            f"{folder.label}: its tokenizer must end a prompt with token {config.eos_token_id} and add nothing else,"
            " as UMT5's does"
        )
