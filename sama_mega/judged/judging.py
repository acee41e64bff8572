"""What is still to be asked about the edits of a suite, what that costs, and the asking."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import av

from sama_data.decode import decode_frames
from sama_data.errors import ClipError
from sama_data.media import Media
from sama_data.rows import Row
from sama_data.score.asking import Outcome, Question, Report, Sheet, ask_all
from sama_data.score.journal import Answers, Journal
from sama_data.score.pictures import make_exhibit, shown_size
from sama_data.score.plan import ASSUMED_SIZES, Estimate, picture_tokens, text_tokens
from sama_data.score.prompts import text_bytes
from sama_data.score.settings import EndpointSettings, JudgeSettings
from sama_mega.config.errors import ConfigError
from sama_mega.judged.clips import SourceClip
from sama_mega.judged.question import make_question
from sama_mega.judged.suite import Suite

# Less is rounding, as of 29.97 to 30.
_RATE_SLACK = 0.02


@dataclass(frozen=True, slots=True)
class Pair:
    """A source and its edit.

    Attributes:
        clip: The source.
        edit: The edit's file.
        key: Its name in the journal: another content of a file is another key.
    """

    clip: SourceClip
    edit: Path
    key: str


def make_pairs(clips: Sequence[SourceClip], edits: Mapping[str, Path]) -> list[Pair]:
    """Returns the clips that have an edit, with it.

    Raises:
        ConfigError: An edit is its source.
    """
    return [_pair(clip, edits[clip.name]) for clip in clips if clip.name in edits]


def open_questions(
    pairs: Sequence[Pair], judge: JudgeSettings, answers: Answers, retry_given_up: bool
) -> list[Question]:
    """Returns what is to be asked.

    Args:
        pairs: All that can be judged.
        judge: How.
        answers: What was answered already.
        retry_given_up: Whether to ask again about pairs that the model did not answer properly before.
    """
    questions: list[Question] = []
    for index, pair in enumerate(pairs):
        if pair.key in answers.given_up and not retry_given_up:
            continue
        done = answers.turns.get(pair.key, {})
        turns = tuple(turn for turn in range(1, judge.turns + 1) if turn not in done)
        if turns:
            questions.append(Question(index, pair.key, turns))
    return questions


def estimate(
    suite: Suite,
    pairs: Sequence[Pair],
    questions: Sequence[Question],
    unmade: Sequence[SourceClip],
    judge: JudgeSettings,
) -> Estimate:
    """Returns what asking will cost.

    Args:
        suite: What is asked.
        pairs: The edits that are there.
        questions: What is open of them.
        unmade: Clips whose edits are still to be made: all turns are open.
        judge: How they are judged.
    """
    open_turns = [(pairs[question.index].clip, len(question.turns)) for question in questions]
    open_turns += [(clip, judge.turns) for clip in unmade]
    counts: Counter[str] = Counter()
    for clip, num_turns in open_turns:
        counts.update(_cost(suite, clip, num_turns, judge))
    return Estimate(**counts)


def ask_about_edits(
    suite: Suite,
    pairs: Sequence[Pair],
    questions: Sequence[Question],
    judge: JudgeSettings,
    endpoint: EndpointSettings,
    journal: Journal,
    report: Report,
) -> Outcome:
    """Asks; every answer goes to the journal at once.

    Raises:
        EndpointError: The endpoint refuses us, fails for too many edits in a row, or was there for none.
        DataError: The journal cannot be written.
    """

    def make_sheet(question: Question) -> Sheet:
        pair = pairs[question.index]
        clip = pair.clip
        _require_same_moments(clip.path, pair.edit)
        row = Row(question.index, clip.name, "video", Media(clip.path), Media(pair.edit), clip.instruction)
        exhibit = make_exhibit(row, judge)
        category = suite.category(clip.category)
        messages = make_question(suite, category, clip.instruction, exhibit.originals, exhibit.edits)
        return Sheet(clip.name, messages, suite.form)

    return ask_all(questions, make_sheet, judge, endpoint, journal, report)


def _pair(clip: SourceClip, edit: Path) -> Pair:
    if edit.samefile(clip.path):
        raise ConfigError(f"{edit} is a source and no edit of it: name the folder with the edited clips (--edits)")
    digest = hashlib.blake2b(digest_size=16)
    for part in (
        clip.name.encode(),
        clip.instruction.encode(),
        clip.category.encode(),
        *map(_content, (clip.path, edit)),
    ):
        digest.update(hashlib.blake2b(part).digest())
    return Pair(clip, edit, digest.hexdigest())


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=32)).digest()


def _require_same_moments(source: Path, edit: Path) -> None:
    """Raises ClipError where frames of one number are not of one moment.

    As many frames are an edit of each, at whatever rate they were written; a file that tells no rate passes.
    """
    lengths = [_outline(path)[1] for path in (source, edit)]
    if lengths[0] is not None and lengths[0] == lengths[1]:
        return
    theirs, own = (decode_frames(path, max_frames=1).fps for path in (source, edit))
    if theirs and own and abs(own - theirs) > _RATE_SLACK * theirs:
        raise ClipError(
            str(edit),
            f"has {own:.5g} frames a second and its source {theirs:.5g}: frames are compared one by one, so write it "
            "with the source's rate",
        )


def _cost(suite: Suite, clip: SourceClip, num_turns: int, judge: JudgeSettings) -> dict[str, int]:
    size, num_frames = _outline(clip.path)
    shown = min(judge.num_frames, judge.max_frames, num_frames or judge.num_frames)
    width, height = shown_size(*(size or ASSUMED_SIZES["video"]), "video", judge)
    num_bytes = _bytes_without_instruction(suite, clip.category, shown) + len(clip.instruction.encode())
    return {
        "videos": 1,
        "requests": num_turns,
        "pictures": num_turns * 2 * shown,
        "text_tokens": num_turns * text_tokens(num_bytes),
        "picture_tokens": num_turns * 2 * shown * picture_tokens(width, height),
        "answer_tokens": num_turns * judge.max_output_tokens,
        "assumed": int(size is None or num_frames is None),
    }


@cache
def _bytes_without_instruction(suite: Suite, category: str, num_frames: int) -> int:
    shown = [""] * num_frames
    return text_bytes(make_question(suite, suite.category(category), "", shown, shown))


@cache
def _outline(path: Path) -> tuple[tuple[int, int] | None, int | None]:
    """Returns a clip's (width, height) and its frames as its header counts them; None where that cannot be told."""
    try:
        height, width = decode_frames(path, max_frames=1).frames.shape[1:3]
        with av.open(str(path)) as container:
            return (width, height), int(container.streams.video[0].frames) or None
    except (ClipError, av.FFmpegError, IndexError):
        return None, None
