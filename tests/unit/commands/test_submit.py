"""`sama-mega submit`, with an sbatch and a scancel that write down what they are asked."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sama_data.manifest import Dataset, load_manifest
from sama_mega.__main__ import main
from sama_mega.commands import check
from sama_mega.config import load_recipe
from sama_mega.observe.environment import describe_git

RECIPES = sorted(path.name for path in (Path(__file__).resolve().parents[3] / "recipes").glob("*.yaml"))
SCANCEL = """#!/usr/bin/env bash
{ basename "$0"; printf '%s\\n' "$@" end; } >> "$RECORD"
[[ ${FAIL:-} != *scancel* ]] || { echo "scancel: error: not today" >&2; exit 1; }
"""
SBATCH = """#!/usr/bin/env bash
{ basename "$0"; printf '%s\\n' "$@" end; } >> "$RECORD"
number=$(grep -c '^sbatch$' "$RECORD")
[[ ${FAIL:-} != *sbatch$number* ]] || { echo "sbatch: error: Invalid qos" >&2; exit 1; }
echo "${ANSWER:-$((100 + number));cluster}"
"""


class Slurm:
    """The calls of a pretended Slurm."""

    def __init__(self, record: Path) -> None:
        self._record = record

    @property
    def calls(self) -> list[list[str]]:
        lines = self._record.read_text().splitlines() if self._record.exists() else []
        calls: list[list[str]] = [[]]
        for line in lines:
            if line == "end":
                calls.append([])
            else:
                calls[-1].append(line)
        return calls[:-1]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A project folder with manifests, and Slurm's commands on PATH."""
    project, programs = tmp_path / "a project", tmp_path / "bin"
    (project / "runs/demo/world").mkdir(parents=True)
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    pair = {"source": "a.mp4", "target": "b.mp4", "instruction": "c"}
    picture = {"source": "a.png", "target": "b.png", "instruction": "c"}
    for name, rows in (("raw", [{"video": "a.mp4", "caption": "a"}, picture]), ("pairs", [pair, picture])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (project / f"runs/demo/world/{name}.jsonl").write_text(text)
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.delenv("SAMA_MEGA_CLUSTER", raising=False)
    return Slurm(tmp_path / "record")


@pytest.fixture
def submit(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["submit", *arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def last_object(printed: str) -> dict[str, Any]:
    return json.loads(printed.splitlines()[-1])


def written() -> list[str]:
    """Files below runs/, without those of the snapshots' code."""
    paths = (str(path) for path in Path("runs").rglob("*") if path.is_file())
    return sorted(path for path in paths if "/code/" not in path and "/world/" not in path)


def test_a_chain_is_written_and_sent(slurm: Slurm, submit: Callable[..., Any], repo_root: Path) -> None:
    status, printed, errors = submit("recipes/demo_stage0.yaml", "train.steps=7", "--stages", "0,1", "--nodes", "2")
    assert (status, errors) == (0, "")
    folders = [Path.cwd() / f"runs/demo_stage{stage}/submissions/0001" for stage in (0, 1)]
    after_stage_0 = ["--dependency=afterok:101", "--kill-on-invalid-dep=yes"]
    assert slurm.calls == [
        ["sbatch", "--parsable", str(folders[0] / "stage0.sh")],
        ["sbatch", "--parsable", *after_stage_0, str(folders[1] / "stage1.sh")],
    ]
    names = ("recipe.yaml", "stage{}.sh", "submission.json")
    assert written() == [f"runs/demo_stage{s}/submissions/0001/{name.format(s)}" for s in (0, 1) for name in names]
    for stage, folder in enumerate(folders):
        assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n" in (folder / f"stage{stage}.sh").read_text()
        recipe = load_recipe(folder / "recipe.yaml")
        assert (recipe.train.stage, recipe.train.steps) == (stage, 7)
        assert recipe.checkpoint.init_from == (Path("runs/demo_stage0") if stage else None)
        noted = json.loads((folder / "submission.json").read_text())
        assert (noted["job_id"], noted["elements"][0]["overrides"]) == (str(101 + stage), ["train.steps=7"])
        assert json.loads((folder / "code/git.json").read_text()) == describe_git(repo_root / "sama_mega")
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    for stage in (0, 1):
        script = f"runs/demo_stage{stage}/submissions/0001/stage{stage}.sh"
        assert f"{stage} {101 + stage} 2 nodes x 1 task runs/demo_stage{stage} {script}" in rows
    for command in ("squeue --me", "tail -F runs/demo_stage1/slurm-102.log", "scancel 101 102"):
        assert command in printed


def test_what_does_not_fit_the_gpus_is_told_before_it_waits_in_the_queue(
    slurm: Slurm, submit: Callable[..., Any], tmp_path: Path
) -> None:
    # All weights and gradients of 60 wide blocks on every one of 8 GPUs.
    sizes = ("model.dim=5120", "model.num_heads=40", "model.ffn_dim=13824", "model.num_layers=60")
    batch = ("data.images_per_step=8", "data.videos_per_step=8", "checkpoint.init_from=null")
    large = ("recipes/demo_stage1.yaml", "train.precision=bfloat16", "train.cpu_threads=null", *sizes, *batch)
    _, printed, _ = submit(*large, "--dry-run")
    assert "warning    stage 1: does not fit: " in printed and "the H200 (assumed) has" in printed
    # What is named to type finds the same, and what fits.
    typed = printed.partition("`sama-mega ")[2].partition("`")[0]
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(typed))
    assert caught.value.code == 2 and shlex.split(typed)[:2] == ["check", large[0]]

    status, _, error = submit(*large, "--gpu", "A100")
    assert (status, slurm.calls) == (2, [])
    assert "the A100 has 79.2 GiB: `sama-mega check " in error and "--gpus-per-node 8 --gpu A100` names" in error
    (tmp_path / "cluster.yaml").write_text("gpu: A100\n")
    assert submit(*large, "--cluster", str(tmp_path / "cluster.yaml"))[0] == 2
    # Of a sweep, those elements are named that do not fit.
    others = [text for text in large if not text.startswith("model.num_layers=")]
    _, printed, _ = submit(*others, "--sweep", "model.num_layers=1,60", "--gpu", "A100", "--dry-run")
    assert printed.count("does not fit") == 1 and "model.num_layers=60 --gpus 8" in printed
    # CPU nodes have no such limit.
    assert "does not fit" not in submit("recipes/demo_stage1.yaml", "--gpu", "A100", "--dry-run")[1]
    status, _, error = submit("recipes/demo_stage1.yaml", "--gpu", "A1000", "--dry-run")
    assert status == 2 and "--gpu (A1000) must be in the table of GPUs" in error


def test_one_json_object_comes_last(slurm: Slurm, submit: Callable[..., Any]) -> None:
    _, printed, _ = submit("recipes/demo_stage0.yaml", "--stages", "0,1", "--json")
    report = last_object(printed)
    assert (report["ok"], report["dry_run"]) == (True, False)
    assert [(stage["stage"], stage["job_id"], stage["ranks"]) for stage in report["stages"]] == [
        (0, "101", 1),
        (1, "102", 1),
    ]
    assert report["stages"][0]["log"] == str(Path.cwd() / "runs/demo_stage0/slurm-101.log")
    assert Path(report["stages"][1]["script"]).is_file()


def test_a_sweep_is_one_array_and_stage_1_follows_element_by_element(slurm: Slurm, submit: Callable[..., Any]) -> None:
    status, printed, _ = submit("recipes/demo_stage0.yaml", "--stages", "0,1", "--sweep", "0:train.seed=5,6")
    assert status == 0
    assert "--dependency=aftercorr:101" in slurm.calls[1]
    for stage in (0, 1):
        folder = Path(f"runs/demo_stage{stage}/submissions/0001")
        script = (folder / f"stage{stage}.sh").read_text()
        assert "#SBATCH --array=0-1\n" in script and "slurm-%A_%a.log" in script
        assert 'train "$submission/recipes/$SLURM_ARRAY_TASK_ID.yaml"' in script
        recipes = [load_recipe(folder / f"recipes/{index}.yaml") for index in (0, 1)]
        assert [str(recipe.train.run_folder) for recipe in recipes] == [
            f"runs/demo_stage{stage}/sweep/000-seed=5",
            f"runs/demo_stage{stage}/sweep/001-seed=6",
        ]
        assert not (folder / "recipe.yaml").exists()
    assert recipes[1].checkpoint.init_from == Path("runs/demo_stage0/sweep/001-seed=6")
    assert "101_[0-1]" in printed and "slurm-102_0.log" in printed


def test_submissions_are_numbered(slurm: Slurm, submit: Callable[..., Any]) -> None:
    for number in (1, 2):
        assert submit("recipes/demo_stage0.yaml")[0] == 0
        assert slurm.calls[-1][-1].endswith(f"submissions/000{number}/stage0.sh")


def test_a_refused_second_stage_takes_the_first_back(
    slurm: Slurm, submit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "sbatch2")
    status, printed, errors = submit("recipes/demo_stage0.yaml", "--stages", "0,1", "--json")
    assert (status, printed) == (2, "")
    assert errors == (
        "error: sbatch refused stage 1: sbatch: error: Invalid qos; job 101, submitted before it, is cancelled\n"
    )
    assert slurm.calls[-1] == ["scancel", "101"]
    assert [path.name for path in Path("runs").iterdir()] == ["demo"]


def test_a_job_that_cannot_be_cancelled_keeps_its_code(
    slurm: Slurm, submit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "sbatch2 scancel")
    status, _, errors = submit("recipes/demo_stage0.yaml", "--stages", "0,1")
    assert status == 2
    assert "job 101 stays submitted: scancel refused to cancel 101: scancel: error: not today" in errors
    assert Path("runs/demo_stage0/submissions/0001/code/sama_mega").is_dir()


def test_a_refused_first_stage_leaves_nothing(
    slurm: Slurm, submit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("runs/demo_stage0").mkdir()
    Path("runs/demo_stage0/log.txt").write_text("an earlier life")
    monkeypatch.setenv("FAIL", "sbatch1")
    status, _, errors = submit("recipes/demo_stage0.yaml", "--stages", "0,1")
    assert (status, errors) == (2, "error: sbatch refused stage 0: sbatch: error: Invalid qos\n")
    assert len(slurm.calls) == 1
    assert written() == ["runs/demo_stage0/log.txt"] and not Path("runs/demo_stage0/submissions").exists()


def test_an_answer_without_a_number_is_no_submission(
    slurm: Slurm, submit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSWER", "hello")
    status, _, errors = submit("recipes/demo_stage0.yaml")
    assert status == 2 and "sbatch gave no job number for stage 0 but 'hello" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["parallel.tensor=3"], ["recipes/demo_stage0.yaml on 1 node x 1 task: parallel.tensor (3) must divide"]),
        (["parallel.tensor=2", "--nodes", "3"], ["on 3 nodes x 1 task", "start 2 ranks"]),
        (["--sweep", "parallel.tensor=1,3"], ["parallel.tensor (3) must divide"]),
        (["--sweep", "kernels.attention=reference,nope"], ["nope"]),
        (["--stages", "0,1", "1:parallel.tensor=3"], ["recipes/demo_stage1.yaml on 1 node"]),
        (["data.manifest=none.jsonl"], ["stage 0: none.jsonl: no such manifest; train will stop here: put it right"]),
        (["checkpoint.init_from=none"], ["checkpoint.init_from (none): no such checkpoint"]),
        (["--stages", "0,1", "train.run_folder=runs/x"], ["0:train.run_folder=runs/x/stage0"]),
        (["--time", "1h"], ['option --time: time ("1h") must be HH:MM:SS']),
        (["--cluster", "none.yaml"], ["none.yaml: no such cluster settings"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_happens(
    arguments: list[str], words: list[str], slurm: Slurm, submit: Callable[..., Any]
) -> None:
    status, printed, errors = submit("recipes/demo_stage0.yaml", *arguments)
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    for word in words:
        assert word in errors
    assert slurm.calls == [] and written() == []


def test_a_missing_start_of_stage_1_is_expected_in_a_chain_only(slurm: Slurm, submit: Callable[..., Any]) -> None:
    status, printed, _ = submit("recipes/demo_stage0.yaml", "--stages", "0,1")
    assert status == 0 and "no such checkpoint" not in printed
    status, _, errors = submit("recipes/demo_stage1.yaml", "train.run_folder=runs/other", "checkpoint.init_from=none")
    assert status == 2 and "checkpoint.init_from (none): no such checkpoint" in errors


def test_warnings_are_shown_once(slurm: Slurm, submit: Callable[..., Any]) -> None:
    status, printed, _ = submit("recipes/demo_stage0.yaml", "train.steps=20", "--sweep", "train.seed=1,2", "--json")
    assert status == 0
    text = "stage 0: optimizer.warmup_steps (50) never ends: train.steps is 20"
    assert printed.splitlines()[0] == f"warning    {text}"
    assert printed.count("warning    ") == 1 and last_object(printed)["warnings"] == [text]


def test_a_sweep_reads_its_manifest_once(
    slurm: Slurm, submit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def load(path: Path) -> Dataset:
        read.append(path)
        return load_manifest(path)

    monkeypatch.setattr(check, "load_manifest", load)
    assert submit("recipes/demo_stage0.yaml", "--sweep", "train.seed=1,2,3", "--dry-run")[0] == 0
    assert read == [Path("runs/demo/world/raw.jsonl")]


def test_settings_reach_the_script_and_options_win(slurm: Slurm, submit: Callable[..., Any]) -> None:
    Path("cluster.yaml").write_text("partition: slow\naccount: mine\ntime: 10:00:00\nvenv: envs/sama\n")
    options = ["--partition", "fast", "--time", "20:00:00", "--gpus-per-node", "4", "--cluster", "cluster.yaml"]
    assert submit("recipes/demo_stage0.yaml", *options)[0] == 0
    script = Path("runs/demo_stage0/submissions/0001/stage0.sh").read_text()
    expected = ("--partition=fast", "--account=mine", "--time=20:00:00", "--gpus-per-node=4", "--ntasks-per-node=4")
    for option in expected:
        assert f"#SBATCH {option}\n" in script
    assert f'export VIRTUAL_ENV="{Path.cwd()}/envs/sama"\n' in script
    assert f'export SAMA_MEGA_PYTHON="{Path.cwd()}/envs/sama/bin/python"\n' in script


def test_a_container_sees_what_the_job_reads_and_writes(slurm: Slurm, submit: Callable[..., Any]) -> None:
    elsewhere = Path.cwd().parent / "scratch"
    elsewhere.mkdir()
    Path("runs/linked").symlink_to(elsewhere)
    folders = ["0:train.run_folder=runs/linked/pre", f"1:train.run_folder={Path.cwd().parent}/other/edit"]
    image = ["--container-image", "image.sqsh"]
    status, printed, _ = submit("recipes/demo_stage0.yaml", "--stages", "0,1", *folders, *image, "--dry-run")
    assert status == 0
    here, other = Path.cwd(), Path.cwd().parent / "other/edit"
    first, second = (line for line in printed.splitlines() if "SAMA_MEGA_CONTAINER_MOUNTS" in line)
    behind_link = f"{elsewhere}/pre:{elsewhere}/pre"
    assert first == f'export SAMA_MEGA_CONTAINER_MOUNTS="{here}:{here},{behind_link}"'
    assert second == f'export SAMA_MEGA_CONTAINER_MOUNTS="{here}:{here},{other}:{other},{behind_link}"'
    assert printed.count("SAMA_MEGA_PYTHON=/opt/venv/bin/python") == 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_shows_its_scripts_without_slurm_and_data(
    recipe: str, tmp_path: Path, submit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    status, printed, errors = submit(f"recipes/{recipe}", "--dry-run", "--json")
    assert (status, errors) == (0, "")
    report = last_object(printed)
    (stage,) = report["stages"]
    assert (report["dry_run"], stage["job_id"], stage["gpus_per_node"]) == (True, None, 0 if "demo" in recipe else 8)
    assert f"==> {stage['script']} <==\n#!/usr/bin/env bash\n" in printed
    assert "no such manifest; train will stop here" in report["warnings"][0]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_the_chain(slurm: Slurm, submit: Callable[..., Any]) -> None:
    status, printed, _ = submit("recipes/demo_stage0.yaml", "--stages", "0,1", "--dry-run")
    assert status == 0
    assert "would run  sbatch --parsable --dependency=afterok:JOB_OF_STAGE_0 --kill-on-invalid-dep=yes " in printed
    assert slurm.calls == [] and written() == []


def test_without_slurm_the_fix_is_said(
    slurm: Slurm, submit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    status, _, errors = submit("recipes/demo_stage0.yaml")
    assert (status, written()) == (2, [])
    assert errors.startswith("error: sbatch is not on PATH: submit from a login node") and "--dry-run" in errors


def test_submit_needs_no_torch(repo_root: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from sama_mega.commands import submit; submit.run(sys.argv[1], dry_run=True)\n"
        "sys.exit('torch' in sys.modules)"
    )
    path = str(repo_root / "recipes/demo_stage0.yaml")
    environ = {**os.environ, "PYTHONPATH": f"{repo_root}:{repo_root}/kernels:{repo_root}/data"}
    subprocess.run([sys.executable, "-c", code, path], check=True, cwd=tmp_path, env=environ, timeout=60)
