"""What is wrong, and how the same thing on many nodes becomes one line."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sama_mega.cluster.node_list import compress_nodes


@dataclass(frozen=True)
class Problem:
    """One broken rule.

    Attributes:
        rule: Short name of the rule.
        node: The node at fault; None: the job as a whole.
        text: What is found and what must hold.
        fix: What to do. May be empty where the text says it.
        subject: Package, GPU or whatever else the rule is held against; problems of one rule, subject and fix are told
            in one line, their nodes together.
        is_error: Whether no rank may start; else it is a warning.
        is_input: Whether the command line is at fault, not the cluster.
        can_exclude: Whether it helps to submit again without the node.
    """

    rule: str
    node: str | None
    text: str
    fix: str = ""
    subject: str = ""
    is_error: bool = True
    is_input: bool = False
    can_exclude: bool = True


@dataclass(frozen=True)
class Finding:
    """Problems of one rule on several nodes, as one line.

    Attributes:
        rule: The rule.
        nodes: Sorted as they came; empty: the job as a whole.
        line: Nodes, value, rule and fix.
        is_error: As the problems'.
    """

    rule: str
    nodes: tuple[str, ...]
    line: str
    is_error: bool


def group_problems(problems: Iterable[Problem], all_nodes: Collection[str]) -> list[Finding]:
    """Makes one line of the problems that differ in nothing but their nodes and figures; errors first.

    Args:
        problems: As the rules found them.
        all_nodes: Every node of the job: leaving all of them out is no advice.
    """
    groups: dict[tuple[str, str, str, bool], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.rule, problem.subject, problem.fix, problem.is_error), []).append(problem)
    findings = [_join(group, all_nodes) for group in groups.values()]
    return sorted(findings, key=lambda finding: not finding.is_error)


def _join(problems: list[Problem], all_nodes: Collection[str]) -> Finding:
    first = problems[0]
    nodes = tuple(dict.fromkeys(problem.node for problem in problems if problem.node is not None))
    names = compress_nodes(nodes)
    text = first.text
    if any(problem.text != text for problem in problems):
        text += f" (on {first.node}; alike on the others)"
    line = ": ".join(part for part in (names, text, first.fix) if part)
    if first.can_exclude and nodes and set(nodes) < set(all_nodes):
        line += f", or leave it out with sbatch --exclude={names}"
    return Finding(first.rule, nodes, line, first.is_error)
