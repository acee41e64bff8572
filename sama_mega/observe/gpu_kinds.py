"""What GPUs can do by their data sheets: the table behind the planner's figures and a run's share of the peak."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, create_model

from sama_mega.config import find_bundled, strict_yaml
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Name, Section
from sama_mega.config.validate import read_text, validate

TABLE_VARIABLE = "SAMA_MEGA_GPUS"
"""Names a user's own table."""

ShareOfPeak = Annotated[float, Field(gt=0.0, le=1.0)]
"""What is reached of a data sheet's rate."""
_OTHER_MAKE = re.compile(r"\b(pcie|nvl|mig|laptop|max-q)\b", re.IGNORECASE)
_BUNDLED = "slurm/gpus.yaml"
_NOUN = "table of GPUs"


class AchievedShares(Section):
    """What programs reach of a GPU's data sheet; the defaults are an H200's, as measured for other software.

    Attributes:
        gemm: Of the products' peak, by large products of matrices.
        attention_forward: Of the products' peak, by attention's forward pass.
        attention_backward: By its backward pass, over many keys.
        attention_half_keys: Keys at which the backward pass reaches half of that.
        memory: Of the memory's rate, by element-wise operations.
        encoders: Of the products' peak, by the frozen encoders.
        node: Of the rate to the other GPUs of the node.
        network: Of the rate to other nodes.
        measured: Whether gemm, attention and memory were measured on this kind.
    """

    model_config = ConfigDict(strict=False)

    gemm: ShareOfPeak = 0.688
    attention_forward: ShareOfPeak = 0.666
    attention_backward: ShareOfPeak = 0.627
    attention_half_keys: NonNegativeFloat = 430.0
    memory: ShareOfPeak = 0.756
    encoders: ShareOfPeak = 0.3
    node: ShareOfPeak = 0.8
    network: ShareOfPeak = 0.8
    measured: bool = False


class GpuKind(Section):
    """One kind of GPU; every rate is one GPU's, a second.

    Attributes:
        match: Words of the name that its driver gives, such as ``H200``.
        memory_gib: What a program can have of its memory.
        bfloat16_tflops: Dense products in bfloat16.
        float32_tflops: Products in float32 without tensor cores.
        memory_gbytes: Device memory, read and written together, GB/s.
        node_gbytes: To the other GPUs of the node, one direction, GB/s.
        network_gbytes: To other nodes, one direction, GB/s.
        host_gbytes: To the host's memory, one direction, GB/s.
        achieved: What programs reach of these rates.
    """

    model_config = ConfigDict(strict=False)

    match: Name
    memory_gib: PositiveFloat
    bfloat16_tflops: PositiveFloat
    float32_tflops: PositiveFloat
    memory_gbytes: PositiveFloat
    node_gbytes: PositiveFloat
    network_gbytes: PositiveFloat
    host_gbytes: PositiveFloat
    achieved: AchievedShares = AchievedShares()

    def peak_flops(self, precision: str) -> float:
        """Operations a second in `float32` or `bfloat16`."""
        return 1e12 * (self.bfloat16_tflops if precision == "bfloat16" else self.float32_tflops)


def load_gpu_kinds(file: Path | None = None, environ: Mapping[str, str] = os.environ) -> dict[str, GpuKind]:
    """Reads the table, and the user's beside it.

    Args:
        file: The user's table; None takes the one that `SAMA_MEGA_GPUS` names, if any.
        environ: Environment variables.

    Returns:
        Kinds by name; the user's replace those of the same name.

    Raises:
        ConfigError: A table is missing, is not YAML, or breaks a rule.
    """
    bundled = find_bundled(_BUNDLED)
    if bundled is None:
        raise ConfigError(f"{_BUNDLED} is not installed: install the package again")
    kinds = _read(bundled)
    if file is None and environ.get(TABLE_VARIABLE):
        file = Path(environ[TABLE_VARIABLE])
    return kinds if file is None else kinds | _read(file)


def kind_of_device(device_name: str, kinds: Mapping[str, GpuKind]) -> GpuKind | None:
    """The kind whose `match` is the longest in a driver's name for a device; None for an unknown one.

    A match is whole words: `H200` is no `GH200`. A slower make of a kind (PCIe, NVL, a MIG slice, a laptop's) is
    another kind, unless the match says that word too.
    """
    fitting = [kind for kind in kinds.values() if _is_named(device_name, kind.match)]
    return max(fitting, key=lambda kind: len(kind.match), default=None)


def _is_named(device_name: str, match: str) -> bool:
    around = re.split(rf"(?<![A-Za-z0-9]){re.escape(match)}(?![A-Za-z0-9])", device_name, maxsplit=1)
    return len(around) == 2 and not _OTHER_MAKE.search(" ".join(around))


def _read(path: Path) -> dict[str, GpuKind]:
    try:
        text = read_text(path, _NOUN)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {_NOUN}: give a YAML file like {_BUNDLED}") from None
    document = strict_yaml.parse_document(text, str(path), "a mapping of GPUs (H200:, ...)")
    kinds: dict[str, Any] = dict.fromkeys(document.values, (GpuKind, ...))
    table = create_model("GpuTable", __base__=Section, **kinds)
    loaded = validate(table, document, str(path), _NOUN)
    return {name: getattr(loaded, name) for name in document.values}
