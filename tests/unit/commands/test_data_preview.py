"""`data preview`: sheets of a manifest and of a recipe, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sama_data.manifest import write_jsonl
from sama_data.synth import WorldSpec
from sama_data.synth.write import write_world
from sama_mega.__main__ import main

RECIPE = Path(__file__).parents[3] / "recipes" / "demo_stage0.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 3, 3, 0, 1, WorldSpec(num_frames=13, height=32, width=32))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["data", "preview", *map(str, arguments)])
    shown = capsys.readouterr()
    return int(stop.value.code or 0), shown.out, shown.err


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_a_manifest_becomes_a_sheet(capsys, world, tmp_path, suffix):
    out = tmp_path / "new" / f"sheet.{suffix}"
    status, shown, _ = run(capsys, world / "pairs.jsonl", "--out", out, "--samples", 4, "--json")
    assert status == 0
    found = json.loads(shown.splitlines()[-1])
    assert [sample["kind"] for sample in found["samples"]] == ["image"] * 2 + ["video"] * 2
    assert found["samples"][3]["prompt"].startswith("[Video edit] ")
    assert found["samples"][3]["bucket"] == "640x640"  # the 480p buckets: a manifest alone names none
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    if suffix == "png":
        assert Image.open(out).format == "PNG"
    else:
        assert out.read_text().count("data:image/jpeg") == 2 * 2 + 2 * 2 * 6


def test_a_recipe_brings_its_buckets_and_perturbations(capsys, world, tmp_path):
    only_tubes = ["motion.none=0", "motion.cube=0", "motion.speed=0"]
    status, shown, _ = run(
        capsys,
        RECIPE,
        f"data.manifest={world}/raw.jsonl",
        *only_tubes,
        "data.images_per_step=0",
        *("--out", tmp_path / "sheet.png", "--samples", 3, "--seed", 5, "--json"),
    )
    assert status == 0
    samples = json.loads(shown.splitlines()[-1])["samples"]
    assert {(sample["task"], sample["bucket"], sample["frames"]) for sample in samples} == {("tube", "64x64", "13")}
    assert all(sample["prompt"].startswith("[Restore the correct spatio-temporal order") for sample in samples)


def test_a_seed_is_a_sheet_of_its_own(capsys, world, tmp_path):
    sheets = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert (
            run(capsys, world / "raw.jsonl", "--out", tmp_path / f"{name}.png", "--samples", 2, "--seed", seed)[0] == 0
        )
        sheets.append(tmp_path.joinpath(f"{name}.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_a_recipes_seed_is_the_sheets_unless_another_is_given(capsys, world, tmp_path):
    sheets = []
    for name, given in (("a", ["train.seed=5"]), ("b", ["--seed", 5]), ("c", ["train.seed=5", "--seed", 0]), ("d", [])):
        out = tmp_path / f"{name}.html"
        recipe = [RECIPE, f"data.manifest={world}/raw.jsonl", "--samples", 2]
        assert run(capsys, *recipe, *given, "--out", out)[0] == 0
        sheets.append(out.read_text())
    assert sheets[0] == sheets[1] != sheets[2] == sheets[3]
    assert "seed 5" in sheets[0] and "seed 0" in sheets[3]


def test_bad_clips_are_told(capsys, world, tmp_path):
    rows = [{"image": str(world / name), "caption": "x"} for name in ("gone.png", "no.png")]
    Image.new("RGB", (32, 32)).save(tmp_path / "good.png")
    write_jsonl([*rows, {"image": "good.png", "caption": "x"}], tmp_path / "manifest.jsonl")
    quarantine = tmp_path / "sheet.quarantine.jsonl"
    for _ in range(2):  # the second sheet does not tell of the first one's
        status, shown, _ = run(capsys, tmp_path / "manifest.jsonl", "--out", tmp_path / "sheet.png", "--samples", 3)
        assert status == 0
        assert shown.count("replaced ") == len(quarantine.read_text().splitlines()) == 2
        assert f"{world}/gone.png" in shown
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    status, _, error = run(capsys, tmp_path / "manifest.jsonl", "--out", tmp_path / "none.png")
    assert status == 2
    assert "all 2 image samples are bad" in error
    assert not (tmp_path / "none.png").exists()


def test_what_is_refused(capsys, world, tmp_path):
    def refused(*arguments: object) -> str:
        status, _, error = run(capsys, *arguments)
        assert status == 2
        return error

    assert "must end in .png or .html" in refused(world / "raw.jsonl", "--out", tmp_path / "sheet.pdf")
    assert "belongs to a recipe" in refused(world / "raw.jsonl", "data.max_frames=5", "--out", tmp_path / "sheet.png")
    assert "does not exist" in refused(tmp_path / "none.jsonl", "--out", tmp_path / "sheet.png")
    missing = refused(RECIPE, "data.manifest=/none/such.jsonl", "--out", tmp_path / "sheet.png")
    assert "/none/such.jsonl: no such manifest" in missing
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(world / "raw.jsonl", "--out", tmp_path / "file" / "sheet.png", "--samples", 1)
    assert not (tmp_path / "sheet.png").exists()


def test_real_clips(capsys, shared_root, tmp_path):
    for name in ("pairs", "raw"):
        manifest = shared_root / "videos" / f"{name}.jsonl"
        assert run(capsys, manifest, "--out", tmp_path / f"{name}.html", "--samples", 1)[0] == 0
