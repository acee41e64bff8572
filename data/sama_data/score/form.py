"""The form that an answer must have: one JSON object with a short text and whole numbers under given keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OBSERVATIONS = "observations"

_ANSWER = """\
Answer with one JSON object and nothing else, its keys in this order:
{example}
"{observations}" holds, in at most 60 words, what was changed and every flaw you found. The others are whole numbers \
from {least} to {most}."""


@dataclass(frozen=True)
class AnswerForm:
    """Which numbers are asked for.

    Attributes:
        keys: For each score's name the answer's key, in the order of the answer.
        least: The lowest score.
        most: The highest.
    """

    keys: Mapping[str, str]
    least: int = 1
    most: int = 10

    def schema(self) -> dict[str, Any]:
        """Returns the JSON schema of an answer, in the words that structured-output engines have in common."""
        # An enumeration: several engines refuse minimum and maximum.
        score = {"type": "integer", "enum": list(range(self.least, self.most + 1))}
        properties: dict[str, Any] = {OBSERVATIONS: {"type": "string"}}
        properties |= dict.fromkeys(self.keys.values(), score)
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def request(self) -> str:
        """Returns the words that ask for it."""
        keys = [f'"{OBSERVATIONS}": "..."', *(f'"{key}": N' for key in self.keys.values())]
        example = "{" + ", ".join(keys) + "}"
        return _ANSWER.format(example=example, observations=OBSERVATIONS, least=self.least, most=self.most)
