"""A cluster's settings: defaults, the example file, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from sama_mega.cluster.settings import ClusterSettings, load_cluster_settings, seconds_of_time_limit
from sama_mega.config.errors import ConfigError


def refusal(tmp_path: Path, text: str, **options: object) -> str:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_cluster_settings(file, options, {})
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_the_example_file_says_the_defaults(repo_root: Path) -> None:
    assert load_cluster_settings(repo_root / "slurm/cluster.yaml", {}, {}) == ClusterSettings()


def test_the_example_file_names_every_key(repo_root: Path) -> None:
    lines = (repo_root / "slurm/cluster.yaml").read_text().splitlines()
    named = {line.partition(":")[0] for line in lines if line and line[0] not in "# "}
    assert named == set(ClusterSettings.model_fields)


def test_the_example_file_travels_with_the_package(repo_root: Path) -> None:
    assert '"slurm": ["*.sh", "*.yaml"]' in (repo_root / "setup.py").read_text()


def test_options_win_over_the_file_and_the_file_over_the_variable(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("partition: a\naccount: mine\ngpus_per_node: 4\n")
    (tmp_path / "b.yaml").write_text("partition: b\n")
    environ = {"SAMA_MEGA_CLUSTER": str(tmp_path / "b.yaml")}
    options = {"gpus_per_node": 2, "account": None}
    settings = load_cluster_settings(tmp_path / "a.yaml", options, environ)
    assert (settings.partition, settings.account, settings.gpus_per_node) == ("a", "mine", 2)
    assert load_cluster_settings(None, {}, environ).partition == "b"
    assert load_cluster_settings(None, {}, {"SAMA_MEGA_CLUSTER": ""}) == ClusterSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "time: 24:00:00\npartitoin: gpu\n",
            'cluster.yaml:2: partitoin ("gpu") is not a cluster settings key; the nearest is partition',
        ),
        (
            "health:\n  min_free_disk_gb: 3\n",
            "cluster.yaml:2: health.min_free_disk_gb (3) is not a cluster settings key; the nearest is "
            "health.min_free_disk_gib",
        ),
        ("time: 24\n", "cluster.yaml:1: time (24) must be text"),
        ("time: 24h\n", 'cluster.yaml:1: time ("24h") must be HH:MM:SS or D-HH:MM:SS'),
        ("time: 00:05:00\n", 'cluster.yaml:1: time ("00:05:00") must be longer than signal_before_end_seconds (300)'),
        ("gpus_per_node: -1\n", "cluster.yaml:1: gpus_per_node (-1) must be auto or a whole number, 0 for CPU nodes"),
        ("cpus_per_task: 0\n", "cluster.yaml:1: cpus_per_task (0) must be auto or a whole number of at least 1"),
        ("signal_before_end_seconds: 70000\n", "signal_before_end_seconds (70000) must be less than or equal to 65535"),
        ("modules: cuda\n", 'cluster.yaml:1: modules ("cuda") must be a list'),
        ('partition: "a\\nb"\n', "must be one line without spaces around it"),
        ("partition: ''\n", 'partition ("") must not be empty'),
        ("python: /a\nvenv: /b\n", 'cluster.yaml:1: python ("/a") and venv are both set: keep one of them'),
        ("venv: /b\ncontainer_image: c\n", 'cluster.yaml:1: venv ("/b") is not seen in a container'),
        ("container_mounts: ['/a:/a']\n", "has no effect without container_image"),
        ("container_image: c\ncontainer_mounts: [/a]\n", 'container_mounts[0] ("/a") must be FOLDER:FOLDER'),
        ("sbatch_lines: ['nice=3']\n", 'sbatch_lines[0] ("nice=3") must be an option of sbatch'),
        ("sbatch_lines: [--nice, --nodes=3]\n", 'sbatch_lines[1] ("--nodes=3") must leave --nodes to submit'),
        ("sbatch_lines: ['--nice \"3']\n", "must close its quotes"),
        ("environment: {A-B: 1}\n", "must hold names of variables; A-B is none"),
        ("environment: {A: true}\n", "cluster.yaml:1: environment.A (true) must be text or a number: put it in quotes"),
        ('environment: {A: "b\\nc"}\n', "must be one line"),
        ("environment: [A]\n", 'cluster.yaml:1: environment (["A"]) must be a section of keys'),
        ("", "cluster.yaml: must be a mapping of settings"),
        ("health: {enabled: maybe}\n", 'cluster.yaml:1: health.enabled ("maybe") must be true or false'),
    ],
)
def test_refused_files(tmp_path: Path, text: str, message: str) -> None:
    refused = refusal(tmp_path, text)
    assert message in refused
    assert refused.startswith("cluster.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-N3", "--nodes to submit: use its option --nodes"),
        ("-t 10", "--time to submit: set the key time"),
        ("-p debug", "--partition to submit: set the key partition"),
        ("--qos=low", "--qos to submit: set the key qos"),
        ("--cpus-per-task 4", "--cpus-per-task to submit: set the key cpus_per_task"),
        ("--gpus=4", "--gpus to submit: set the key gpus_per_node"),
        ("--mem=100G", "--mem to submit, which takes all of a GPU node's; on CPU nodes use --mem-per-cpu"),
        ("--oversubscribe", "--oversubscribe to submit, which takes GPU nodes whole"),
        ("--dependency=afterok:7", "--dependency to submit, which chains the stages"),
        ("-J mine", "--job-name to submit, which names a job after its run folder"),
        ("--no-requeue", "--no-requeue to submit, which sets it"),
        # As sbatch reads them: the beginning of a name, several options in a line or a word, another name of the same.
        ("--ntasks-per-nod=4", "--ntasks-per-node to submit"),
        ("--arr=0-3", "--array to submit"),
        ("--exclus", "--exclusive to submit"),
        ("--tasks=4", "--tasks-per-node to submit: set the key tasks_per_node"),
        ("--reservation=weekend --time=10", "--time to submit"),
        ("--comment='a b' -t 10", "--time to submit"),
        ("-Qt10", "--time to submit"),
    ],
)
def test_lines_of_sbatch_that_would_overrule_submit_are_refused(line: str, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(f"must leave {message}")):
        ClusterSettings(sbatch_lines=(line,))


@pytest.mark.parametrize(
    "line",
    [
        *(
            "--reservation=weekend",
            "--mem-per-cpu=4G",
            "--time-min=10",
            "--nice",
            "-w node[1-3]",
            "-H",
            "--gres=lustre",
        ),
        *(
            "--comment='of the time'",
            "--gpu-bind=none",
            "--nodelist=a,b",
            "-L matlab",
            "--mail-type=FAIL --mail-user=me",
        ),
    ],
)
def test_other_lines_of_sbatch_are_taken(line: str) -> None:
    assert ClusterSettings(sbatch_lines=(line,)).sbatch_lines == (line,)


def test_numbers_of_the_environment_become_text(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("environment: {A: 1, B: 0.5, C: yes, D: ''}\n")
    settings = load_cluster_settings(tmp_path / "cluster.yaml", {}, {})
    assert settings.environment == {"A": "1", "B": "0.5", "C": "yes", "D": ""}


def test_a_refused_option_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, "account: me\n", time="1 day").startswith('cluster.yaml, option --time: time ("1 day")')
    with pytest.raises(ConfigError, match="cluster settings, option --container-image"):
        load_cluster_settings(None, {"container_image": " "}, {})


def test_a_missing_file_says_who_named_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: no such cluster settings"):
        load_cluster_settings("none.yaml", {}, {})
    with pytest.raises(ConfigError, match=r"none.yaml \(from SAMA_MEGA_CLUSTER\): no such cluster settings"):
        load_cluster_settings(None, {}, {"SAMA_MEGA_CLUSTER": "none.yaml"})


@pytest.mark.parametrize(("limit", "seconds"), [("00:00:01", 1), ("24:00:00", 86400), ("2-01:02:03", 176523)])
def test_seconds_of_a_time_limit(limit: str, seconds: int) -> None:
    assert seconds_of_time_limit(limit) == seconds
