"""What a run records of its surroundings."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from sama_mega.observe import environment
from sama_mega.observe.environment import GIT_FILE, describe_code, describe_environment, describe_git


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").write_text("one = 1\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "first")
    return package


def test_a_clean_checkout(checkout: Path) -> None:
    git = describe_git(checkout)
    assert git is not None
    assert len(git["commit"]) == 40 and not git["dirty"] and git["diff"] == ""


def test_uncommitted_changes_are_recorded(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "code.py").write_text("one = 2\n")
    (checkout / "new.py").write_text("")
    git = describe_git(checkout)
    assert git is not None
    assert git["dirty"] and "+one = 2" in git["diff"] and not git["diff_cut"]
    assert git["status"] == [" M package/code.py", "?? package/new.py"]
    monkeypatch.setattr(environment, "_MAX_DIFF_CHARACTERS", 10)
    cut = describe_git(checkout)
    assert cut is not None and len(cut["diff"]) == 10 and cut["diff_cut"]


def test_a_package_below_a_foreign_checkout_has_no_commit(checkout: Path, tmp_path: Path) -> None:
    installed = tmp_path / ".venv" / "site-packages" / "sama_mega"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert describe_git(installed) is None


def test_a_snapshot_reports_the_commit_that_it_was_taken_from(checkout: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "runs" / "code"
    (snapshot / "package").mkdir(parents=True)
    assert describe_code(snapshot / "package") is None  # git does not track it
    noted = {"commit": "0" * 40, "dirty": True, "status": [], "diff": "+é", "diff_cut": False}
    (snapshot / GIT_FILE).write_text(json.dumps(noted))
    assert describe_code(snapshot / "package") == noted
    (snapshot / GIT_FILE).write_text("null")
    assert describe_code(snapshot / "package") is None
    assert describe_code(checkout) == describe_git(checkout) is not None


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_git(checkout) is None


def test_the_description_is_json_and_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.sys, "orig_argv", ["python", "-m", "sama_mega", "a b"])
    described = json.loads(json.dumps(describe_environment()))
    assert described["command"] == "python -m sama_mega 'a b'"
    assert described["versions"]["pydantic"] and described["hostname"] and described["process_id"]
