"""Folders of pretrained weights, as diffusers and transformers save them: `config.json` and safetensors files.

Loading is strict: every tensor that the config asks for is there with its shape, and no other. Pickled weights are not
read, since reading them can run code.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sama_mega.config.errors import ConfigError

CONFIG_FILE = "config.json"
_WHOLE = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class WeightsFolder:
    """One model's weights on disk.

    Attributes:
        key: The recipe's key that named the folder, for messages.
        path: The folder that holds the config and the weights.
        config: What `config.json` says.
        files: The safetensors files, sorted.
    """

    key: str
    path: Path
    config: Mapping[str, Any]
    files: tuple[Path, ...]

    @property
    def label(self) -> str:
        """How messages begin."""
        return f"{self.key} ({self.path})"

    def digest(self) -> str:
        """A digest of config and weights: every byte of them is read, a thread for each file.

        Raises:
            ConfigError: A file cannot be read.
        """
        return digest_files(self.key, (self.path / CONFIG_FILE, *self.files))


@dataclass(frozen=True)
class WeightNames:
    """What the model and the folder may call the same tensor, and what the model does not read.

    Attributes:
        strip: Left out at the start of names on both sides, for models that are saved inside larger ones.
        aliases: From a second name of a parameter, after `strip`, to its first; a folder holds one of them or both.
        unread: Beginnings of names, after `strip`, of tensors that belong to parts which are not built.
    """

    strip: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def common(self, name: str) -> str:
        """The name that both sides agree on."""
        short = name.removeprefix(self.strip)
        return self.aliases.get(short, short)


def open_weights_folder(key: str, path: Path, component: str) -> WeightsFolder:
    """Finds a model's config and weights.

    Args:
        key: The recipe's key that named the folder.
        path: An existing folder: the model's own, or that of a pipeline which holds it as `component`.
        component: The model's folder inside a pipeline: `vae`.

    Raises:
        ConfigError: It lacks a config or safetensors files.
    """
    found = next((folder for folder in (path, path / component) if (folder / CONFIG_FILE).is_file()), None)
    if found is None:
        raise ConfigError(
            f"{key} ({path}) holds neither {CONFIG_FILE} nor {component}/{CONFIG_FILE}: name a folder as diffusers and"
            " transformers save it"
        )
    return WeightsFolder(key, found, read_json(key, found / CONFIG_FILE), _weight_files(key, found))


def read_json(key: str, path: Path) -> dict[str, Any]:
    """Reads a JSON object that travels with weights.

    Raises:
        ConfigError: The file cannot be read or is no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{key}: {path} must hold a JSON object")
    return content


def digest_files(key: str, files: Sequence[Path]) -> str:
    """A digest of files' contents, whatever they are called.

    Raises:
        ConfigError: One of them cannot be read; the message begins with `key`.
    """
    try:
        with ThreadPoolExecutor(max_workers=len(files)) as threads:
            digests = list(threads.map(_digest_file, files))
    except OSError as error:
        raise ConfigError(f"{key}: {error.filename} cannot be read: {error.strerror}") from error
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def import_class(package: str, name: str, needed_by: str) -> Any:
    """Imports a class of an optional package, seconds long, when an encoder needs it.

    Raises:
        ConfigError: The package is not installed, or lacks the class or a package itself.
    """
    try:
        return getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError, RuntimeError) as error:  # RuntimeError: of their lazy imports
        raise ConfigError(
            f"{needed_by} needs {name} of the package {package}, which cannot be imported ({error}): pip install"
            " 'sama-mega[encoders]'"
        ) from error


def load_frozen(
    build: Callable[[], Module],
    folder: WeightsFolder,
    names: WeightNames,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Module:
    """Builds a model and fills it with a folder's weights, tensor by tensor, straight onto the device.

    Args:
        build: Makes the model from the folder's config; runs on the meta device, so nothing is drawn or allocated.
        folder: The weights.
        names: Which of them the model reads.
        device: Where the model lives.
        dtype: Of its parameters, whatever the files hold.

    Returns:
        The model, for evaluation, without gradients. Buffers that are not saved are still on the meta device.

    Raises:
        ConfigError: The config is not one of this model, a file is damaged, or a tensor is missing, left over or of
            another shape.
    """
    try:
        with torch.device("meta"):
            model = build()
    except Exception as error:  # their configs check themselves with errors of many kinds
        raise ConfigError(f"{folder.label}: {CONFIG_FILE} does not describe this model: {error}") from error
    wanted = {names.common(name): tensor for name, tensor in model.state_dict().items()}
    loaded = _read_tensors(folder, names, wanted, device, dtype)
    missing = sorted(wanted.keys() - loaded.keys())
    if missing:
        raise ConfigError(
            f"{folder.label} lacks {len(missing)} of the {len(wanted)} tensors that its {CONFIG_FILE} asks for, such as"
            f" {missing[0]}: fetch the folder again, whole"
        )
    model.load_state_dict({name: loaded[names.common(name)] for name in model.state_dict()}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _digest_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _weight_files(key: str, folder: Path) -> tuple[Path, ...]:
    for name in _WHOLE:
        if (folder / name).is_file():
            return (folder / name,)
    for name in _WHOLE:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _sharded_files(key, index)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise ConfigError(
            f"{key} ({folder}) holds {pickles[0]} and no {_WHOLE[0]}: pickled weights can run code and are not read:"
            " use a copy in safetensors"
        )
    raise ConfigError(f"{key} ({folder}) holds no weights: {' or '.join(_WHOLE)} must lie beside {CONFIG_FILE}")


def _sharded_files(key: str, index: Path) -> tuple[Path, ...]:
    places = read_json(key, index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ConfigError(f"{key}: {index} names no weight_map: fetch the folder again, whole")
    files = sorted({index.parent / name for name in places.values()})
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise ConfigError(f"{key} ({index.parent}) lacks {absent[0]}, which {index.name} names: fetch it again, whole")
    return tuple(files)


def _read_tensors(
    folder: WeightsFolder,
    names: WeightNames,
    wanted: Mapping[str, Tensor],
    device: torch.device | str,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The wanted tensors by the name that both sides agree on, refusing others."""
    loaded: dict[str, Tensor] = {}
    left_over: list[str] = []
    for file in folder.files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for stored in tensors.keys():  # noqa: SIM118 (no mapping)
                    name = names.common(stored)
                    if name in wanted:
                        value = tensors.get_tensor(stored)
                        _require_shape(folder, name, value, wanted[name])
                        # A copy: without one, float32 weights would stay pages of the file.
                        loaded[name] = value.to(device, dtype, copy=True)
                    elif not name.startswith(names.unread):
                        left_over.append(name)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{folder.key}: {file} cannot be read: {error}: fetch it again") from error
    if left_over:
        raise ConfigError(
            f"{folder.label} holds {len(left_over)} tensors that its {CONFIG_FILE} does not ask for, such as"
            f" {min(left_over)}: weights and config do not belong together"
        )
    return loaded


def _require_shape(folder: WeightsFolder, name: str, value: Tensor, expected: Tensor) -> None:
    if value.shape != expected.shape:
        raise ConfigError(
            f"{folder.label}: {name} has the shape {list(value.shape)} and {CONFIG_FILE} asks for"
            f" {list(expected.shape)}: weights and config do not belong together"
        )
