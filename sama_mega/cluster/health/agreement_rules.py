"""What must be the same on all nodes: Python, packages, the framework's own code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from sama_mega.cluster.health.probes import digest_all
from sama_mega.cluster.health.problems import Problem
from sama_mega.cluster.health.world import World

_FIX = "use the same environment on every node"
_CODE_FIX = "use the same clone on every node"


def agreement_problems(world: World) -> list[Problem]:
    """Every node whose software differs from that of most nodes, or of the first where there is no majority."""
    pythons = {node.name: ", ".join(sorted({report.python for report in node.reports})) for node in world.nodes}
    problems = list(_version_problems("Python", pythons))
    software = {node.name: node.software for node in world.nodes if node.software is not None}
    for package in sorted({package for facts in software.values() for package in facts.versions}):
        versions = {node: facts.versions.get(package) for node, facts in software.items()}
        problems += _version_problems(package, versions)
    problems += _code_problems({node: facts.code for node, facts in software.items()})
    return problems


def find_reference(values: Mapping[str, str | None]) -> str:
    """The first node that has what most nodes have; without a majority, the first node.

    Args:
        values: By node, in order; None: it has none.
    """
    (value, count), *_ = Counter(values.values()).most_common(1)
    if 2 * count <= len(values):
        value = next(iter(values.values()))
    return next(node for node, own in values.items() if own == value)


def _version_problems(package: str, versions: Mapping[str, str | None]) -> Iterator[Problem]:
    reference = find_reference(versions)
    for node, version in versions.items():
        if version != versions[reference]:
            own = f"{package} is {version or 'not installed'}"
            text = f"{own}, on {reference} it is {versions[reference] or 'not installed'}; nodes must agree"
            yield Problem("version", node, text, _FIX, subject=f"{package} {version}")


def _code_problems(code: Mapping[str, Mapping[str, str]]) -> Iterator[Problem]:
    if not code:
        return
    digests = {node: digest_all(files) for node, files in code.items()}
    reference = find_reference(digests)
    for node, digest in digests.items():
        if digest != digests[reference]:
            text = (
                f"the code is {digest} ({_describe_difference(code[node], code[reference])}), "
                f"on {reference} it is {digests[reference]}; nodes must agree"
            )
            yield Problem("code", node, text, _CODE_FIX, subject=digest)


def _describe_difference(own: Mapping[str, str], other: Mapping[str, str]) -> str:
    different = sorted(place for place in own.keys() | other.keys() if own.get(place) != other.get(place))
    more = len(different) - 1
    return f"{different[0]}{f' and {more} more files' if more > 1 else ' and 1 more file' if more else ''}"
