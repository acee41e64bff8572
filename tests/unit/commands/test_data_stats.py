"""`data stats`: tables and JSON, missing manifests, the stand-in for the paper's datasets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sama_data.manifest import write_jsonl
from sama_mega.__main__ import main

RECIPES = Path(__file__).parents[3] / "recipes"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["data", "stats", *arguments])
    shown = capsys.readouterr()
    return int(stop.value.code or 0), shown.out, shown.err


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = [
        {
            "source": "a.png",
            "target": f"{number}.png",
            "instruction": "x",
            "dataset": "[red]pictures",
            "licence": "free",
        }
        for number in range(8)
    ]
    rows += [{"video": f"{number}.mp4", "caption": "x", "dataset": "clips"} for number in range(4)]
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    return tmp_path / "manifest.jsonl"


def test_a_recipe_is_shown_as_tables_and_json(capsys, manifest):
    recipe = str(RECIPES / "demo_stage0.yaml")
    status, out, err = run(
        capsys, recipe, f"data.manifest={manifest}", "--steps", "4", "--ranks", "1", "--ranks", "2", "--json"
    )
    assert status == 0
    for expected in ("[red]pictures", "free", "64x64", "4 images and 8 videos a step", "unknown    sizes of 12 rows"):
        assert expected in out
    assert "775 of the images, 3,100 of the videos" in out and "e+0" not in out
    found = json.loads(out.splitlines()[-1])
    assert [one["ranks"] for one in found["imbalance"]] == [1, 2]
    assert found["imbalance"][0]["slowest"]["max"] == 1.0
    assert (found["simulated_steps"], found["train_steps"], found["unknown_lengths"]) == (4, 1550, 4)
    assert found["epochs"] == {"image": 1550 * 4 / 8, "video": 1550 * 8 / 4}
    assert found["missing"] == []
    assert "steps 4/4" in err


def test_missing_manifests_are_named_one_a_line(capsys):
    status, out, err = run(capsys, str(RECIPES / "wan14b_stage1.yaml"), "--steps", "1")
    lines = err.splitlines()
    assert status == 2
    assert out == ""
    assert [Path(line.split(":")[0]).name for line in lines[:-1]] == [
        "nhr_edit.parquet",
        "pico_banana.parquet",
        "ditto_style.parquet",
        "openve.parquet",
        "reco.parquet",
    ]
    assert lines[-1].startswith("error: none of the 5 manifests exists")


def test_those_that_exist_are_shown(capsys, manifest):
    recipe = str(RECIPES / "wan1_3b_stage1.yaml")
    blend = f"data.blend=[{{manifest: {manifest}}}, {{manifest: {manifest.parent}/gone.parquet}}]"
    status, out, err = run(capsys, recipe, blend, "--steps", "1", "--json")
    assert status == 0
    assert f"{manifest.parent}/gone.parquet: no such manifest" in err
    assert "missing    1 manifests" in out
    assert json.loads(out.splitlines()[-1])["missing"] == [f"{manifest.parent}/gone.parquet"]


def test_no_manifest_at_all(capsys):
    status, _, err = run(capsys, str(RECIPES / "demo_stage0.yaml"), "data.manifest=null", "--steps", "1")
    assert status == 2
    assert "name no manifest: set one of them, or add --paper-mixture" in err


def test_the_papers_mixture_needs_no_manifest(capsys):
    recipe = str(RECIPES / "wan14b_stage1.yaml")
    status, out, _ = run(capsys, recipe, "--paper-mixture", "--steps", "2", "--json")
    assert status == 0
    assert "sizes and lengths are made up" in out
    found = json.loads(out.splitlines()[-1])
    assert [one["ranks"] for one in found["imbalance"]] == [16, 56]
    assert [share["manifest"] for share in found["shares"]][:2] == ["nhr_edit", "pico_banana"]
    assert 0.9 < found["epochs"]["video"] < 1.1  # the recipe's header says about one pass


def test_it_needs_no_torch(repo_root: Path, manifest: Path):
    code = (
        "import sys; from sama_mega.__main__ import main\n"
        f"try: main(['data', 'stats', 'recipes/demo_stage0.yaml', 'data.manifest={manifest}', '--steps', '1'])\n"
        "except SystemExit as stop: status = stop.code\n"
        "sys.exit(f'{status} torch' if status or 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repo_root, capture_output=True, timeout=60)
