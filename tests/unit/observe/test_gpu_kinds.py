"""The table of GPUs: the one that travels with the package, and a user's beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sama_mega.config.errors import ConfigError
from sama_mega.observe.gpu_kinds import kind_of_device, load_gpu_kinds

OURS = (
    "L40S: {match: L40S, memory_gib: 44, bfloat16_tflops: 362, float32_tflops: 91, memory_gbytes: 864,"
    " node_gbytes: 32, network_gbytes: 25, host_gbytes: 32}\n"
)


def test_the_built_in_kinds_and_their_peak() -> None:
    kinds = load_gpu_kinds(environ={})
    assert list(kinds) == ["A100", "H100", "H200", "B200"]
    assert kinds["H200"].peak_flops("bfloat16") == 989e12
    assert kinds["A100"].peak_flops("float32") == 19.5e12


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_users_table_comes_beside_it(tmp_path: Path, by_variable: bool) -> None:
    path = tmp_path / "gpus.yaml"
    path.write_text(OURS + OURS.replace("L40S:", "H200:", 1).replace("memory_gib: 44", "memory_gib: 90"))
    kinds = load_gpu_kinds(None if by_variable else path, {"SAMA_MEGA_GPUS": str(path)} if by_variable else {})
    assert kinds["L40S"].memory_gib == 44 and kinds["H200"].memory_gib == 90 and kinds["B200"].memory_gib > 170


def test_the_longest_match_of_a_drivers_name_wins(tmp_path: Path) -> None:
    path = tmp_path / "gpus.yaml"
    path.write_text(OURS.replace("match: L40S", "match: NVIDIA H100 NVL").replace("L40S", "H100-NVL", 1))
    kinds = load_gpu_kinds(path, {})
    assert kind_of_device("NVIDIA H100 NVL", kinds) is kinds["H100-NVL"]
    assert kind_of_device("NVIDIA H100 80GB HBM3", kinds) is kinds["H100"]
    assert kind_of_device("Graphics X", kinds) is None


@pytest.mark.parametrize(
    ("device_name", "kind"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-PCIE-40GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
    ],
)
def test_a_name_that_only_holds_a_kinds_letters_is_another_kind(device_name: str, kind: str | None) -> None:
    kinds = load_gpu_kinds(environ={})
    assert kind_of_device(device_name, kinds) is (None if kind is None else kinds[kind])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (OURS.replace("memory_gib: 44", "memory_gib: 0"), "L40S.memory_gib (0)"),
        (OURS.replace("memory_gib", "memory_gb"), "the nearest is L40S.memory_gib"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "gpus.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_gpu_kinds(path, {})
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such table of GPUs"):
        load_gpu_kinds(None, {"SAMA_MEGA_GPUS": str(tmp_path / "no.yaml")})
