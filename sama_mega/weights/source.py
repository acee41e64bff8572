"""Opens published weights, from safetensors or from Wan's `.pth`, and reads them tensor by tensor.

Tensors stay pages of their files until they are used. Nothing in a file is run: pickles are read by torch's
unpickler of weights alone, which refuses everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sama_mega.config.errors import ConfigError
from sama_mega.encoders.weights_folder import CONFIG_FILE, open_weights_folder, read_json
from sama_mega.weights.formats import SourceFormat, show_some

SAFETENSORS, _PICKLES = ".safetensors", (".pth", ".pt")
Shape = tuple[int, ...]
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        dtype: torch's name of it where torch has one, else the file's.
        shape: Whole.
        read: Returns it; its memory may be the file's, and is not to be written.
    """

    dtype: str
    shape: Shape
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Source:
    """Weights on disk.

    Attributes:
        path: What the user named.
        folder: Where the weights lie, when they are a folder.
        config: What `config.json` beside them says; empty without one.
        tensors: By the format's own names.
    """

    path: Path
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)


@contextmanager
def open_source(source_format: SourceFormat, path: Path) -> Iterator[Source]:
    """Opens weights of a format; the files stay open until the context ends.

    Args:
        source_format: ``diffusers``: a transformer's folder or that of a pipeline; ``wan``: a folder with `config.json`
            and safetensors, or one file; ``sama``: one safetensors file, or a folder that holds one.
        path: The folder or the file.

    Raises:
        ConfigError: There are no such weights, a file is damaged, or it wants to run code.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist: name the folder or the file of the weights to import")
    with ExitStack() as open_files:
        if path.is_dir() and source_format != "sama":
            folder = open_weights_folder(f"import {source_format}", path, "transformer")
            _require_plain_wan(folder.path)
            yield Source(path, folder.path, folder.config, _tensors_of(folder.files, open_files))
        else:
            file = _single_file(path) if path.is_dir() else path
            if source_format == "diffusers":
                raise ConfigError(f"{path} is a file: import diffusers reads a folder with {CONFIG_FILE}")
            if file.suffix in _PICKLES and source_format == "wan":
                tensors = _tensors_of_pickle(file)
            elif file.suffix == SAFETENSORS:
                tensors = _tensors_of((file,), open_files)
            else:
                endings = "" if source_format == "sama" else f" or {' or '.join(_PICKLES)}"
                raise ConfigError(
                    f"{file} must end in {SAFETENSORS}{endings}: pickles can run code and are not read as"
                    f" {source_format} weights"
                )
            beside = file.parent / CONFIG_FILE
            config = read_json("import wan", beside) if source_format == "wan" and beside.is_file() else {}
            yield Source(path, None, config, tensors)


def _require_plain_wan(folder: Path) -> None:
    """Refuses the Wan half of an editing model's export: the target's type would stay in its bias, the rest be lost."""
    editing = folder.parent / "editing"
    if folder.name == "transformer" and (editing / CONFIG_FILE).is_file():
        raise ConfigError(
            f"{folder} is part of an exported editing model, whose types and semantic parts ({editing}) no import"
            " reads: use the checkpoint that was exported, or its `export sama`"
        )


def _single_file(folder: Path) -> Path:
    files = sorted(folder.glob(f"*{SAFETENSORS}"))
    if len(files) != 1:
        raise ConfigError(f"{folder} holds {len(files)} files *{SAFETENSORS}: name the one to import")
    return files[0]


def open_safetensors(file: Path, open_files: ExitStack) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors of one file by name, and what its header says besides.

    Args:
        file: A safetensors file.
        open_files: Keeps it open.

    Raises:
        ConfigError: The file is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    try:
        content = open_files.enter_context(safe_open(file, framework="pt"))
        for name in content.keys():  # noqa: SIM118 - no dictionary
            described = content.get_slice(name)
            dtype = described.get_dtype()
            shape = tuple(described.get_shape())
            tensors[name] = StoredTensor(_DTYPES.get(dtype, dtype), shape, _reader(content, name, file))
        return tensors, content.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} cannot be read: {error}: fetch it again") from error


def _tensors_of(files: tuple[Path, ...], open_files: ExitStack) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        content, _ = open_safetensors(file, open_files)
        twice = sorted(tensors.keys() & content.keys())
        if twice:
            raise ConfigError(f"{file} holds {show_some(twice)}, which another file of the folder holds too")
        tensors |= content
    return tensors


def _reader(content: Any, name: str, file: Path) -> Callable[[], Tensor]:
    def read() -> Tensor:
        try:
            tensor: Tensor = content.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{file} cannot be read: {error}: fetch it again") from error
        return tensor

    return read


def _tensors_of_pickle(file: Path) -> dict[str, StoredTensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of many kinds: what it is, is in the message
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{file} is refused: it is damaged, or holds more than tensors and could run code ({first_line[:160]}): use"
            " the safetensors copy"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ConfigError(f"{file} is refused: it must hold tensors by name and nothing else")
    return {name: in_memory(tensor) for name, tensor in content.items()}


def in_memory(tensor: Tensor) -> StoredTensor:
    """A tensor that is read already."""
    return StoredTensor(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), lambda: tensor)
