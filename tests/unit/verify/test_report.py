"""Relative errors, verdicts and the report that scripts read."""

from __future__ import annotations

import json

import pytest
import torch

from sama_mega.verify.report import Check, Report, compare


def test_error_is_relative_in_the_l2_norm() -> None:
    expected = torch.tensor([3.0, 4.0])
    check = compare("x", expected + torch.tensor([0.0, 0.0625]), expected, 0.0125)
    assert (check.error, check.limit, check.passed) == (0.0125, 0.0125, True)
    assert not compare("x", expected + torch.tensor([0.0, 0.125]), expected, 0.0125).passed


def test_error_is_computed_in_float64() -> None:
    """A difference that float32 sums would round away."""
    expected = torch.full((1000,), 1e4)
    ours = expected.double().clone()
    ours[0] += 1e-3
    assert compare("x", ours, expected, 0.0).error == pytest.approx(1e-3 / (1e4 * 1000**0.5))


def test_exact_means_exact() -> None:
    x = torch.tensor([1.0, 2.0])
    assert compare("x", x, x.clone(), 0.0).passed
    assert not compare("x", torch.nextafter(x, x + 1), x, 0.0).passed


def test_a_vanishing_tensor_is_compared_absolutely() -> None:
    assert compare("x", torch.zeros(3), torch.zeros(3), 0.0).passed
    assert compare("x", torch.full((4,), 1e-3), torch.zeros(4), 1e-4).error == pytest.approx(2e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_fail(value: float) -> None:
    assert not compare("x", torch.tensor([1.0, value]), torch.ones(2), 1e9).passed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_expectation_that_is_not_finite_says_so(value: float) -> None:
    check = compare("x", torch.ones(2), torch.tensor([1.0, value]), 1e9)
    assert (check.tensor, check.passed) == ("x (expected is not finite: it says nothing)", False)


def test_another_shape_fails_and_is_named() -> None:
    """Also one that would broadcast."""
    check = compare("head.head.bias", torch.ones(1, 4), torch.ones(4), 1e9)
    assert not check.passed
    assert "head.head.bias" in check.tensor
    assert "(1, 4)" in check.tensor


def test_worst_is_relative_to_its_limit() -> None:
    checks = (
        Check("loose", 0.5, 1.0),
        Check("tight", 0.01, 0.001),
        Check("exact and right", 0.0, 0.0),
        Check("fine", 1e-9, 1e-5),
    )
    report = Report(checks)
    assert not report.ok
    assert [check.tensor for check in report.worst_first] == ["tight", "loose", "fine", "exact and right"]
    for worst in (Check("exact and wrong", 1e-9, 0.0), Check("nan", float("nan"), 1.0), Check("i", float("inf"), 1.0)):
        assert Report((*checks, worst)).worst_first[0] == worst


def test_one_wrong_tensor_is_enough() -> None:
    right = Check("a", 0.0, 0.0)
    assert Report((right, right)).ok
    assert not Report((right, Check("b", 2e-5, 1e-5), right)).ok


def test_nothing_compared_is_not_equal() -> None:
    report = Report(())
    assert not report.ok
    assert report.to_json() == {"ok": False, "worst": None, "checks": []}


def test_json_has_the_contracts_keys() -> None:
    report = Report((Check("a", 0.0, 1e-5), Check("b", 2e-5, 1e-5)))
    assert json.loads(json.dumps(report.to_json())) == {
        "ok": False,
        "worst": {"tensor": "b", "error": 2e-5, "limit": 1e-5},
        "checks": [
            {"tensor": "b", "error": 2e-5, "limit": 1e-5},
            {"tensor": "a", "error": 0.0, "limit": 1e-5},
        ],
    }


def test_every_failed_tensor_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    failed = tuple(Check(f"wrong{i}", 1.0, 0.1) for i in range(12))
    Report((Check("right", 0.0, 0.1), *failed)).show("folder")
    printed = capsys.readouterr().out
    assert all(check.tensor in printed for check in failed)
    assert "13 compared, 12 wrong" in printed


# --- with a planted bug ---------------------------------------------------------------------------


RIGHT, WRONG = Check("right", 0.0, 0.1), Check("wrong", 1.0, 0.1)
NO_NUMBER = Check("no number", float("nan"), 0.1)


@pytest.mark.parametrize(
    ("must_break", "differing"),
    [
        ({"wrong", "no number"}, []),
        ({"wrong"}, ["no number"]),
        ({"wrong", "no number", "right"}, ["right"]),
        ({"right"}, ["no number", "right", "wrong"]),
        (set(), ["no number", "wrong"]),
    ],
)
def test_a_planted_bug_must_break_what_is_written_and_that_alone(
    must_break: set[str], differing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report((RIGHT, WRONG, NO_NUMBER), frozenset(must_break))
    assert report.not_as_written == differing
    assert not report.ok
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content.keys() == {"ok", "worst", "checks", "not_as_written"}
    assert content["not_as_written"] == differing
    assert content["worst"] == {"tensor": "no number", "error": None, "limit": 0.1}
    report.show("planted")
    printed = " ".join(capsys.readouterr().out.split())
    verdict = f"NOT as written: {', '.join(differing)}" if differing else "exactly the tensors it should break"
    assert f"planted bug: {verdict}" in printed


def test_without_a_planted_bug_nothing_is_said_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report((RIGHT, WRONG))
    assert "not_as_written" not in report.to_json()
    report.show("folder")
    assert "planted" not in capsys.readouterr().out
