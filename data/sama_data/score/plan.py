"""Which rows of a manifest are still to be judged, and what asking for them will cost."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sama_data.dataset import Dataset
from sama_data.media import Media
from sama_data.names import hash_names
from sama_data.rows import Kind
from sama_data.score.asking import Question
from sama_data.score.journal import Answers
from sama_data.score.pictures import frames_looked_at, shown_size
from sama_data.score.prompts import make_messages, score_columns, text_bytes
from sama_data.score.settings import JudgeSettings

# Where the manifest does not say how large a clip is.
ASSUMED_SIZES: dict[Kind, tuple[int, int]] = {"image": (1024, 1024), "video": (832, 480)}

BYTES_PER_TEXT_TOKEN = 4
# Qwen2.5-VL: a token for each 28x28 pixels of a picture, whose sides are rounded to multiples, and two around it.
PIXELS_PER_TOKEN_SIDE = 28
_LEAST_PICTURE_TOKENS, _TOKENS_AROUND_PICTURE = 4, 2
_TOKENS_PER_PRICE = 1_000_000

TOKEN_FORMULA = (
    f"a text token for {BYTES_PER_TEXT_TOKEN} bytes; for a picture of w x h, as Qwen2.5-VL counts, "
    f"round(w/{PIXELS_PER_TOKEN_SIDE}) x round(h/{PIXELS_PER_TOKEN_SIDE}) + {_TOKENS_AROUND_PICTURE}; "
    "answers as long as is allowed"
)

_COLUMNS = (
    "source",
    "target",
    "text",
    "kind",
    "frame_start",
    "frame_end",
    "source_offset",
    "target_offset",
    "rejected",
    "width",
    "height",
    "num_frames",
    "source_width",
    "source_height",
    "source_num_frames",
    "if_score",
    "vq_score",
    "cp_score",
    "mc_score",
)
# What tells one question from another, beside its clips.
_KEY_COLUMNS = _COLUMNS[2:8]
_BATCH_ROWS = 8_192


@dataclass(frozen=True)
class Estimate:
    """What a run will ask, if every answer is good at once.

    Attributes:
        images: Image pairs to judge.
        videos: Video pairs.
        requests: Requests.
        pictures: Pictures in all requests together.
        text_tokens: Tokens of text in them, by the formula; the next likewise.
        picture_tokens: Tokens of pictures.
        answer_tokens: Tokens of the answers, at the most that is allowed.
        assumed: Pairs whose size or length the manifest does not say: taken to be `ASSUMED_SIZES`, and as long as is
            shown.
    """

    images: int = 0
    videos: int = 0
    requests: int = 0
    pictures: int = 0
    text_tokens: int = 0
    picture_tokens: int = 0
    answer_tokens: int = 0
    assumed: int = 0

    def price(self, input_price: float, output_price: float) -> float:
        """Returns what the run costs at most, given prices per million tokens read and written."""
        read = (self.text_tokens + self.picture_tokens) * input_price
        return (read + self.answer_tokens * output_price) / _TOKENS_PER_PRICE

    def as_dict(self) -> dict[str, int]:
        """Returns the counts as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What a run does with every row.

    Attributes:
        questions: What to ask, in the order of the rows.
        keys: For each row its key, where the journal or the run says its scores; None where they stay as they are.
        left_alone: Rows that are not asked about, by reason.
        estimate: What asking costs.
        targets: For each row `hash_names` of its target, ``[rows]``: tells later whether the rows are still the same.
    """

    questions: tuple[Question, ...]
    keys: tuple[str | None, ...]
    left_alone: Mapping[str, int]
    estimate: Estimate
    targets: NDArray[np.uint64]


def make_plan(
    dataset: Dataset, settings: JudgeSettings, answers: Answers, rescore: bool = False, retry_given_up: bool = False
) -> Plan:
    """Decides what to ask.

    Pairs that are equal in all that the judge sees are asked about once.

    Args:
        dataset: The rows of one manifest.
        settings: How pairs are judged.
        answers: What was answered already.
        rescore: Whether to judge rows too that have all their scores.
        retry_given_up: Whether to ask again about rows that the model did not answer properly before.
    """
    questions: dict[str, Question] = {}
    keys: list[str | None] = []
    left_alone: Counter[str] = Counter()
    estimate: Counter[str] = Counter()
    folder = dataset.parts[0].folder.resolve()
    for index, row in enumerate(_records(dataset)):
        reason = _reason_to_leave(row, rescore)
        keys.append(None if reason else row_key(row, folder))
        key = keys[-1]
        if reason or key is None:
            left_alone[reason or ""] += 1
            continue
        done = answers.turns.get(key, {})
        turns = tuple(turn for turn in range(1, settings.turns + 1) if turn not in done)
        if not turns:
            left_alone["answered before"] += 1
        elif key in answers.given_up and not retry_given_up:
            left_alone["given up before"] += 1
        elif key in questions:
            left_alone["equal to another row"] += 1
        else:
            questions[key] = Question(index, key, turns)
            estimate.update(_cost(row, len(turns), settings))
    targets = np.concatenate([hash_names(batch["target"]) for batch in dataset.batches(["target"])])
    return Plan(tuple(questions.values()), tuple(keys), dict(left_alone), Estimate(**estimate), targets)


def row_key(row: Mapping[str, Any], folder: Path) -> str:
    """Returns a digest of what makes a row's question: its instruction, its clips, and when those were written.

    Args:
        row: A row's canonical columns.
        folder: What its paths are relative to, as a real path: the same names in another folder are other clips.
    """
    values: list[Any] = [row[name] for name in _KEY_COLUMNS]
    for media in (Media.in_folder(folder, row[side]) for side in ("source", "target")):
        values += [str(media.path), media.stamp()]
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()


def picture_tokens(width: int, height: int) -> int:
    """Returns how many tokens a picture of that size is, by `TOKEN_FORMULA`."""
    across, down = (round(side / PIXELS_PER_TOKEN_SIDE) for side in (width, height))
    return max(_LEAST_PICTURE_TOKENS, across * down) + _TOKENS_AROUND_PICTURE


def text_tokens(num_bytes: int) -> int:
    """Returns how many tokens so many bytes of UTF-8 text are, by `TOKEN_FORMULA`."""
    return -(-num_bytes // BYTES_PER_TEXT_TOKEN)


def _records(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for batch in dataset.batches(_COLUMNS):
        for start in range(0, len(batch), _BATCH_ROWS):
            yield from batch.slice(start, _BATCH_ROWS).to_pylist()


def _reason_to_leave(row: Mapping[str, Any], rescore: bool) -> str | None:
    if row["source"] is None:
        return "raw clip"
    if row["rejected"] is not None:
        return "rejected"
    if not rescore and all(row[name] is not None for name in score_columns(row["kind"])):
        return "has its scores"
    return None


def _cost(row: Mapping[str, Any], num_turns: int, settings: JudgeSettings) -> dict[str, int]:
    kind: Kind = row["kind"]
    sides = [_side(row, prefix, settings) for prefix in ("source_", "")]
    shown = min(settings.num_frames, *(num_frames for num_frames, _, _ in sides))
    pictures = sum(shown * picture_tokens(*size) for _, size, _ in sides)
    num_bytes = _bytes_without_instruction(kind, shown) + len(row["text"].strip().encode())
    return {
        "images": int(kind == "image"),
        "videos": int(kind == "video"),
        "requests": num_turns,
        "pictures": num_turns * 2 * shown,
        "text_tokens": num_turns * text_tokens(num_bytes),
        "picture_tokens": num_turns * pictures,
        "answer_tokens": num_turns * settings.max_output_tokens,
        "assumed": int(any(assumed for _, _, assumed in sides)),
    }


def _side(row: Mapping[str, Any], prefix: str, settings: JudgeSettings) -> tuple[int, tuple[int, int], bool]:
    """Returns the frames that are looked at of one of the clips, the size they are shown at, and if that is a guess."""
    kind: Kind = row["kind"]
    # Where only the target was measured, the source is taken to be like it.
    names = ("width", "height", "num_frames")
    width, height, total = (row[name] if row[prefix + name] is None else row[prefix + name] for name in names)
    most = frames_looked_at(kind, settings)
    ends = [end for end in (row["frame_end"], total) if end is not None]
    num_frames = min(most, max(1, min(ends) - row["frame_start"])) if ends else most
    is_guess = width is None or height is None or (kind == "video" and not ends)
    if width is None or height is None:
        width, height = ASSUMED_SIZES[kind]
    return num_frames, shown_size(width, height, kind, settings), is_guess


@cache
def _bytes_without_instruction(kind: Kind, num_frames: int) -> int:
    return text_bytes(make_messages(kind, "", [""] * num_frames, [""] * num_frames))
