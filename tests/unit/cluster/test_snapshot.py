"""Snapshots: what they hold, and that a job runs them and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sama_mega.cluster.job_script import JobScript, render
from sama_mega.cluster.settings import ClusterSettings
from sama_mega.cluster.snapshot import (
    claim_submission,
    locate_code,
    next_submission,
    remove_submission,
    write_snapshot,
)
from sama_mega.config.errors import ConfigError

GIT = {"commit": "c0ffee" * 6 + "c0ff", "dirty": False, "status": [], "diff": "", "diff_cut": False}


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    folder = claim_submission(tmp_path / "runs/mine")
    write_snapshot(folder, locate_code(), GIT, {"recipe.yaml": "a: 1\n", "recipes/0.yaml": "a: 2\n"})
    return folder


def run_python(code: str, cwd: Path, **variables: str) -> str:
    environ = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_snapshot_is_laid_out_like_the_clone(submission: Path, repo_root: Path) -> None:
    code = submission / "code"
    assert {path.name for path in code.iterdir()} == {
        *("sama_mega", "kernels", "data", "slurm", "recipes", "pyproject.toml", "git.json")
    }
    for file in ("sama_mega/__main__.py", "kernels/sama_kernels/adaln/reference.py", "data/sama_data/loader.py"):
        assert (code / file).read_bytes() == (repo_root / file).read_bytes()
    assert (code / "slurm/entrypoint.sh").is_file() and (code / "recipes/wan14b_stage0.yaml").is_file()
    assert (submission / "recipe.yaml").read_text() == "a: 1\n"
    assert (submission / "recipes/0.yaml").read_text() == "a: 2\n"
    assert json.loads((code / "git.json").read_text()) == GIT


def test_what_is_no_code_is_left_out(tmp_path: Path) -> None:
    for file in ("one.py", "inner/two.py", "inner/__pycache__/two.cpython-311.pyc", "old.pyc", ".git/HEAD", ".idea"):
        (tmp_path / "source" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / file).write_text("")
    write_snapshot(tmp_path / "out", {"sama_mega": tmp_path / "source"}, None, {})
    copied = (path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert sorted(map(str, copied)) == ["code/git.json", "code/sama_mega/inner/two.py", "code/sama_mega/one.py"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """Somebody keeps a link to terabytes of clips beside the recipes."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/clips").symlink_to(tmp_path / "clips")
    write_snapshot(tmp_path / "out", {"recipes": tmp_path / "recipes"}, None, {})
    copied = tmp_path / "out/code/recipes/clips"
    assert copied.is_symlink() and copied.resolve() == tmp_path / "clips"


def test_a_job_runs_the_snapshot_and_not_what_is_installed_or_lies_in_its_folder(
    submission: Path, tmp_path: Path, repo_root: Path
) -> None:
    code = submission / "code"
    for package in ("sama_mega", "kernels/sama_kernels", "data/sama_data"):
        with (code / package / "__init__.py").open("a") as file:
            file.write('\n__version__ = "of the snapshot"\n')
    stub = (
        '"$SAMA_MEGA_PYTHON" -m sama_mega --version; "$SAMA_MEGA_PYTHON" -c '
        '"import sama_kernels, sama_data; print(sama_kernels.__version__, sama_data.__version__)"\n'
    )
    (code / "slurm/job.sh").write_text(stub)
    # A clone in the working directory and, in the interpreter's own folders, an editable install.
    run_folder = tmp_path / "runs/mine"
    job = JobScript(0, 1, 0, repo_root, run_folder, submission, Path(sys.executable), ClusterSettings())
    environ = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-c", render(job)], cwd=repo_root, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["sama-mega of the snapshot", "of the snapshot of the snapshot"]


def test_a_job_reports_the_commit_of_its_submission(submission: Path, repo_root: Path) -> None:
    code = (
        "import json; from sama_mega.observe.environment import describe_environment\n"
        "print(json.dumps(describe_environment()['git']))"
    )
    assert json.loads(run_python(code, repo_root, PYTHONPATH=str(submission / "code"), PYTHONSAFEPATH="1")) == GIT


def test_an_installed_wheel_can_be_copied_and_its_copy_again(tmp_path: Path, repo_root: Path) -> None:
    installed = tmp_path / "site-packages"
    for package in ("sama_mega", "kernels/sama_kernels", "data/sama_data"):
        shutil.copytree(repo_root / package, installed / Path(package).name)
    for folder in ("recipes", "slurm"):
        shutil.copytree(repo_root / folder, installed / "sama_mega/_bundled" / folder)
    take = "from pathlib import Path; from sama_mega.cluster.snapshot import *\n"
    for folder, search in (("one", str(installed)), ("two", "one/code:one/code/kernels:one/code/data")):
        code = f"{take}write_snapshot(Path({folder!r}), locate_code(), None, {{}})"
        run_python(code, tmp_path, PYTHONPATH=search, PYTHONSAFEPATH="1")
        copied = tmp_path / folder / "code"
        assert {path.name for path in copied.iterdir()} == {
            *("sama_mega", "kernels", "data", "slurm", "recipes", "git.json")
        }
        assert (copied / "slurm/entrypoint.sh").is_file()
    find = "from sama_mega.config import find_bundled; print(find_bundled('recipes/demo_stage0.yaml'))"
    found = run_python(find, tmp_path, PYTHONPATH=str(tmp_path / "two/code"), PYTHONSAFEPATH="1")
    assert found == str(tmp_path / "two/code/sama_mega/_bundled/recipes/demo_stage0.yaml")


def test_numbers_of_submissions_are_claimed_once(tmp_path: Path) -> None:
    run_folder = tmp_path / "runs/mine"
    assert next_submission(run_folder).name == "0001" and not run_folder.exists()
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim_submission(run_folder).name, range(24)))
    assert sorted(claimed) == [f"{number:04d}" for number in range(1, 25)]
    (run_folder / "submissions/notes").mkdir()
    assert next_submission(run_folder).name == "0025"


def test_a_removed_submission_leaves_what_was_there_before(tmp_path: Path) -> None:
    empty, used = tmp_path / "empty", tmp_path / "used"
    used.mkdir()
    (used / "log.txt").write_text("")
    for run_folder in (empty, used):
        remove_submission(claim_submission(run_folder))
    assert not empty.exists()
    assert [path.name for path in used.iterdir()] == ["log.txt"]


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/run cannot be written: Not a directory"):
        claim_submission(tmp_path / "file/run")
