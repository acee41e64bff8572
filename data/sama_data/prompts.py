"""What the text encoder reads: an edit's marker or a perturbation's token, one space, the text.

Training, its samples, `edit` and the suites all ask here, so that a model is spoken to as it was taught.
"""

from __future__ import annotations

from sama_data.pretext import PROMPT_TOKENS, TASKS, MotionSettings, PretextPlan
from sama_data.rows import Kind, Row

EDIT_PREFIXES: dict[Kind, str] = {"image": "[Image edit]", "video": "[Video edit]"}


def edit_prompt(kind: Kind, instruction: str) -> str:
    """Returns the prompt of an edit of an image or a video."""
    return _join(EDIT_PREFIXES[kind], instruction)


def pretext_prompt(plan: PretextPlan, caption: str) -> str:
    """Returns the prompt of a raw clip whose source is made by a plan."""
    return _join(plan.prompt_token, caption)


def make_prompt(row: Row, plan: PretextPlan) -> tuple[str, str]:
    """Returns a row's prompt, and what is left of it when the text is dropped."""
    if row.is_edit:
        return edit_prompt(row.kind, row.text), EDIT_PREFIXES[row.kind]
    return pretext_prompt(plan, row.text), plan.prompt_token


def row_prompts(row: Row, motion: MotionSettings) -> list[str]:
    """Returns every prompt that training may make of a row, those that are left when the text is dropped included."""
    if row.is_edit:
        return [edit_prompt(row.kind, row.text), EDIT_PREFIXES[row.kind]]
    # "none" is drawn too where the others can change nothing.
    drawn = [task for task in TASKS if task == "none" or (row.kind == "video" and getattr(motion, task) > 0)]
    tokens = [PROMPT_TOKENS[task] for task in drawn]
    return [*(_join(token, row.text) for token in tokens), *tokens]


def _join(prefix: str, text: str) -> str:
    return f"{prefix} {text.strip()}" if prefix else text.strip()
