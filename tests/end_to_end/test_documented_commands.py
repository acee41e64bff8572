"""Every command line in README and docs works: at demo size it is run, else parsed.

`tests/support/documented_commands.py` says what a line may be, `documented_runs.py` what runs, and how small.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import documented_commands
from tests.support.documented_commands import Line, UnknownLineError, check, inline_commands, pages, read_lines, unwrap
from tests.support.documented_runs import make_folder, shrink
from tests.support.tiny_recipe import call_main, tiny_world

SHOWN = frozenset({"train", "check", "edit", "evaluate", "data synth", "data probe", "data preview"})
MUST_RUN = {"README.md": SHOWN, "docs/getting_started.md": SHOWN}
"""By page, commands that run there: so that no change of a rule silently leaves them unrun."""
PAGES = [page for page in pages() if read_lines(page)]


@pytest.fixture(scope="module")
def after_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("after_demo") / "clone"
    folder.mkdir()
    make_folder(folder, tiny_world(tmp_path_factory))
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_bash(page: str) -> None:
    for number, block in documented_commands.blocks((documented_commands.REPOSITORY / page).read_text()):
        parsed = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, timeout=10)
        assert parsed.returncode == 0, f"{page}:{number}: {parsed.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_every_line_is_understood(page: str) -> None:
    for line in read_lines(page):
        try:
            check(line)
        except UnknownLineError as error:
            pytest.fail(f"{line}\n{error}")


@pytest.mark.parametrize("page", pages())
def test_commands_in_running_text_exist(page: str) -> None:
    for line in inline_commands(page):
        try:
            check(line)
        except UnknownLineError as error:
            if "Missing" not in str(error):  # `sama-mega submit` names a command and runs nothing
                pytest.fail(f"{line}\n{error}")


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_demo_size_run(
    page: str, after_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(after_demo, folder, symlinks=True)
    monkeypatch.chdir(folder)
    ran = set()
    for line in read_lines(page):
        commands = check(line)
        if len(commands) != 1 or line.commands[0][0] != "sama-mega":
            continue
        command = commands[0]
        arguments = shrink(command, unwrap(line.commands[0]) or [], folder)
        if arguments is not None:
            status = call_main(*arguments)
            assert status == line.status, f"{line}\nended with {status}:\n{capfd.readouterr().err}"
            ran.add(command.name)
    assert MUST_RUN.get(page, frozenset()) <= ran


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sama-mega trian recipes/demo_stage0.yaml", "no command trian"),
        ("sama-mega check recipes/demo_stage0.yaml --ranks 8", "--ranks"),
        ("sama-mega train recipes/demo_stage0.yaml train.step=3", "train.step"),
        ("sama-mega train recipes/demo_stage2.yaml", "no such recipe"),
        ("sama-mega submit recipes/demo_stage0.yaml --sweep train.sed=1,2", "train.sed"),
        ("torchrun --nproc-per-node 2 -m sama_mega train recipes/demo_stage0.yaml model.dim=3", "model.dim"),
        ("torchrun train.py", "no sama-mega command"),
        ("srun --ntasks=2 sama-mega verify recipes/demo_stage0.yaml --tpp 2", "--tpp"),
        ("sbatch slurm/stage3.sh", "no script"),
        ("sbatch --nodes=2 slurm/stage0.sh recipes/wan14b_stage0.yaml train.stps=3", "train.stps"),
        ("sbatch slurm/edit.sh runs/x clip.mp4 'Do.' --output e.mp4", "--output"),
        ("cd x && make domo", "domo"),
        ("pip install -e '.[encoder]'", "no extra encoder"),
        ("frobnicate --all", "SHELL_PROGRAMS"),
    ],
)
def test_a_line_that_cannot_work_is_told(text: str, problem: str) -> None:
    with pytest.raises(UnknownLineError, match=problem):
        check(Line("page.md", 1, text))
