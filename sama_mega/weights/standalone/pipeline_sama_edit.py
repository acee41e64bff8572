"""Edits a video by an instruction: `pipe(source_video, instruction).frames`.

    pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True, torch_dtype=torch.bfloat16).to("cuda")
    frames = pipe(source_video, "Turn the car red").frames[0]

For videos from text alone, `WanTransformer3DModel.from_pretrained(FOLDER, subfolder="transformer")`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor

FRAMES_PER_LATENT = 4
PIXELS_PER_PATCH = 16


@dataclass
class SamaEditOutput(BaseOutput):
    """The edit.

    Attributes:
        frames: ``[1, T, H, W, 3]`` in 0..1 (``np``), lists of pictures (``pil``), ``[1, T, 3, H, W]`` (``pt``) or
            latents ``[1, C, T', H', W']`` (``latent``).
    """

    frames: Any


class SamaEditPipeline(DiffusionPipeline):
    """Samples an edit: latents and semantic features are stepped together from noise to clean (Euler).

    Args:
        transformer: `WanTransformer3DModel`.
        editing: `SamaEditing` of the same export.
        scheduler: `FlowMatchEulerDiscreteScheduler`: its shift says the noise levels.
        vae: `AutoencoderKLWan`.
        text_encoder: `UMT5EncoderModel`.
        tokenizer: Of the text encoder.
    """

    # An export may come without them.
    _optional_components: ClassVar[list[str]] = ["vae", "text_encoder", "tokenizer"]

    def __init__(
        self,
        transformer: Any,
        editing: Any,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            editing=editing,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.video_processor = VideoProcessor(vae_scale_factor=PIXELS_PER_PATCH)

    @torch.no_grad()
    def __call__(
        self,
        source_video: Any,
        instruction: str,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        semantic_features: torch.Tensor | None = None,
        output_type: str = "np",
        callback: Callable[[int], None] | None = None,
    ) -> SamaEditOutput:
        """Edits one video.

        Args:
            source_video: Frames as a list of pictures, an array ``[T, H, W, 3]`` of 0..255 (uint8) or 0..1, or a tensor
                ``[T, 3, H, W]`` in 0..1. Height and width are brought to multiples of 16; a length that is not 4k+1 is
                padded for the model and cut back.
            instruction: What to change.
            negative_prompt: By default what the model was trained for.
            num_inference_steps: Likewise.
            guidance_scale: Likewise; 1 is none.
            generator: Of the noise.
            latents: The noise itself.
            semantic_features: The noise of the semantic features, ``[1, M, F]``.
            output_type: ``np``, ``pil``, ``pt`` or ``latent``.
            callback: Called with the number of finished steps.
        """
        for name in ("vae", "text_encoder", "tokenizer"):
            if getattr(self, name) is None:
                raise ValueError(f"the pipeline has no {name}: give from_pretrained(..., {name}=...)")
        if not isinstance(instruction, str):
            raise ValueError(f"the instruction must be one string, not {type(instruction).__name__}")
        if isinstance(source_video, list | tuple) and not source_video:
            raise ValueError("source_video is empty: give at least one frame")
        config, device = self.editing.config, self._execution_device
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance = config.guidance_scale if guidance_scale is None else guidance_scale
        pixels, num_frames = self._pixels(source_video)
        source_latents = self._encode(pixels.to(device))
        prefix = config.image_prefix if num_frames == 1 else config.video_prefix
        prompt = f"{prefix} {instruction.strip()}"
        num_tokens = len(self.tokenizer(prompt_clean(prompt))["input_ids"])
        if num_tokens > config.text_length:
            raise ValueError(
                f"the instruction has {num_tokens} tokens with its prefix and the model reads {config.text_length}:"
                " shorten it"
            )
        texts = [self.encode_prompt(prompt)]
        if guidance != 1.0:
            own = config.negative_prompt if negative_prompt is None else negative_prompt
            texts.append(self.encode_prompt(prefix if own is None else own))
        if latents is None:
            latents = randn_tensor(source_latents.shape, generator, device, torch.float32)
        if semantic_features is None:
            shape = (1, config.semantic_tokens, config.semantic_dim)
            semantic_features = randn_tensor(shape, generator, device, torch.float32)
        latents = self._sample(
            latents.to(device), semantic_features.to(device), source_latents, texts, steps, guidance, callback
        )
        if output_type == "latent":
            return SamaEditOutput(frames=latents)
        video = self._decode(latents)[:, :, :num_frames]
        return SamaEditOutput(frames=self.video_processor.postprocess_video(video, output_type=output_type))

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> torch.Tensor:
        """One prompt, cleaned as Wan cleans it, to ``[1, text_length, text_dim]``, zero after its last token."""
        length = self.editing.config.text_length
        ids = self.tokenizer(prompt_clean(prompt), truncation=True, max_length=length, padding=False)["input_ids"]
        device = self._execution_device
        hidden = self.text_encoder(input_ids=torch.tensor([ids], device=device)).last_hidden_state.float()
        padded = hidden.new_zeros(1, length, hidden.shape[2])
        padded[:, : hidden.shape[1]] = hidden
        return padded

    def _pixels(self, source_video: Any) -> tuple[torch.Tensor, int]:
        """``[1, 3, T, H, W]`` in [-1, 1], T = 4k+1, and the source's number of frames."""
        if isinstance(source_video, list | tuple) and isinstance(source_video[0], np.ndarray):
            source_video = np.stack(source_video)
        elif isinstance(source_video, list | tuple) and isinstance(source_video[0], torch.Tensor):
            source_video = torch.stack(list(source_video))
        if isinstance(source_video, np.ndarray) and source_video.dtype == np.uint8:
            source_video = source_video.astype(np.float32) / 255
        elif isinstance(source_video, torch.Tensor) and source_video.dtype == torch.uint8:
            source_video = source_video.float() / 255
        pixels = self.video_processor.preprocess_video(source_video)
        num_frames = pixels.shape[2]
        missing = -(num_frames - 1) % FRAMES_PER_LATENT
        return torch.cat([pixels, *[pixels[:, :, -1:]] * missing], dim=2), num_frames

    def _sample(
        self,
        latents: torch.Tensor,
        semantic: torch.Tensor,
        source_latents: torch.Tensor,
        texts: list[torch.Tensor],
        steps: int,
        guidance: float,
        callback: Callable[[int], None] | None,
    ) -> torch.Tensor:
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1].tolist(), device=latents.device)
        levels = self.scheduler.sigmas.tolist()
        for step, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            told = timestep.float().expand(1)
            outputs = [self.editing(self.transformer, latents, told, text, source_latents, semantic) for text in texts]
            velocity, semantic_out = outputs[0]
            if len(outputs) == 2:
                velocity = outputs[1][0] + guidance * (velocity - outputs[1][0])
                semantic_out = outputs[1][1] + guidance * (semantic_out - outputs[1][1])
            if self.editing.config.semantic_target == "clean":
                semantic_out = (semantic - semantic_out) / levels[step]
            size = levels[step + 1] - levels[step]
            latents, semantic = latents + velocity * size, semantic + semantic_out * size
            if callback is not None:
                callback(step + 1)
        return latents

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The posterior's mean, normalised per channel."""
        mean, std = self._latent_statistics(pixels.device)
        posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        return (posterior.mode().float() - mean) / std

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._latent_statistics(latents.device)
        return self.vae.decode((latents * std + mean).to(self.vae.dtype)).sample.float().clamp(-1, 1)

    def _latent_statistics(self, device: torch.device) -> list[torch.Tensor]:
        config = self.vae.config
        values = (config.latents_mean, config.latents_std)
        return [torch.tensor(value, device=device).view(1, -1, 1, 1, 1) for value in values]
