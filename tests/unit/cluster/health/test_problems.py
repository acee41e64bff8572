"""Many nodes with one problem are one line."""

from __future__ import annotations

from sama_mega.cluster.health.problems import Problem, group_problems

NODES = [f"gpu{number:03d}" for number in range(1, 129)]


def told(problems: list[Problem], nodes: list[str]) -> list[str]:
    return [finding.line for finding in group_problems(problems, nodes)]


def test_one_problem_of_all_nodes_is_one_line_and_no_advice_to_leave_all_out() -> None:
    problems = [Problem("disk", node, "it is full", "delete something") for node in NODES]
    assert told(problems, NODES) == ["gpu[001-128]: it is full: delete something"]


def test_some_nodes_can_be_left_out() -> None:
    problems = [Problem("disk", node, "it is full", "delete something") for node in NODES[:3]]
    assert told(problems, NODES) == [
        "gpu[001-003]: it is full: delete something, or leave it out with sbatch --exclude=gpu[001-003]"
    ]
    problems = [Problem("disk", "gpu001", "it is full", "delete something", can_exclude=False)]
    assert told(problems, NODES) == ["gpu001: it is full: delete something"]


def test_figures_that_differ_are_the_first_nodes() -> None:
    problems = [Problem("disk", "n1", "0.1 GiB free"), Problem("disk", "n2", "0.2 GiB free")]
    assert told(problems, ["n1", "n2"]) == ["n[1-2]: 0.1 GiB free (on n1; alike on the others)"]


def test_other_subjects_fixes_and_rules_are_other_lines() -> None:
    problems = [
        Problem("version", "n1", "torch", subject="torch"),
        Problem("version", "n2", "numpy", subject="numpy"),
        Problem("version", "n1", "torch", "a fix", subject="torch"),
        Problem("disk", "n1", "torch", subject="torch"),
    ]
    assert len(told(problems, ["n1", "n2", "n3"])) == 4


def test_errors_come_first_and_the_job_has_no_node() -> None:
    findings = group_problems(
        [Problem("a", "n1", "odd", is_error=False), Problem("b", None, "wrong", "do this")], ["n1"]
    )
    assert [(finding.line, finding.is_error) for finding in findings] == [("wrong: do this", True), ("n1: odd", False)]
    assert [(finding.rule, finding.nodes) for finding in findings] == [("b", ()), ("a", ("n1",))]
