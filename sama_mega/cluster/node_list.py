"""Node names as Slurm writes them: `gpu[007-009,012],cpu1`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sama_mega.config.errors import ConfigError

_NUMBERED = re.compile(r"^(.*?)(\d+)(\D*)$")
_BRACKETS = re.compile(r"^([^\[\]]*)\[([0-9,\s-]+)\](.*)$")
_LARGEST_LIST = 1 << 20


def compress_nodes(nodes: Iterable[str]) -> str:
    """Write node names the short way, which `sbatch --exclude` understands; each name once."""
    groups: dict[tuple[str, str], set[str]] = {}
    plain = set()
    for node in nodes:
        match = _NUMBERED.match(node)
        if match is None:
            plain.add(node)
        else:
            prefix, digits, suffix = match.groups()
            groups.setdefault((prefix, suffix), set()).add(digits)
    parts = sorted(plain)
    for (prefix, suffix), numbers in sorted(groups.items()):
        parts += [f"{prefix}{written}{suffix}" for written in _compress_digits(numbers)]
    return ",".join(parts)


def expand_nodes(node_list: str) -> list[str]:
    """Read Slurm's list of nodes, in its order.

    Raises:
        ConfigError: The list is not in Slurm's form.
    """
    nodes: list[str] = []
    for part in re.split(r",(?![^\[]*\])", node_list.strip()):
        nodes += _expand_brackets(part.strip(), node_list)
    return [node for node in nodes if node]


def join_ranges(numbers: Iterable[int], width: int = 0) -> str:
    """`0-3,8` for 0, 1, 2, 3 and 8, in whatever order.

    Args:
        numbers: Not negative.
        width: Digits at least, filled with zeros.
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    ends = [(f"{run[0]:0{width}d}", f"{run[-1]:0{width}d}") for run in runs]
    return ",".join(first if first == last else f"{first}-{last}" for first, last in ends)


def _compress_digits(digits: set[str]) -> list[str]:
    """Names' numbers in brackets where there are several; 08 and 8 are different names."""
    padded = {len(number) for number in digits if number.startswith("0") and len(number) > 1}
    by_width: dict[int, list[int]] = {}
    for number in digits:
        by_width.setdefault(len(number) if len(number) in padded else 0, []).append(int(number))
    written = [(join_ranges(numbers, width), len(numbers)) for width, numbers in sorted(by_width.items())]
    return [ranges if count == 1 else f"[{ranges}]" for ranges, count in written]


def _expand_brackets(name: str, whole: str) -> list[str]:
    match = _BRACKETS.match(name)
    if match is None:
        if "[" in name or "]" in name:
            raise ConfigError(f"the node list ({whole!r}) is not in Slurm's form, such as gpu[01-04,07]")
        return [name]
    prefix, ranges, rest = match.groups()
    endings = _expand_brackets(rest, whole)
    return [f"{prefix}{number}{ending}" for number in _expand_ranges(ranges, whole) for ending in endings]


def _expand_ranges(ranges: str, whole: str) -> list[str]:
    numbers: list[str] = []
    for part in ranges.split(","):
        first, _, last = (piece.strip() for piece in part.partition("-"))
        last = last or first
        if not (first.isdigit() and last.isdigit() and int(first) <= int(last) < int(first) + _LARGEST_LIST):
            raise ConfigError(f"the node list ({whole!r}) has a range ({part}) that is none: write it as 01-04")
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return numbers
