"""Judged suites as users run them: edits made or given, a judge that answers well, badly, late or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from sama_data.decode import decode_frames
from sama_mega.checkpoint.saved_state import STATE_FILE
from sama_mega.judged.edits import IDENTITY_FILE
from sama_mega.judged.suite import load_suite
from sama_mega.train.run import train
from tests.support.chat_server import Asked, Reply, answer, refuse, serve
from tests.support.clips import moving_picture, write_video
from tests.support.tiny_recipe import REPOSITORY, call_main, newest_checkpoint, tiny_recipe, tiny_world, wait_until

MADE_WITH = f"edits/{IDENTITY_FILE}"
KEYS = ("instruction_following", "preservation", "quality")
CATEGORIES = ("add", "swap", "remove", "add", "style", "remove")


def opinion(instruction: str, turn: int, key: str) -> int:
    return 1 + hashlib.sha256(f"{instruction} {turn} {key}".encode()).digest()[0] % 10


def opinionated(asked: Asked, count: int = 0) -> Reply:
    keys = asked.body["response_format"]["json_schema"]["schema"]["required"][1:]
    return answer({key: opinion(asked.instruction, asked.turn, key) for key in keys})


def expected(number: int, key: str, turns: int = 3) -> float:
    return fmean(opinion(f"Edit {number}.", turn, key) for turn in range(1, turns + 1))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A list of six clips of four categories, and a folder with edits of them."""
    rows = []
    for number, category in enumerate(CATEGORIES):
        frames = moving_picture(6, 48, 64, seed=number)
        write_video(tmp_path / f"clips/s{number}.mp4", frames)
        write_video(tmp_path / f"made/s{number}.mp4", frames[:5, ::-1])
        rows.append({"source": f"clips/s{number}.mp4", "instruction": f"Edit {number}.", "category": category})
    path = tmp_path / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def evaluated(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """Runs a suite on those edits; returns the status, the JSON line and all that was printed."""

    def run(url: str, *more: object, checkpoint: str = "none") -> tuple[int, Any, str]:
        edits = () if "--no-edits" in more else ("--edits", tmp_path / "made")
        options = ("--clips", clips, "--out", tmp_path / "out", "--endpoint", url, "--frames", 4, "--yes", "--json")
        given = [item for item in more if item != "--no-edits"]
        status = call_main("evaluate", checkpoint, "vie-bench", *edits, *options, *given)
        captured = capsys.readouterr()
        last = captured.out.splitlines()[-1:] or [""]
        return status, json.loads(last[0]) if last[0].startswith("{") else None, captured.out + captured.err

    return run


def test_the_table_holds_the_means_by_category_and_the_estimate_is_what_is_asked(
    evaluated: Callable[..., tuple[int, Any, str]], tmp_path: Path
) -> None:
    with serve(opinionated) as server:
        status, dry, _ = evaluated(server.url, "--dry-run", "--input-price", 2)
        assert status == 0 and not server.asked and not (tmp_path / "out").exists() and dry["price"] > 0
        status, report, text = evaluated(server.url)
    assert status == 0
    estimate = report["estimate"]
    assert estimate == dry["estimate"] and estimate["requests"] == report["requests"] == len(server.asked) == 18
    assert "requests   18 with 144 pictures in all" in text
    assert estimate["pictures"] == sum(len(asked.pictures) for asked in server.asked) == 18 * 2 * 4
    assert {asked.body["max_tokens"] for asked in server.asked} == {600} and estimate["assumed"] == 0
    rows = {row["label"]: row for row in report["table"]}
    assert list(rows) == ["Add", "Swap", "Remove", "Style", "overall (mean of clips)"]
    for label, numbers in {"Add": (0, 3), "Swap": (1,), "Remove": (2, 5), "Style": (4,)}.items():
        assert rows[label]["num_clips"] == rows[label]["num_scored"] == len(numbers)
        for column, key in zip(("instruction", "preservation", "quality"), KEYS, strict=True):
            mean = fmean(expected(number, key) for number in numbers)
            assert rows[label]["columns"][column] == pytest.approx(mean)
            assert re.search(rf"{label} .*{mean:.3f}", text)
    overall = fmean(expected(number, key) for number in range(6) for key in KEYS)
    assert rows["overall (mean of clips)"]["columns"]["average"] == pytest.approx(overall)
    stored = json.loads((tmp_path / "out/scores.json").read_text())
    assert stored["table"] == report["table"] and len(stored["clips"]) == 6
    assert stored["clips"][0]["criteria"]["quality"] == pytest.approx(expected(0, "quality"))
    page = (tmp_path / "out/sheet.html").read_text()
    places = re.findall(r'src="([^"#]+)#', page)
    assert len(places) == 12 and all((tmp_path / "out" / place).is_file() for place in places)
    assert page.count("Fine.") == 18


def test_source_and_edit_are_shown_at_the_same_moments(
    evaluated: Callable[..., tuple[int, Any, str]], tmp_path: Path
) -> None:
    with serve(opinionated) as server:
        assert evaluated(server.url, "--turns", 1, "--limit", 1)[0] == 0
    assert len(server.asked) == 4
    (asked,) = (asked for asked in server.asked if asked.instruction == "Edit 0.")
    labels = [text for text in asked.texts if re.match("(Original|Edited) video, frame", text)]
    assert labels == [f"{name} video, frame {n} of 4:" for name in ("Original", "Edited") for n in (1, 2, 3, 4)]
    # The edit has five frames and the source six: both are looked at as long as both last.
    source, edit = (decode_frames(tmp_path / folder / "s0.mp4").frames for folder in ("clips", "made"))
    for frames, pictures in ((source, asked.pictures[:4]), (edit, asked.pictures[4:])):
        for index, picture in zip((0, 1, 3, 4), pictures, strict=True):
            near = [abs(frame.astype(int) - picture).mean() for frame in frames]
            assert near.index(min(near)) == index


def test_an_edit_at_another_rate_than_its_source_has_no_scores(
    evaluated: Callable[..., tuple[int, Any, str]], tmp_path: Path
) -> None:
    """Frame n of it would be another moment than frame n of the source; 6 frames at 16 a second.

    An edit of every frame is taken, at whatever rate it was written.
    """
    for number, num_frames, fps in ((1, 3, 8), (2, 5, Fraction(16000, 1001)), (3, 6, 8)):
        write_video(tmp_path / f"made/s{number}.mp4", moving_picture(num_frames, 48, 64, seed=number), fps=fps)
    with serve(opinionated) as server:
        status, report, text = evaluated(server.url, "--turns", 1)
    reason = "s1.mp4 has 8 frames a second and its source 16: frames are compared one by one"
    assert status == 0 and report["scored"] == len(server.asked) == 5 and reason in text
    assert [found.startswith(reason) for found in report["missing"]] == [True]


def test_wrong_answers_are_missing_and_not_asked_again(
    evaluated: Callable[..., tuple[int, Any, str]], tmp_path: Path
) -> None:
    def behave(asked: Asked, count: int) -> Reply:
        if asked.instruction == "Edit 2.":
            return answer("ten out of ten")
        return answer(dict.fromkeys(KEYS, 11)) if asked.instruction == "Edit 5." else opinionated(asked)

    with serve(behave) as server:
        status, report, text = evaluated(server.url, "--attempts", 2)
        assert status == 0 and report["scored"] == 4 and sum(report["missing"].values()) == 2
        remove = next(row for row in report["table"] if row["label"] == "Remove")
        assert (remove["num_clips"], remove["num_scored"], remove["columns"]) == (2, 0, {})
        assert re.search(r"Remove +│ +0 of 2 │ +- │", text) and "4 of 6" in text
        assert "2 of 6 clips have no scores" in text and "'ten out of ten'" in text
        overall = fmean(expected(number, key) for number in (0, 1, 3, 4) for key in KEYS)
        assert report["table"][-1]["columns"]["average"] == pytest.approx(overall)
        assert "not JSON" in (tmp_path / "out/sheet.html").read_text()
        server.asked.clear()
        assert evaluated(server.url, "--attempts", 2)[1]["scored"] == 4 and not server.asked
        server.behave = opinionated
        assert evaluated(server.url, "--retry-unscored")[1]["scored"] == 6
    assert {asked.instruction for asked in server.asked} == {"Edit 2.", "Edit 5."} and len(server.asked) == 6


def test_a_judge_that_is_down_ends_with_one_line_and_what_was_answered_is_kept(
    evaluated: Callable[..., tuple[int, Any, str]], tmp_path: Path
) -> None:
    with serve() as gone:
        url = gone.url
    status, report, text = evaluated(url, "--attempts", 1)
    assert (status, report) == (1, None) and not (tmp_path / "out/scores.json").exists()
    assert len(re.findall("^error: .*none of 6 rows got an answer.*same command again$", text, re.MULTILINE)) == 1

    def until_half(asked: Asked, count: int) -> Reply:
        return opinionated(asked) if asked.instruction in ("Edit 0.", "Edit 1.") else refuse(503)

    with serve(until_half) as server:
        status, report, text = evaluated(server.url, "--attempts", 1)
        assert (status, report["scored"], report["absent"]) == (1, 2, 4) and "the same command asks again" in text
        server.behave, before = opinionated, set(server.questions)
        server.asked.clear()
        status, report, _ = evaluated(server.url)
    assert (status, report["scored"], report["absent"]) == (0, 6, 0)
    assert {instruction for instruction, _ in server.questions} == {f"Edit {n}." for n in (2, 3, 4, 5)}
    assert len(server.asked) == 12 and ("Edit 0.", 1) in before


def test_a_wrong_key_is_the_users_to_mend_and_is_nowhere(
    evaluated: Callable[..., tuple[int, Any, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with serve(lambda asked, count: refuse(401, "no such key: sk-secret")) as server:
        status, _, text = evaluated(server.url, "--api-key-variable", "MY_KEY")
        assert status == 2 and "status 401: no such key: ***: check the URL" in text
        assert {asked.authorization for asked in server.asked} == {"Bearer sk-secret"}
        server.behave = opinionated
        status, _, more = evaluated(server.url, "--api-key-variable", "MY_KEY")
    stored = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert status == 0 and "sk-secret" not in text + more and b"sk-secret" not in stored
    status, _, text = evaluated("http://127.0.0.1:9/v1", "--api-key-variable", "NO_SUCH_KEY")
    assert status == 2 and "--api-key-variable (NO_SUCH_KEY): the environment has no such variable" in text


def test_an_edit_that_changed_is_judged_anew_and_one_that_is_not_there_is_missing(
    evaluated: Callable[..., tuple[int, Any, str]], tmp_path: Path
) -> None:
    (tmp_path / "made/s1.mp4").unlink()
    with serve(opinionated) as server:
        report = evaluated(server.url)[1]
        assert report["missing"] == {"has no edit": 1} and report["estimate"]["videos"] == 5
        write_video(tmp_path / "made/s0.mp4", moving_picture(5, 48, 64, seed=9))
        server.asked.clear()
        assert evaluated(server.url)[0] == 0
    assert {asked.instruction for asked in server.asked} == {"Edit 0."}


def test_what_is_missing_or_wrong_is_one_line(
    evaluated: Callable[..., tuple[int, Any, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://127.0.0.1:9/v1"
    assert call_main("evaluate", "none", "synthetic", "--clips", tmp_path) == 2
    assert "--clips" in capsys.readouterr().err
    assert call_main("evaluate", "none", "vie-bench", "--out", tmp_path) == 2
    assert "--clips is missing" in capsys.readouterr().err
    status, _, text = evaluated(url, "--no-edits", checkpoint=str(tmp_path / "none"))
    assert status == 2 and text.count("error:") == 1 and str(tmp_path / "none") in text
    status, _, text = evaluated("ftp://judge", "--turns", 1)
    assert status == 2 and "the endpoint (judge) must be a URL" in text
    status, _, text = evaluated(url, "--edits", tmp_path / "clips", "--dry-run")
    assert status == 2 and text.count("error:") == 1 and "clips/s0.mp4 is a source and no edit of it" in text
    for option in (("--weights", "ema"), ("--steps", 4), ("--guidance", 2.0)):
        status, _, text = evaluated(url, *option)
        assert status == 2 and f"{option[0]} says how edits are made, and those of --edits are made already" in text


# --- edits that are made --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps of stage 1."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    train(tiny_recipe(1, folder, tiny_world(tmp_path_factory) / "pairs.jsonl", 2))
    return folder


def test_a_run_that_was_killed_makes_no_edit_and_asks_no_question_twice(
    evaluated: Callable[..., tuple[int, Any, str]], run_folder: Path, clips: Path, tmp_path: Path
) -> None:
    held, num_answered, out = threading.Event(), 7, tmp_path / "out"

    def behave(asked: Asked, count: int) -> Reply:
        if count >= num_answered:
            held.wait(60)
        return opinionated(asked)

    made = ("--steps", 1, "--max-frames", 5)
    with serve(behave) as server:
        options = (
            "--clips",
            clips,
            "--out",
            out,
            "--endpoint",
            server.url,
            "--frames",
            4,
            "--yes",
            "--concurrency",
            2,
        )
        command = [sys.executable, "-m", "sama_mega", "evaluate", run_folder, "vie-bench", *options, *made, "--json"]
        # Both lives alike: this process may have other threads, and so edits whose last bits differ.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*map(str, command)], cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
        journal = out / "judgements.jsonl"
        try:
            answered = lambda: len(server.asked) == num_answered + 2 and journal.read_bytes().count(b"\n") == 8  # noqa: E731
            wait_until(answered, [process], 60)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)
        edits = sorted((out / "edits").glob("*.mp4"))
        assert len(edits) == 6 and all(edit.with_suffix(".png").is_file() for edit in edits)
        assert all(decode_frames(edit).frames.shape == (5, 48, 64, 3) for edit in edits)
        times = [edit.stat().st_mtime_ns for edit in edits]
        before = server.questions[:num_answered]
        edits[0].unlink()
        held.set()
        server.asked.clear()
        done = subprocess.run(
            [*map(str, command)], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout.splitlines()[-1])
        # The one that was lost is made again, and equals what was judged: nothing is asked twice.
        assert report["scored"] == 6 and report["checkpoint"] == str(newest_checkpoint(run_folder))
        assert [edit.stat().st_mtime_ns for edit in edits][1:] == times[1:] and edits[0].is_file()
        assert not set(server.questions) & set(before) and len(server.asked) == 18 - num_answered
        status, _, text = evaluated(server.url, "--no-edits", "--steps", 2, checkpoint=str(run_folder))
        assert status == 2 and "holds edits made with steps 1, not 2: name another --out" in text
        # As if the run had been deleted and trained again: the same names of folders, and other weights.
        os.utime(newest_checkpoint(run_folder) / STATE_FILE, (0, 0))
        server.asked.clear()
        status, _, text = evaluated(server.url, "--no-edits", *made, checkpoint=str(run_folder))
    assert status == 2 and not server.asked
    assert re.search(
        "holds edits made with checkpoint_written 20.*, not 1970-01-01T00:00:00.*: name another --out", text
    )


def test_a_step_that_is_saved_during_the_question_is_not_edited_with(
    evaluated: Callable[..., tuple[int, Any, str]],
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = shutil.copytree(run_folder, tmp_path / "run")
    before = newest_checkpoint(training)

    def save_and_agree(yes: bool) -> None:
        """A checkpoint to whoever looks now, which nobody can open."""
        later = before.with_name("step-00000003")
        later.mkdir()
        shutil.copy(before / STATE_FILE, later)

    monkeypatch.setattr("sama_mega.commands.evaluate_judged.ask_to_go_on", save_and_agree)
    few = ("--steps", 1, "--max-frames", 1, "--limit", 1, "--turns", 1)
    with serve(opinionated) as server:
        status, report, _ = evaluated(server.url, "--no-edits", *few, checkpoint=str(training))
    assert status == 0 and report["scored"] == 4 and newest_checkpoint(training) != before
    scores, made_with = (json.loads((tmp_path / "out" / name).read_text()) for name in ("scores.json", MADE_WITH))
    assert report["checkpoint"] == scores["checkpoint"] == made_with["checkpoint"] == str(before)


def test_real_clips_are_judged_too(shared_root: Path, tmp_path: Path) -> None:
    listed = shared_root / "videos" / "pairs.jsonl"
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    rows = [row for row in rows if row["task"] in ("replace", "add", "remove", "style")][:3]
    (tmp_path / "made").mkdir()
    for row in rows:
        (tmp_path / "made" / Path(row["source"]).name).symlink_to(listed.parent / row["target"])
        row["source"] = str(listed.parent / row["source"])
    own = tmp_path / "clips.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serve(opinionated) as server:
        options = ("--clips", own, "--edits", tmp_path / "made", "--out", tmp_path / "out", "--endpoint", server.url)
        assert call_main("evaluate", "none", "reco-bench", *options, "--turns", 1, "--yes") == 0
    assert len(server.asked) == len(rows)
    assert all(len(asked.pictures) == 16 and max(asked.pictures[0].size) == 640 for asked in server.asked)
    stored = json.loads((tmp_path / "out/scores.json").read_text())
    assert set(stored["clips"][0]["criteria"]) == {item.key for item in load_suite("reco-bench").criteria}
