"""The journal: what was answered survives, half a line does not count, and nobody else's answers are taken."""

from __future__ import annotations

import json
import os

import pytest

from sama_data.errors import DataError
from sama_data.score.answer import Verdict
from sama_data.score.journal import Answers, Journal, read_journal

IDENTITY = {"model": "judge", "turns": 3}
SCORES = {"if_score": 9.0, "vq_score": 8.0}


def test_what_is_added_comes_back(tmp_path):
    path = tmp_path / "deep" / "j.jsonl"
    assert not read_journal(path, IDENTITY).turns
    with Journal(path, IDENTITY) as journal:
        journal.add_turn("a", "clips/ä.mp4", 1, Verdict(SCORES, 100, 7))
        journal.give_up("a", "clips/ä.mp4", "is not JSON")
        journal.add_turn("b", "b", 2, Verdict(SCORES))
        journal.give_up("c", "c", "no")
        journal.add_turn("c", "c", 1, Verdict(SCORES))  # asked again, and answered
        held = journal.answers
    assert held.turns == {"a": {1: (9.0, 8.0)}, "b": {2: (9.0, 8.0)}, "c": {1: (9.0, 8.0)}}
    assert held.given_up == {"a": "is not JSON"}
    read = read_journal(path, IDENTITY)
    with Journal(path, IDENTITY) as journal:
        assert read.equals(held) and journal.answers.equals(held)
        journal.give_up("b", "b", "no")
        assert not journal.answers.equals(read)
    assert json.loads(path.read_text().splitlines()[1])["tokens"] == [100, 7]


def answers_of(*scores: float) -> Answers:
    answers = Answers()
    for turn, score in enumerate(scores, start=1):
        answers.add("a", turn, {"vq_score": 1.0, "if_score": score})
    return answers


def test_the_mean_needs_every_turn():
    answers = answers_of(9.0, 7.0, 8.5)
    assert answers.scores("a", 3) == {"if_score": pytest.approx(24.5 / 3), "vq_score": 1.0}
    assert answers.scores("a", 2) == {"if_score": 8.0, "vq_score": 1.0}
    assert answers.scores("a", 4) is None and answers.scores("b", 1) is None


def test_nines_stay_nines():
    answers = answers_of(*[9.0] * 7)
    assert all(answers.scores("a", count) == {"if_score": 9.0, "vq_score": 1.0} for count in range(1, 8))


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_off_by_a_kill_costs_that_line_alone(tmp_path, cut):
    path = tmp_path / "j.jsonl"
    with Journal(path, IDENTITY) as journal:
        journal.add_turn("a", "a", 1, Verdict(SCORES))
        journal.add_turn("b", "b", 1, Verdict(SCORES))
    os.truncate(path, path.stat().st_size - cut)
    assert set(read_journal(path, IDENTITY).turns) == ({"a", "b"} if cut == 1 else {"a"})
    with Journal(path, IDENTITY) as journal:
        journal.add_turn("c", "c", 1, Verdict(SCORES))
    assert set(read_journal(path, IDENTITY).turns) == ({"a", "b", "c"} if cut == 1 else {"a", "c"})


def test_even_the_first_line_may_be_cut_off(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"journal": {"mod')
    with Journal(path, IDENTITY) as journal:
        journal.add_turn("a", "a", 1, Verdict(SCORES))
    assert set(read_journal(path, IDENTITY).turns) == {"a"}


def test_a_line_is_on_the_disk_before_the_next_question(tmp_path, monkeypatch):
    path, synced = tmp_path / "j.jsonl", []
    with Journal(path, IDENTITY) as journal:
        monkeypatch.setattr("os.fsync", lambda number: synced.append((number, path.read_bytes())))
        journal.add_turn("a", "a", 1, Verdict(SCORES))
    assert len(synced) == 1 and synced[0][1].endswith(b"\n") and b'"key": "a"' in synced[0][1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"journal": IDENTITY | {"turns": 5}}, r"given with turns 5, not 3: use that, or remove"),
        ({"journal": {"turns": 3}}, r"given with model None, not 'judge'"),
        ({"video": "a.mp4", "caption": "x"}, "is no journal of answers"),
    ],
)
def test_answers_to_other_questions_are_refused(tmp_path, line, message):
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps(line) + "\n")
    for opened in (read_journal, Journal):
        with pytest.raises(DataError, match=message):
            opened(path, IDENTITY)
    assert path.read_text() == json.dumps(line) + "\n"


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, IDENTITY), pytest.raises(DataError, match="another process writes this journal"):
        Journal(path, IDENTITY)
    Journal(path, IDENTITY).close()


def test_a_journal_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder: cannot write the journal: Is a directory"):
        Journal(tmp_path / "folder", IDENTITY)
    with pytest.raises(DataError, match="folder: cannot read the journal: Is a directory"):
        read_journal(tmp_path / "folder", IDENTITY)
