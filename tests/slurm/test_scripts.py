"""What the scripts ask Slurm for, with stand-ins for its commands: shapes and containers that no test cluster has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.tiny_recipe import REPOSITORY

SLURM = REPOSITORY / "slurm"
JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "96", "SLURMD_NODENAME": "gpu01"}
GPUS = {"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "2"}


class Stage:
    """A folder of stand-ins that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_path = folder / "calls"
        self.calls_path.touch()
        self.stand_in("srun", 'exit "${SRUN_STATUS:-0}"')
        self.stand_in("scontrol", 'exit "${SCONTROL_STATUS:-0}"')
        self.stand_in("scancel", "")
        self.stand_in("sleep", "")
        # The Python of the ranks; asked whether the job starts again, it says what the test wants.
        self.stand_in("python", 'for word in "$@"; do [[ $word != job-ended ]] || echo "${DECISION-done}"; done')

    def stand_in(self, name: str, then: str) -> None:
        path = self.folder / name
        # A Python is asked first whether it has the package; the stand-in has.
        path.write_text(
            f'#!/usr/bin/env bash\n[[ $1 != -c ]] || exit 0\nprintf "%s\\n" "{name} $*" >> {self.calls_path}\n{then}\n'
        )
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self.folder}:{os.environ['PATH']}", "SAMA_MEGA_PYTHON": str(self.folder / "python")}
        command = ["bash", str(SLURM / script), *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**environment, **JOB, **variables},
            capture_output=True,
            text=True,
            timeout=30,
        )

    def calls(self, name: str) -> list[str]:
        return [call for call in self.calls_path.read_text().splitlines() if call.split()[0] == name]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_rank_runs_on_every_gpu_that_was_granted(stage: Stage) -> None:
    assert stage.run("job.sh", "train", "recipe.yaml", "a.b=c d", **GPUS).returncode == 0
    (srun,) = stage.calls("srun")
    for option in ("--nodes=2", "--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=12", "--kill-on-bad-exit=1"):
        assert option in srun.split()
    assert srun.endswith(f"bash {SLURM}/entrypoint.sh train recipe.yaml a.b=c d")
    assert "container" not in srun


def test_without_gpus_a_rank_runs_on_every_task_that_was_asked_for(stage: Stage) -> None:
    stage.run("job.sh", "train", "recipe.yaml", SLURM_NTASKS_PER_NODE="4")
    assert {"--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=24"} <= set(stage.calls("srun")[0].split())


def test_the_user_may_say_how_many_ranks_a_node_has(stage: Stage) -> None:
    stage.run("job.sh", "train", "recipe.yaml", **GPUS, SAMA_MEGA_TASKS_PER_NODE="6")
    assert {"--ntasks=12", "--ntasks-per-node=6", "--cpus-per-task=16"} <= set(stage.calls("srun")[0].split())


def test_more_ranks_than_cpus_is_refused_with_the_fix(stage: Stage) -> None:
    result = stage.run("job.sh", "train", "recipe.yaml", **GPUS, SLURM_CPUS_ON_NODE="2")
    assert result.returncode == 2 and stage.calls("srun") == []
    assert "8 ranks a node have 2 CPUs: add --exclusive" in result.stderr


def test_a_container_holds_the_ranks_and_the_question_after_them(stage: Stage) -> None:
    image = {"SAMA_MEGA_CONTAINER_IMAGE": "/images/sama.sqsh", "SAMA_MEGA_CONTAINER_MOUNTS": "/data:/data,/runs:/runs"}
    stage.run("job.sh", "train", "recipe.yaml", **GPUS, **image)
    ranks, question = stage.calls("srun")
    for call in (ranks, question):
        assert "--export=ALL" in call.split()
        assert "--container-image=/images/sama.sqsh" in call and "--container-mounts=/data:/data,/runs:/runs" in call
        assert f"--container-workdir={stage.folder}" in call
    # On the node of the batch script, beside a step that may be stuck: not in its place.
    assert {"--overlap", "--nodes=1", "--ntasks=1", "--nodelist=gpu01"} <= set(question.split())
    assert question.endswith("entrypoint.sh job-ended --status 0 recipe.yaml")


def test_a_container_sees_the_folder_of_submission_unless_told_otherwise(stage: Stage) -> None:
    stage.run("job.sh", "train", "recipe.yaml", **GPUS, SAMA_MEGA_CONTAINER_IMAGE="image")
    assert f"--container-mounts={stage.folder}:{stage.folder}" in stage.calls("srun")[0]


@pytest.mark.parametrize(
    ("decision", "srun_status", "scontrol_status", "status"),
    [
        ("done", "0", "0", 0),
        ("done", "1", "0", 0),  # one rank may stumble after all is done
        ("requeue", "137", "0", 0),
        ("requeue", "137", "1", 1),
        ("stop", "0", "0", 1),  # told to stop: nothing failed, and nothing is finished either
        ("stop", "2", "0", 2),
        ("stop", "143", "0", 1),  # of a rank that was ended because another failed
        ("", "3", "0", 3),  # whoever was asked could not say
    ],
)
def test_the_decision_becomes_the_jobs_end(
    stage: Stage, decision: str, srun_status: str, scontrol_status: str, status: int
) -> None:
    variables = {"DECISION": decision, "SRUN_STATUS": srun_status, "SCONTROL_STATUS": scontrol_status}
    result = stage.run("job.sh", "train", "recipe.yaml", **GPUS, **variables)
    assert result.returncode == status
    assert ("scontrol requeue 77" in stage.calls("scontrol")) == (decision == "requeue")
    assert ("does not start the job again" in result.stderr) == (scontrol_status == "1")


HEADER, RANK, SCRIPT = "PID JOBID STEPID LOCALID GLOBALID", "9 77 0 0 0", "8 77 batch 0 0"


@pytest.mark.parametrize(
    ("then", "gives_up"),
    [
        (f'echo "{HEADER}"; echo "{SCRIPT}"', True),  # the ranks of this node are gone, and srun waits for others
        ("exit 1", False),  # scontrol cannot say: its configuration or the user database is out of reach
    ],
)
def test_a_step_is_given_up_when_this_nodes_ranks_are_known_to_be_gone(stage: Stage, then: str, gives_up: bool) -> None:
    # `sleep` returns at once here, so that minutes pass in a moment.
    asked = f"grep -c listpids {stage.calls_path}"
    stage.stand_in("scontrol", f'(($({asked}) > 2)) || {{ echo "{HEADER}"; echo "{RANK}"; exit; }}\n{then}')
    stage.stand_in("srun", f"while (($({asked}) < 40)); do :; done")
    result = stage.run("job.sh", "train", "recipe.yaml", **GPUS, DECISION="stop")
    assert result.returncode == 1
    assert ("given up" in result.stderr) == gives_up


def test_only_the_last_line_of_the_answer_counts(stage: Stage) -> None:
    stage.stand_in("python", 'echo "a banner"; echo requeue')
    stage.run("job.sh", "train", "recipe.yaml", **GPUS)
    assert "scontrol requeue 77" in stage.calls("scontrol")


@pytest.mark.parametrize(("time", "is_told"), [("2026-11-20T13:44:30", True), ("None", False)])
def test_a_preemption_is_told_to_whoever_decides(stage: Stage, time: str, is_told: bool) -> None:
    stage.stand_in(
        "scontrol", f'[[ "$1 $2 $3" != "show job 77" ]] || echo "   PreemptEligibleTime=2026 PreemptTime={time}"'
    )
    stage.run("job.sh", "train", "recipe.yaml", **GPUS)
    question = next(call for call in stage.calls("python") if "job-ended" in call)
    assert ("--preempted" in question.split()) == is_told


def test_of_an_array_one_element_starts_again(stage: Stage) -> None:
    # Slurm takes the plain number, which one element shares with the array, for all elements: it would kill those that
    # run and start those again that are done.
    array = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}
    stage.run("job.sh", "train", "recipe.yaml", **GPUS, **array, DECISION="requeue")
    assert "scontrol requeue 77_3" in stage.calls("scontrol")


EVERY_SCRIPT = ["job.sh", "check.sh", "edit.sh", "export.sh"]


@pytest.mark.parametrize("script", EVERY_SCRIPT)
def test_modules_are_loaded_first(stage: Stage, script: str) -> None:
    stage.stand_in("with_modules", f'module() {{ echo "module $*" >> {stage.calls_path}; }}; export -f module; "$@"')
    environment = {
        **JOB,
        **GPUS,
        "SAMA_MEGA_PYTHON": str(stage.folder / "python"),
        "PATH": f"{stage.folder}:{os.environ['PATH']}",
        "SAMA_MEGA_MODULES": "cuda/13 gcc",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
    }
    command = ["with_modules", "bash", str(SLURM / script), "train", "recipe.yaml"]
    subprocess.run(command, cwd=stage.folder, env=environment, check=True, timeout=30, capture_output=True)
    calls = stage.calls_path.read_text().splitlines()
    assert calls.index("module load cuda/13 gcc") < next(i for i, call in enumerate(calls) if call.startswith("srun"))


@pytest.mark.parametrize("script", EVERY_SCRIPT)
def test_a_module_that_is_not_there_is_said(stage: Stage, script: str) -> None:
    variables = {**GPUS, "SAMA_MEGA_MODULES": "cuda/99", "SLURM_SUBMIT_DIR": str(REPOSITORY)}
    result = stage.run(script, "train", "recipe.yaml", **variables)
    assert result.returncode == 2 and "SAMA_MEGA_MODULES (cuda/99) cannot be loaded" in result.stderr
    assert stage.calls("srun") == []


def test_ranks_check_their_nodes_before_they_train_and_nobody_else_does(stage: Stage) -> None:
    stage.run("entrypoint.sh", "train", "recipe.yaml", "a.b=c")
    stage.run("entrypoint.sh", "edit", "runs/x", "clip.mp4")
    stage.run("entrypoint.sh", "train", "recipe.yaml", SAMA_MEGA_HEALTH_CHECK="0")
    assert stage.calls("python") == [
        "python -m sama_mega health recipe.yaml a.b=c",
        "python -m sama_mega train recipe.yaml a.b=c",
        "python -m sama_mega edit runs/x clip.mp4",
        "python -m sama_mega train recipe.yaml",
    ]


def test_a_python_without_the_package_is_said_once_a_node(stage: Stage) -> None:
    (stage.folder / "bare").write_text("#!/usr/bin/env bash\nexit 1\n")
    (stage.folder / "bare").chmod(0o755)
    for python in (stage.folder / "bare", stage.folder / "none"):
        first, second = (
            stage.run("entrypoint.sh", "train", "r", SAMA_MEGA_PYTHON=str(python), SLURM_LOCALID=rank) for rank in "01"
        )
        assert first.returncode == second.returncode == 2
        assert f"error: gpu01: {python} cannot run sama-mega: run make install" in first.stderr
        assert len(first.stderr.splitlines()) == 1 and second.stderr == ""


def test_a_job_from_another_folder_is_told_what_to_do(stage: Stage) -> None:
    result = stage.run("stage0.sh", "recipe.yaml", SLURM_SUBMIT_DIR=str(stage.folder))
    assert result.returncode == 2
    assert (
        f"error: {stage.folder}/slurm has no job.sh: submit from the clone, or export SAMA_MEGA_SLURM" in result.stderr
    )


def test_a_rank_on_a_sick_node_does_not_train(stage: Stage) -> None:
    stage.stand_in("python", "exit 1")
    assert stage.run("entrypoint.sh", "train", "recipe.yaml").returncode == 1
    assert stage.calls("python") == ["python -m sama_mega health recipe.yaml"]


@pytest.mark.parametrize(("script", "command"), [("edit.sh", "edit"), ("export.sh", "export"), ("check.sh", "health")])
def test_the_small_scripts_run_one_command(stage: Stage, script: str, command: str) -> None:
    stage.run(script, "one", "two words", SLURM_SUBMIT_DIR=str(REPOSITORY), SLURM_NTASKS_PER_NODE="1")
    assert stage.calls("srun")[0].endswith(f"bash {REPOSITORY}/slurm/entrypoint.sh {command} one two words")
    assert "container" not in stage.calls("srun")[0]


@pytest.mark.parametrize("script", ["edit.sh", "export.sh", "check.sh"])
def test_the_small_scripts_run_where_training_runs(stage: Stage, script: str) -> None:
    image = {"SAMA_MEGA_CONTAINER_IMAGE": "/images/sama.sqsh", "SAMA_MEGA_CONTAINER_MOUNTS": "/data:/data,/runs:/runs"}
    stage.run(script, "one", SLURM_SUBMIT_DIR=str(REPOSITORY), SLURM_NTASKS_PER_NODE="1", **image)
    (srun,) = stage.calls("srun")
    assert "--container-image=/images/sama.sqsh" in srun and "--container-mounts=/data:/data,/runs:/runs" in srun
