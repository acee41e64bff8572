"""What the loader hands to training."""

from __future__ import annotations

from dataclasses import dataclass

from sama_data.graph.frames import Frames
from sama_data.pretext import PretextPlan
from sama_data.rows import Kind
from sama_data.shapes import Shape


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of one step.

    Attributes:
        sample_id: The manifest's name for it.
        index: Its row in the dataset: with `epoch` the key of its noise.
        epoch: How often it had been drawn before.
        slot: Its position in the global step, images first; not where it stands on this rank.
        kind: "image" or "video": the stream that drew it.
        task: "edit" for a pair, else the perturbation: "none", "cube", "speed" or "tube".
        source_frames: ``[T, H, W, 3]`` uint8 RGB, unperturbed: `plan` is still to be applied. The same object
            as `target_frames` for a raw clip. Both are arrays, or `DeviceFrames` where DALI decoded to a GPU; they
            may be shared with a cache: not to be changed in place.
        target_frames: ``[T, H, W, 3]`` uint8 RGB, T = 4k+1.
        plan: How the source that the model sees is made from `source_frames`.
        prompt: What the text encoder reads.
        prompt_prefix: What is left of it when the text is dropped.
    """

    sample_id: str
    index: int
    epoch: int
    slot: int
    kind: Kind
    task: str
    source_frames: Frames
    target_frames: Frames
    plan: PretextPlan
    prompt: str
    prompt_prefix: str

    @property
    def shape(self) -> Shape:
        """What must agree in a micro-batch."""
        num_frames, height, width = self.target_frames.shape[:3]
        return Shape(self.kind, width, height, num_frames, len(self.plan.frame_indices))


@dataclass(frozen=True, slots=True)
class StepSamples:
    """This rank's share of one step.

    Attributes:
        step: The step, from 0.
        samples: This rank's samples, by slot; may be empty when there are more ranks than slots.
        num_slots: The step's samples over all ranks: losses are averaged over this number.
        num_image_slots: The images among them; their slots come first.
    """

    step: int
    samples: list[Sample]
    num_slots: int
    num_image_slots: int
