"""`data score` as users run it, against a server in this process: counted, misled, killed and resumed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sama_data.manifest import load_manifest
from sama_data.rewrite import read_history
from sama_data.score.plan import picture_tokens, text_tokens
from sama_mega.__main__ import main
from tests.support.chat_server import KEYS, Asked, Reply, answer, good, refuse, serve

VIDEO = {"source": "s.mp4", "target": "t.mp4", "width": 64, "height": 48, "num_frames": 9}
IMAGE = {"source": "s.png", "target": "t.png", "width": 90, "height": 60}
COLUMNS = ("if_score", "vq_score", "cp_score", "mc_score")
QUICK = ("--frames", "4", "--yes")


def pairs(count: int) -> list[dict]:
    """Video and image pairs in turn, each with an instruction of its own."""
    return [(IMAGE if i % 2 else VIDEO) | {"instruction": f"Edit {i}"} for i in range(count)]


def opinion(instruction: str, turn: int, key: str) -> int:
    return 1 + hashlib.sha256(f"{instruction} {turn} {key}".encode()).digest()[0] % 10


def opinionated(asked: Asked, count: int = 0) -> Reply:
    keys = KEYS if asked.is_video else KEYS[:3]
    return answer({key: opinion(asked.instruction, asked.turn, key) for key in keys})


def expected(row: dict, turns: int = 3) -> list[float | None]:
    """The means of the four columns."""
    kind_keys = KEYS if row["target"].endswith("mp4") else (*KEYS[:3], None)
    return [
        None if key is None else sum(opinion(row["instruction"], turn, key) for turn in range(1, turns + 1)) / turns
        for key in kind_keys
    ]


def found(out: Path) -> list[list[float | None]]:
    table = pq.read_table(out)
    return [list(row) for row in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in ("data", "score", *arguments)])
    return int(caught.value.code or 0)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_scores_are_the_means_of_the_turns_and_the_estimate_is_what_is_asked(write_manifest, tmp_path, capsys):
    rows = [*pairs(7), {"video": "t.mp4", "caption": "A cat."}, VIDEO | {"instruction": "x", "rejected": "is empty"}]
    rows += [rows[0], IMAGE | {"instruction": "y", **dict.fromkeys(COLUMNS[:3], 9)}, VIDEO | {"instruction": "é" * 50}]
    manifest, out = write_manifest(*rows), tmp_path / "out.parquet"
    with serve(opinionated) as server:
        options = [manifest, "--out", out, "--endpoint", server.url, "--video-side", "32", *QUICK, "--json"]
        assert run(*options, "--dry-run", "--input-price", "2") == 0
        dry = last_line(capsys)
        assert not server.asked and sorted(path.name for path in tmp_path.glob("*.*")) == [
            "m.jsonl", "s.mp4", "s.png", "t.mp4", "t.png",
        ]  # fmt: skip
        assert run(*options) == 0
    report = last_line(capsys)
    estimate = report["estimate"]
    assert estimate == dry["estimate"] and dry["price"] > 0
    sizes = [picture.size for asked in server.asked for picture in asked.pictures]
    text = sum(text_tokens(sum(len(text.encode()) for text in asked.texts)) for asked in server.asked)
    assert estimate == {
        "images": 3,
        "videos": 5,
        "requests": len(server.asked),
        "pictures": len(sizes),
        "text_tokens": text,
        "picture_tokens": sum(picture_tokens(*size) for size in sizes),
        "answer_tokens": 400 * len(server.asked),
        "assumed": 0,
    }
    assert (len(server.asked), report["requests"], report["judged"]) == (24, 24, 8)
    assert (report["scored"], report["unscored"], report["prompt_tokens"]) == (9, {}, 2400)
    assert report["left_alone"] == {"raw clip": 1, "rejected": 1, "equal to another row": 1, "has its scores": 1}
    assert max(max(size) for size in sizes if size != (90, 60)) == 32
    assert set(Counter(server.questions).values()) == {1}
    given = [[None] * 4] * 2 + [expected(rows[0]), [9.0, 9.0, 9.0, None], expected(rows[-1])]
    assert found(out) == [*(expected(row) for row in rows[:7]), *given]
    assert [row.text for row in load_manifest(out)] == [row.get("instruction", "A cat.") for row in rows]
    (entry,) = read_history(out)
    assert (entry["tool"], entry["scored"], entry["judge"]["num_frames"]) == ("score", 9, 4)
    assert entry["endpoint"] == f"{server.url}/chat/completions"


def test_a_row_that_gets_no_answer_is_left_with_its_reason(write_manifest, tmp_path, capsys):
    rows = [*pairs(4), VIDEO | {"instruction": "Edit 9", "target": "gone.mp4"}]
    manifest, out = write_manifest(*rows), tmp_path / "out.parquet"

    def behave(asked: Asked, count: int) -> Reply:
        if asked.instruction == "Edit 1":
            return answer("nine") if asked.turn == 2 else opinionated(asked)
        return refuse(400, "too many pictures") if asked.instruction == "Edit 2" else opinionated(asked)

    with serve(behave) as server:
        options = [manifest, "--out", out, "--endpoint", server.url, "--attempts", "2", *QUICK, "--json"]
        assert run(*options) == 0
        report = last_line(capsys)
        assert (report["scored"], report["judged"]) == (2, 2)
        assert found(out) == [expected(rows[0]), [None] * 4, [None] * 4, expected(rows[3]), [None] * 4]
        reasons = pq.read_table(out)["unscored"].to_pylist()
        assert reasons[0] is None and reasons[3] is None
        assert reasons[1].startswith("the answer is not JSON") and reasons[1].endswith("'nine'")
        assert reasons[2:5:2] == ["status 400: too many pictures", "gone.mp4 does not exist"]
        assert report["unscored"] == {reason: 1 for reason in reasons if reason}
        # The row's first turn, two attempts at its second, and one request that no other attempt could mend.
        assert len(server.asked) == 6 + 3 + 1

        # What was answered, well or badly, is not asked again; unless users say so.
        server.asked.clear()
        assert run(*options) == 0
        assert not server.asked and last_line(capsys)["unscored"] == report["unscored"]
        server.behave = opinionated
        assert run(*options, "--retry-unscored") == 0
        assert sorted(server.questions) == [("Edit 1", 2), ("Edit 1", 3), *(("Edit 2", turn) for turn in (1, 2, 3))]
        assert last_line(capsys)["scored"] == 4 and found(out)[:4] == [expected(row) for row in rows[:4]]


def test_what_the_endpoint_was_not_there_to_answer_is_asked_by_the_next_run(write_manifest, tmp_path, capsys):
    manifest, out = write_manifest(*pairs(3)), tmp_path / "out.parquet"
    with serve(lambda asked, count: refuse(500) if asked.instruction == "Edit 1" else opinionated(asked)) as server:
        options = [manifest, "--out", out, "--endpoint", server.url, "--attempts", "1", *QUICK, "--json"]
        assert run(*options) == 0
        assert last_line(capsys)["unscored"] == {"status 500: no": 1}
        server.behave = opinionated
        server.asked.clear()
        assert run(*options) == 0
    assert server.questions == [("Edit 1", turn) for turn in (1, 2, 3)]
    assert found(out) == [expected(row) for row in pairs(3)]
    assert pq.read_table(out)["unscored"].null_count == 3


def test_an_endpoint_that_fails_for_row_after_row_stops_the_run(write_manifest, tmp_path, capsys):
    manifest, out = write_manifest(*pairs(60)), tmp_path / "out.parquet"
    with serve(lambda asked, count: refuse(400, "At most 1 image(s)")) as server:
        assert run(manifest, "--out", out, "--endpoint", server.url, "--concurrency", "2", *QUICK) == 2
    message = capsys.readouterr().err
    assert "20 rows in a row got no scores, the last for: status 400: At most 1 image(s)" in message
    assert len(server.asked) in (20, 21) and not out.exists()


def test_an_endpoint_that_is_not_there_gives_no_manifest(write_manifest, tmp_path, capsys):
    manifest, out = write_manifest(*pairs(3)), tmp_path / "out.parquet"
    with serve() as server:
        url = server.url
    options = [manifest, "--out", out, "--endpoint", url, "--attempts", "1", *QUICK]
    assert run(*options) == 2
    (message,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "none of 3 rows got an answer, the last for: the connection failed" in message
    assert not out.exists()


def test_a_wrong_key_stops_at_once_and_is_nowhere(write_manifest, tmp_path, capsys, monkeypatch):
    manifest, out = write_manifest(*pairs(6)), tmp_path / "out.parquet"
    monkeypatch.setenv("MY_KEY", " sk-secret\n")
    with serve(lambda asked, count: refuse(401, "no such key: sk-secret")) as server:
        options = [manifest, "--out", out, "--endpoint", server.url, "--concurrency", "2", *QUICK]
        assert run(*options, "--api-key-variable", "MY_KEY") == 2
        assert "status 401: no such key: ***: check" in (message := capsys.readouterr().err)
        assert {asked.authorization for asked in server.asked} == {"Bearer sk-secret"} and len(server.asked) <= 2
        server.behave = opinionated
        assert run(*options, "--api-key-variable", "MY_KEY") == 0
    captured = capsys.readouterr()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert "sk-secret" not in message + captured.out + captured.err and b"sk-secret" not in stored
    assert run(*options, "--api-key-variable", "NO_SUCH_KEY") == 2
    assert "NO_SUCH_KEY): the environment has no such variable" in capsys.readouterr().err


def test_nobody_is_asked_before_the_user_agrees(write_manifest, tmp_path, capsys, monkeypatch):
    manifest, out = write_manifest(*pairs(2)), tmp_path / "out.parquet"
    with serve(opinionated) as server:
        options = [manifest, "--out", out, "--endpoint", server.url]
        monkeypatch.setattr("sys.stdin.isatty", lambda: False)
        assert run(*options) == 2
        assert "add --yes" in capsys.readouterr().err
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("builtins.input", lambda prompt: "n")
        assert run(*options) == 2
        captured = capsys.readouterr()
        assert "not agreed to" in captured.err and "requests   6 with 30 pictures" not in captured.err
        assert not server.asked and not out.exists()
        monkeypatch.setattr("builtins.input", lambda prompt: "Yes")
        assert run(*options) == 0
        assert len(server.asked) == 6
        monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("there is nothing to agree to"))
        assert run(*options) == 0
        assert len(server.asked) == 6


def test_other_settings_do_not_share_a_journal(write_manifest, tmp_path, capsys):
    manifest, out = write_manifest(*pairs(1)), tmp_path / "out.parquet"
    with serve(opinionated) as server:
        options = [manifest, "--out", out, "--endpoint", server.url, "--yes"]
        assert run(*options) == 0
        assert run(*options, "--frames", "4") == 2
        assert "its answers were given with num_frames 8, not 4" in capsys.readouterr().err
        assert len(server.asked) == 3


def test_a_manifest_that_changes_meanwhile_gets_no_scores(write_manifest, tmp_path, capsys):
    rows = pairs(4)
    manifest, out = write_manifest(*rows), tmp_path / "out.parquet"
    newer = {"shorter": rows[:3], "shuffled": rows[::-1]}
    with serve() as server:
        for change, changed_rows in newer.items():
            write_manifest(*rows)

            def behave(asked: Asked, count: int, changed_rows: list[dict] = changed_rows) -> Reply:
                write_manifest(*changed_rows)
                return good(asked)

            server.behave = behave
            folder = tmp_path / change
            assert run(manifest, "--out", folder / out.name, "--endpoint", server.url, *QUICK) == 2
            assert "its rows changed while they were judged" in capsys.readouterr().err
            assert [path.name for path in folder.iterdir()] == ["out.parquet.journal.jsonl"]


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_killed_goes_on_and_asks_nothing_twice(write_manifest, tmp_path, repo_root, capsys, ending):
    rows = pairs(8)
    manifest, out = write_manifest(*rows), tmp_path / "out.parquet"
    journal = tmp_path / "out.parquet.journal.jsonl"
    num_answered, held = 11, threading.Event()

    def behave(asked: Asked, count: int) -> Reply:
        if count >= num_answered:
            held.wait(120)
        return opinionated(asked)

    with serve(behave) as server:
        options = [manifest, "--out", out, "--endpoint", server.url, "--concurrency", "3", *QUICK]
        command = [sys.executable, "-m", "sama_mega", "data", "score", *map(str, options)]
        process = subprocess.Popen(
            command,
            cwd=repo_root,
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # What a shell starts in the background is deaf to SIGINT, and so would this be.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            # All that was answered is on the disk, and three questions are open.
            wait_until(lambda: len(server.asked) == num_answered + 3 and journal.read_bytes().count(b"\n") == 12)
        finally:
            process.send_signal(ending)
            process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if ending == signal.SIGKILL else 130)
        assert not out.exists()
        answered, opened = server.questions[:num_answered], server.questions[num_answered:]
        held.set()
        server.asked.clear()
        assert run(*options, "--json") == 0
    report = last_line(capsys)
    again = server.questions
    assert set(again) >= set(opened) and not set(again) & set(answered)
    assert sorted(again + answered) == sorted((row["instruction"], turn) for row in rows for turn in (1, 2, 3))
    assert report["estimate"]["requests"] == len(again) == 24 - num_answered
    assert found(out) == [expected(row) for row in rows]


def test_two_runs_at_once_do_not_ask_the_same(write_manifest, tmp_path, capsys):
    manifest, out = write_manifest(*pairs(2)), tmp_path / "out.parquet"
    statuses: list[int] = []
    with serve() as server:
        options = [manifest, "--out", out, "--endpoint", server.url, *QUICK]

        def behave(asked: Asked, count: int) -> Reply:
            if count == 0:
                statuses.append(run(*options))
            return opinionated(asked)

        server.behave = behave
        assert run(*options, "--concurrency", "1") == 0
    assert statuses == [2] and len(server.asked) == 6
    assert "another process writes this journal" in capsys.readouterr().err


def test_a_journal_that_cannot_be_written_costs_nothing(write_manifest, tmp_path, capsys):
    manifest = write_manifest(*pairs(1))
    with serve() as server:
        assert run(manifest, "--out", manifest / "out.parquet", "--endpoint", server.url, *QUICK) == 2
    assert "cannot " in capsys.readouterr().err and not server.asked


def test_when_nothing_got_a_score_the_answer_is_no(write_manifest, tmp_path, capsys):
    manifest = write_manifest(VIDEO | {"instruction": "x", "target": "gone.mp4"})
    with serve() as server:
        assert run(manifest, "--out", tmp_path / "out.parquet", "--endpoint", server.url, *QUICK) == 1
    assert not server.asked
    assert "gone.mp4 does not exist" in capsys.readouterr().out
