"""Motion alignment: which perturbation a clip's source gets, as a pure plan of (seed, sample, epoch).

The plan holds frame indices and a tube permutation; it touches no pixel and is applied where the frames are
encoded. Source: SAMA (arXiv 2603.19228), motion alignment; the released code for what swaps with what.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from sama_data.buckets import cut_length
from sama_data.rows import Row

BLACK_FRAME = -1
NUM_TUBES = 8
TASKS: tuple[str, ...] = ("none", "cube", "speed", "tube")
PROMPT_TOKENS: dict[str, str] = {
    "none": "",
    "cube": "[Complete the missing regions in the video.]",
    "speed": "[Restore the video to normal playback speed.]",
    "tube": "[Restore the correct spatio-temporal order of the video segments.]",
}
_WORD_BYTES = 8


class MotionSettings(Protocol):
    """What a plan needs to know; `Motion` and the recipe's section `motion` both have it."""

    @property
    def none(self) -> float:
        """Weight of leaving the source as it is."""

    @property
    def cube(self) -> float:
        """Weight of inpainting black frames."""

    @property
    def speed(self) -> float:
        """Weight of slowing a sped-up clip down."""

    @property
    def tube(self) -> float:
        """Weight of restoring the order of shuffled tubes."""

    @property
    def cube_share(self) -> float:
        """Share of the frames that cube inpainting blackens."""

    @property
    def keep_length(self) -> bool:
        """Whether a sped-up clip is padded to the target's length."""


@dataclass(frozen=True, slots=True)
class Motion:
    """`MotionSettings` as plain values; the defaults are the paper's weights.

    Attributes:
        none: Weight of leaving the source as it is; the next three are weights as well.
        cube: Inpainting a run of black frames.
        speed: Slowing a clip down that plays twice as fast.
        tube: Restoring the order of shuffled tubes.
        cube_share: The share of frames that cube inpainting blackens.
        keep_length: Whether a sped-up clip is padded with its last frame to the target's length.
    """

    none: float = 1.0
    cube: float = 2.0
    speed: float = 3.0
    tube: float = 4.0
    cube_share: float = 0.3
    keep_length: bool = False


@dataclass(frozen=True, slots=True)
class PretextPlan:
    """How the source is made from a clip's frames.

    Attributes:
        task: One of TASKS, or "edit" where source and target are a real pair.
        frame_indices: Which frame of the clip each frame of the source shows; BLACK_FRAME for a black one.
        tube_order: For destination tube i (index ``t*4 + h*2 + w`` of the 2x2x2 tubes) the tube that fills
            it, or None. The first time half has (T+1)//2 frames; lines and columns split at H//2 and W//2,
            and the last of an odd number stays in place.
        prompt_token: What goes before the caption, "" for none.
    """

    task: str
    frame_indices: tuple[int, ...]
    tube_order: tuple[int, ...] | None
    prompt_token: str


def identity_plan(num_frames: int, task: str = "none") -> PretextPlan:
    """Returns the plan that leaves num_frames frames as they are."""
    return PretextPlan(task, tuple(range(num_frames)), None, "")


def plan_for(
    row: Row, num_frames: int, height: int, width: int, motion: MotionSettings, seed: int, epoch: int
) -> PretextPlan:
    """Returns how a row's source is made: only a raw video's is perturbed.

    Args:
        row: The row.
        num_frames: Its decoded frames, 4k+1.
        height: Their lines, in pixels.
        width: Their columns, in pixels.
        motion: As in `plan_pretext`, like the next two.
        seed: The run's seed.
        epoch: How often the row has been drawn before.
    """
    if row.is_edit:
        return identity_plan(num_frames, "edit")
    if row.kind == "image":
        return identity_plan(num_frames)
    return plan_pretext(motion, seed, row.sample_id, epoch, num_frames, height, width)


def plan_pretext(
    motion: MotionSettings, seed: int, sample_id: str, epoch: int, num_frames: int, height: int, width: int
) -> PretextPlan:
    """Draws the perturbation of one clip in one epoch.

    Pure: the same arguments give the same plan in any process, worker and version. A task that could change
    nothing at this size (speed at under 10 frames, say) is left out of the draw; where no task with a weight
    is left, the plan changes nothing.

    Args:
        motion: Weights of the tasks and their parameters.
        seed: The run's seed.
        sample_id: The clip's stable name.
        epoch: How often the clip has been drawn before.
        num_frames: The clip's frames, 4k+1.
        height: Its lines, in pixels.
        width: Its columns, in pixels.
    """
    draws = _Draws(seed, sample_id, epoch)
    task = _draw_task(motion, draws, num_frames, height, width)
    if task == "cube":
        return _plan_cube(motion.cube_share, draws, num_frames)
    if task == "speed":
        return _plan_speed(motion.keep_length, num_frames)
    if task == "tube":
        order = _draw_tube_order(draws, num_frames)
        return PretextPlan("tube", tuple(range(num_frames)), order, PROMPT_TOKENS["tube"])
    return identity_plan(num_frames)


def plan_source_frames(
    motion: MotionSettings, seed: int, sample_id: str, epoch: int, num_frames: int, height: int, width: int
) -> int:
    """Returns how many frames the source of `plan_pretext` has, for its arguments."""
    if motion.keep_length or _draw_task(motion, _Draws(seed, sample_id, epoch), num_frames, height, width) != "speed":
        return num_frames
    return _sped_up_length(num_frames)


def _sped_up_length(num_frames: int) -> int:
    return cut_length(max(1, round(num_frames / 2)))


def _draw_task(motion: MotionSettings, draws: _Draws, num_frames: int, height: int, width: int) -> str:
    sped_up = num_frames if motion.keep_length else _sped_up_length(num_frames)
    weights = {
        "none": motion.none,
        "cube": motion.cube if 1 <= _cube_length(motion.cube_share, num_frames) < num_frames else 0.0,
        # One frame has no speed.
        "speed": motion.speed if round(num_frames / 2) > 1 and sped_up > 1 else 0.0,
        "tube": motion.tube if num_frames > 1 and height > 1 and width > 1 else 0.0,
    }
    total = sum(weights.values())
    point = draws.uniform() * total
    for task in TASKS:
        point -= weights[task]
        if point < 0.0:
            return task
    # Reached only by rounding at the upper end, or where every weight left is zero.
    return next((task for task in reversed(TASKS) if weights[task] > 0.0), "none")


def _cube_length(cube_share: float, num_frames: int) -> int:
    return round(cube_share * num_frames)


def _plan_cube(cube_share: float, draws: _Draws, num_frames: int) -> PretextPlan:
    length = _cube_length(cube_share, num_frames)
    # Never frame 0: it has a latent of its own, and the rest is restored from it.
    first = 1 + draws.below(num_frames - length)
    black = range(first, first + length)
    indices = tuple(BLACK_FRAME if index in black else index for index in range(num_frames))
    return PretextPlan("cube", indices, None, PROMPT_TOKENS["cube"])


def _plan_speed(keep_length: bool, num_frames: int) -> PretextPlan:
    every_other = [2 * index for index in range(round(num_frames / 2))]
    if keep_length:
        indices = every_other + [every_other[-1]] * (num_frames - len(every_other))
    else:
        indices = every_other[: _sped_up_length(num_frames)]
    return PretextPlan("speed", tuple(indices), None, PROMPT_TOKENS["speed"])


def _draw_tube_order(draws: _Draws, num_frames: int) -> tuple[int, ...]:
    """A uniform permutation within equal shapes that moves at least one tube."""
    half = NUM_TUBES // 2
    # An odd number of frames gives the two time halves different lengths: their tubes do not fit each other.
    groups = [range(NUM_TUBES)] if num_frames % 2 == 0 else [range(half), range(half, NUM_TUBES)]
    while True:
        order = [tube for group in groups for tube in draws.permutation(group)]
        if order != list(range(NUM_TUBES)):
            return tuple(order)


class _Draws:
    """Numbers from BLAKE2b in counter mode: a standard, so no library's next version can change them."""

    def __init__(self, seed: int, sample_id: str, epoch: int) -> None:
        self._key = f"{seed}:{epoch}:{sample_id}".encode()
        self._counter = 0

    def _word(self) -> int:
        salt = self._counter.to_bytes(_WORD_BYTES, "little")
        self._counter += 1
        digest = hashlib.blake2b(self._key, digest_size=_WORD_BYTES, salt=salt, person=b"sama-pretext").digest()
        return int.from_bytes(digest, "little")

    def uniform(self) -> float:
        """In [0, 1)."""
        return (self._word() >> 11) * 2.0**-53

    def below(self, bound: int) -> int:
        """In 0..bound-1; the bias of the remainder, bound / 2**64, is far below what any run could see."""
        return self._word() % bound

    def permutation(self, items: range) -> list[int]:
        shuffled = list(items)
        for last in range(len(shuffled) - 1, 0, -1):
            other = self.below(last + 1)
            shuffled[last], shuffled[other] = shuffled[other], shuffled[last]
        return shuffled
