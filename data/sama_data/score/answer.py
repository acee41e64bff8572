"""Reads what the endpoint sent back: strictly, for a wrong number is worse than none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sama_data.score.form import OBSERVATIONS, AnswerForm

# Models that were not held to a format put their JSON into one Markdown block.
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)
_SHOWN_CHARACTERS = 80


class BadAnswer(Exception):
    """An answer that holds no scores that can be used; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One turn's answer.

    Attributes:
        scores: A number for each score that was asked for.
        prompt_tokens: As the endpoint counted them; 0 where it does not say.
        completion_tokens: Likewise.
        observations: What the judge says that it saw.
    """

    scores: Mapping[str, float]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    observations: str = ""


def read_completion(body: bytes, form: AnswerForm) -> Verdict:
    """Returns the verdict in the body of a chat-completions response.

    Raises:
        BadAnswer: It is no such response, or its answer is not exactly what was asked for.
    """
    response = _parse(body, "the response")
    try:
        choice = response["choices"][0]
        content = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise BadAnswer(f"the response is no chat completion: {_shown(body.decode(errors='replace'))}") from None
    if not isinstance(content, str):
        refusal = choice["message"].get("refusal")
        raise BadAnswer(f"the model refused: {_shown(refusal)}" if isinstance(refusal, str) else "the answer is empty")
    if choice.get("finish_reason") == "length":
        raise BadAnswer("the answer was cut off at the most tokens allowed")
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    scores, observations = _read_answer(content, form)
    return Verdict(scores, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"), observations)


def read_scores(content: str, form: AnswerForm) -> dict[str, float]:
    """Returns the scores that a model's text holds, by name.

    Raises:
        BadAnswer: It is not one JSON object with exactly the keys that were asked for, or a score is not a number
            of the scale.
    """
    return _read_answer(content, form)[0]


def _read_answer(content: str, form: AnswerForm) -> tuple[dict[str, float], str]:
    """Returns the scores and the observations of a model's text."""
    text = content.strip()
    fenced = _FENCED.match(text)
    answer = _parse(fenced.group(1) if fenced else text, "the answer")
    wanted = list(form.keys.values())
    if not isinstance(answer, dict):
        raise BadAnswer(f"the answer is no JSON object: {_shown(text)}")
    missing = [key for key in wanted if key not in answer]
    unwanted = [key for key in answer if key not in (*wanted, OBSERVATIONS)]
    if missing or unwanted:
        faults = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(unwanted)}"] * bool(unwanted)
        raise BadAnswer(f"the answer {' and '.join(faults)}: {_shown(text)}")
    for key in wanted:
        value = answer[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not form.least <= value <= form.most:
            raise BadAnswer(f"{key} is {_shown(json.dumps(value))}, not a number from {form.least} to {form.most}")
    observations = answer.get(OBSERVATIONS)
    scores = {name: float(answer[key]) for name, key in form.keys.items()}
    return scores, observations if isinstance(observations, str) else ""


def _parse(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        shown = _shown(text.decode(errors="replace") if isinstance(text, bytes) else text)
        raise BadAnswer(f"{what} is not JSON ({str(error) or type(error).__name__}): {shown}") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + "...")
