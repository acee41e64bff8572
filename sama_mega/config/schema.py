"""The recipe: every knob of a run, its type, its default and its rule.

Values are frozen after loading. Rules that need one field are types or `Field` bounds; rules between fields
are validators that raise `BrokenRule`. Rules that need a component (an encoder, a kernel, the ranks) live
there. Paths are relative to the working directory of the command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Strict,
    model_validator,
)

LATENT_STRIDE = 8
"""Pixels per latent position, in height and in width."""
FRAMES_PER_LATENT = 4
"""Frames per latent frame after the first, so that clips have 4k+1 frames."""
BUILT_IN_ENCODERS = {"video": "dct", "text": "hash", "semantic": "tiny"}
"""By what it encodes, the encoder that needs no weights."""


class BrokenRule(ValueError):
    """A rule that a recipe breaks, with the key that the user should look at."""

    def __init__(self, key: str, value: object, rule: str) -> None:
        """Name the `key` (in its section; dotted where rules cross sections), its `value` and the `rule`."""
        super().__init__(rule)
        self.key = key
        self.value = value
        self.rule = rule


def _check_path(path: Path) -> Path:
    if str(path) in ("", "."):
        raise ValueError("must name a file or folder; write null for none")
    return path


def _check_auto_or_positive(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("must be auto or a whole number of at least 1")
    return value


def _check_stage(value: Any) -> Any:
    if type(value) is not int or value not in (0, 1):  # Literal alone would take true and 1.0
        raise ValueError("must be 0 (pre-training) or 1 (editing)")
    return value


Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""A probability or a share of a whole."""
ShareBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A decay rate: 1 would never take in anything new."""
RecipePath = Annotated[Path, Strict(False), AfterValidator(_check_path)]
"""A path; strictness is off because YAML can only give text."""
Name = Annotated[str, Field(min_length=1)]
"""Text that must not be empty."""
AutoOrPositive = Annotated[Literal["auto"] | int, BeforeValidator(_check_auto_or_positive)]
"""`auto` or a whole number of at least 1."""
Stage = Annotated[Literal[0, 1], BeforeValidator(_check_stage)]
"""0: pre-training on raw videos and image edits; 1: editing."""
LoraTarget = Literal[
    "self_attn.linear_qkv",
    "self_attn.o",
    "cross_attn.q",
    "cross_attn.linear_kv",
    "cross_attn.o",
    "ffn.linear_in",
    "ffn.linear_out",
]
"""A linear of every block."""
Bucket = Annotated[tuple[PositiveInt, PositiveInt], Strict(False)]
"""Width and height in pixels; strictness is off because YAML gives lists."""

_LANDSCAPE_BUCKETS = ((896, 448), (832, 480), (768, 512), (736, 544), (704, 576), (672, 608))
DEFAULT_BUCKETS: tuple[tuple[int, int], ...] = (
    *_LANDSCAPE_BUCKETS,
    (640, 640),
    *((height, width) for width, height in _LANDSCAPE_BUCKETS),
)
"""The 480p buckets, (width, height) in pixels: seven shapes and their transposes."""


class Section(BaseModel):
    """Base of all recipe sections: frozen, no unknown keys, no silent conversions, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelRecipe(Section):
    """Sizes of the SAMA DiT and how its new parts start."""

    dim: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    ffn_dim: PositiveInt
    in_channels: PositiveInt = 16
    out_channels: PositiveInt = 16
    patch_size: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Strict(False)] = (1, 2, 2)
    text_dim: PositiveInt = 4096
    text_length: PositiveInt = 512
    time_features: PositiveInt = 256
    norm_eps: PositiveFloat = 1e-6
    semantic_dim: PositiveInt = 1152
    semantic_hidden_dim: PositiveInt = 1024
    roles: Literal["segment", "shifted_rope"] = "segment"
    semantic_rope: Literal["zero", "identity"] = "zero"
    type_embedding_std: NonNegativeFloat = 0.0
    head_init: Literal["xavier", "zero"] = "xavier"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @model_validator(mode="after")
    def _check_sizes(self) -> ModelRecipe:
        if self.dim % self.num_heads:
            allowed = [heads for heads in range(1, self.dim // 2 + 1) if self.dim % (2 * heads) == 0]
            nearest = sorted(sorted(allowed, key=lambda heads: abs(heads - self.num_heads))[:4])
            fix = f": use {', '.join(map(str, nearest))}" if nearest else ""
            raise BrokenRule("num_heads", self.num_heads, f"must divide model.dim ({self.dim}){fix}")
        if self.head_dim % 2:
            rule = f"gives heads of {self.head_dim} with model.dim ({self.dim}): rotary needs an even width"
            raise BrokenRule("num_heads", self.num_heads, rule)
        if self.time_features % 2:
            raise BrokenRule("time_features", self.time_features, "must be even: half cosines, half sines")
        if self.patch_size[0] != 1:
            raise BrokenRule("patch_size", list(self.patch_size), "must start with 1: one latent frame a patch")
        if self.out_channels != self.in_channels:
            rule = f"must equal model.in_channels ({self.in_channels}): the velocity has the latents' shape"
            raise BrokenRule("out_channels", self.out_channels, rule)
        return self


class ParallelRecipe(Section):
    """Parallel degrees; `parallel.layout.resolve_layout` checks them against the number of ranks."""

    tensor: PositiveInt = 1
    context: PositiveInt = 1
    pipeline: PositiveInt = 1
    data: AutoOrPositive = "auto"
    sequence: bool = True
    ulysses: AutoOrPositive = "auto"
    interleave: PositiveInt = 1
    stage_layers: Annotated[tuple[PositiveInt, ...], Strict(False)] | None = None
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False


class BlendEntry(Section):
    """One dataset of a blend and how often its rows are drawn, relative to 1.0."""

    manifest: RecipePath
    weight: PositiveFloat = 1.0


class DataRecipe(Section):
    """What is trained on, how many samples a step, and how clips are cut."""

    manifest: RecipePath | None = None
    blend: Annotated[tuple[BlendEntry, ...], Strict(False)] = ()
    images_per_step: NonNegativeInt = 448
    videos_per_step: NonNegativeInt = 112
    micro_batch_images: PositiveInt = 1
    micro_batch_videos: PositiveInt = 1
    buckets: Annotated[tuple[Bucket, ...], Strict(False)] = DEFAULT_BUCKETS
    max_frames: PositiveInt = 81
    image_weight: PositiveFloat = 1.0
    prefetch_steps: NonNegativeInt = 2
    decode_threads: PositiveInt = 1
    decoder: Literal["auto", "pyav", "dali"] = "auto"
    decode_batch: PositiveInt = 8
    decode_timeout_seconds: Annotated[float, Field(gt=0.0, le=86_400.0)] = 60.0
    text_dropout: Share = 0.1
    max_bad_share: Share = 0.5
    decoded_cache_mib: NonNegativeInt = 0
    cache: RecipePath | None = None

    @model_validator(mode="after")
    def _check_samples(self) -> DataRecipe:
        if self.manifest is not None and self.blend:
            raise BrokenRule("manifest", self.manifest, "and data.blend are both set: keep one of them")
        if self.images_per_step + self.videos_per_step == 0:
            raise BrokenRule("videos_per_step", 0, "and data.images_per_step are both 0: a step needs a sample")
        if (self.max_frames - 1) % FRAMES_PER_LATENT:
            lower = self.max_frames - (self.max_frames - 1) % FRAMES_PER_LATENT
            rule = f"must be 4k+1 frames: use {lower} or {lower + FRAMES_PER_LATENT}"
            raise BrokenRule("max_frames", self.max_frames, rule)
        if self.decoder == "dali" and self.cache is not None:
            rule = (
                "and data.cache are both set, and features are found by the frames that PyAV decodes: use pyav or auto"
            )
            raise BrokenRule("decoder", self.decoder, rule)
        if not self.buckets:
            raise BrokenRule("buckets", [], "must hold at least one [width, height]")
        if len(set(self.buckets)) < len(self.buckets):
            twice = next(bucket for bucket in self.buckets if self.buckets.count(bucket) > 1)
            raise BrokenRule("buckets", list(twice), "is listed twice")
        return self


class DiffusionRecipe(Section):
    """Flow matching: the noise levels of training and the sampler."""

    shift: PositiveFloat = 5.0
    num_train_timesteps: PositiveInt = 1000
    timestep_weight: Literal["bell", "none"] = "bell"
    guidance: NonNegativeFloat = 5.0
    sampling_steps: PositiveInt = 50
    # None: an edit without its instruction, "[Video edit]" or "[Image edit]".
    negative_prompt: str | None = None


class AnchorRecipe(Section):
    """Semantic anchoring: which frames are anchors, their tokens, and their share of the loss.

    No anchor frames: no semantic tokens, no modules for them, no semantic loss.
    """

    num_frames: NonNegativeInt = 1
    local_grid: PositiveInt = 8
    global_token: bool = True
    weight: NonNegativeFloat = 0.1
    target: Literal["velocity", "clean"] = "velocity"

    @property
    def tokens_per_anchor(self) -> int:
        """Local tokens of one anchor frame, and its global token where there is one."""
        return self.local_grid**2 + int(self.global_token)

    @property
    def num_tokens(self) -> int:
        """Semantic tokens of one sample."""
        return self.num_frames * self.tokens_per_anchor


class MotionRecipe(Section):
    """Motion alignment: how often each perturbation is drawn for a raw video, and its parameters."""

    none: NonNegativeFloat = 1.0
    cube: NonNegativeFloat = 2.0
    speed: NonNegativeFloat = 3.0
    tube: NonNegativeFloat = 4.0
    cube_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    keep_length: bool = False

    @model_validator(mode="after")
    def _check_weights(self) -> MotionRecipe:
        if self.none + self.cube + self.speed + self.tube == 0:
            raise BrokenRule("none", 0, "and the weights of cube, speed and tube are all 0: set at least one")
        return self


class EncodersRecipe(Section):
    """Which frozen encoders make latents, text embeddings and semantic features, and their weights."""

    video: Literal["dct", "wan"] = "dct"
    text: Literal["hash", "umt5"] = "hash"
    semantic: Literal["tiny", "siglip"] = "tiny"
    video_path: RecipePath | None = None
    text_path: RecipePath | None = None
    semantic_path: RecipePath | None = None

    @model_validator(mode="after")
    def _check_paths(self) -> EncodersRecipe:
        for role, name in BUILT_IN_ENCODERS.items():
            path = getattr(self, f"{role}_path")
            if getattr(self, role) == name and path is not None:
                raise BrokenRule(f"{role}_path", path, f"is not read: encoders.{role} is {name}, which has no weights")
        return self


class LoraRecipe(Section):
    """Low-rank training: the rank (0: everything is trained), its strength, and which linears of a block change."""

    rank: NonNegativeInt = 0
    alpha: PositiveFloat | None = None
    targets: Annotated[tuple[LoraTarget, ...], Strict(False)] = get_args(LoraTarget)

    @property
    def factor(self) -> float:
        """What a low-rank change is multiplied by: ``alpha / rank``, alpha being the rank by default."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @model_validator(mode="after")
    def _check_targets(self) -> LoraRecipe:
        if self.rank == 0 and self.alpha is not None:
            raise BrokenRule("alpha", self.alpha, "is not read: lora.rank is 0")
        if not self.targets:
            raise BrokenRule("targets", [], "must name at least one linear")
        if len(set(self.targets)) < len(self.targets):
            twice = next(target for target in self.targets if self.targets.count(target) > 1)
            raise BrokenRule("targets", twice, "is listed twice")
        return self


class OptimizerRecipe(Section):
    """AdamW, its learning-rate schedule, gradient clipping and the moving average of the weights."""

    learning_rate: PositiveFloat = 2e-5
    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.999
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01
    clip_grad_norm: NonNegativeFloat = 1.0
    warmup_steps: NonNegativeInt = 0
    decay_share: Share = 0.0
    ema_decay: ShareBelowOne = 0.9998
    ema_ramp: bool = False
    ema_device: Literal["device", "host"] = "device"


class TrainRecipe(Section):
    """The run: its stage, length, folder, seed, precision and what is reported."""

    stage: Stage
    steps: PositiveInt
    run_folder: RecipePath
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    float32_matmul_precision: Literal["highest", "high", "medium"] = "highest"
    recompute: Literal["none", "selective", "selective_ffn", "full"] = "none"
    skip_loss_above: PositiveFloat | None = None
    skip_grad_norm_above: PositiveFloat | None = None
    max_skipped_steps: PositiveInt = 20
    hang_seconds: PositiveFloat | None = 900.0
    pace_every: NonNegativeInt = 100
    log_every: PositiveInt = 10
    sample_every: NonNegativeInt = 0
    num_samples: NonNegativeInt = 2
    cpu_threads: PositiveInt | None = None


class CheckpointRecipe(Section):
    """How often checkpoints are written, whether beside the run, how many are kept, and what the run starts from."""

    every: PositiveInt = 1000
    keep: PositiveInt = 2
    asynchronous: bool = True
    resume: bool = True
    init_from: RecipePath | None = None
    init_weights: Literal["ema", "model"] = "ema"


class TrackRecipe(Section):
    """Experiment tracking."""

    mlflow: bool = True
    experiment: Name = "sama-mega"
    uri: Name | None = None
    log_sample_ids: bool = False


class KernelsRecipe(Section):
    """Which implementation of each fused operation runs."""

    ops: Literal["reference", "triton", "auto"] = "auto"
    attention: Name = "auto"


class Recipe(Section):
    """One run, whole: what a YAML file in `recipes/` says, with every default filled in."""

    model: ModelRecipe
    parallel: ParallelRecipe = ParallelRecipe()
    data: DataRecipe = DataRecipe()
    diffusion: DiffusionRecipe = DiffusionRecipe()
    anchor: AnchorRecipe = AnchorRecipe()
    motion: MotionRecipe = MotionRecipe()
    encoders: EncodersRecipe = EncodersRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    lora: LoraRecipe = LoraRecipe()
    train: TrainRecipe
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    track: TrackRecipe = TrackRecipe()
    kernels: KernelsRecipe = KernelsRecipe()

    @model_validator(mode="after")
    def _check_across_sections(self) -> Recipe:
        multiples = [LATENT_STRIDE * size for size in self.model.patch_size[1:]]
        for width, height in self.data.buckets:
            if height % multiples[0] or width % multiples[1]:
                rule = f"must be a multiple of {multiples[1]} wide and a multiple of {multiples[0]} high"
                raise BrokenRule("data.buckets", [width, height], rule)
        if self.anchor.num_frames > self.data.max_frames:
            rule = f"must be at most data.max_frames ({self.data.max_frames})"
            raise BrokenRule("anchor.num_frames", self.anchor.num_frames, rule)
        return self
