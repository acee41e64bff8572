"""The recipe: every knob of a run, its type, its default and its rule.

Values are frozen after loading. Rules that need one field are types or `Field` bounds; rules between fields
are validators that raise `BrokenRule`. Rules that need a component (an encoder, a kernel, the ranks) live
there. Paths are relative to the working directory of the command.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Strict,
    model_validator,
)

from sama_mega.config.field_types import (
    FRAMES_PER_LATENT,
    LATENT_STRIDE,
    AutoOrPositive,
    BrokenRule,
    Bucket,
    LoraTarget,
    Name,
    RecipePath,
    Section,
    Share,
    ShareBelowOne,
    Stage,
)

BUILT_IN_ENCODERS = {"video": "dct", "text": "hash", "semantic": "tiny"}
"""By what it encodes, the encoder that needs no weights."""
_LANDSCAPE_BUCKETS = ((896, 448), (832, 480), (768, 512), (736, 544), (704, 576), (672, 608))
DEFAULT_BUCKETS: tuple[tuple[int, int], ...] = (
    *_LANDSCAPE_BUCKETS,
    (640, 640),
    *((height, width) for width, height in _LANDSCAPE_BUCKETS),
)
"""The 480p buckets, (width, height) in pixels: seven shapes and their transposes."""


class ModelRecipe(Section):
    """Sizes of the SAMA DiT and how its new parts start."""

    dim: PositiveInt
    """Width of the hidden state; `num_heads` divides it into heads of an even width."""
    num_layers: PositiveInt
    """Transformer blocks."""
    num_heads: PositiveInt
    """Attention heads; a multiple of `parallel.tensor`."""
    ffn_dim: PositiveInt
    """Inner width of the feed-forward; a multiple of `parallel.tensor`."""
    in_channels: PositiveInt = 16
    """Channels of a latent."""
    out_channels: PositiveInt = 16
    """Channels of the predicted velocity; equals `in_channels`."""
    patch_size: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Strict(False)] = (1, 2, 2)
    """Latent frames, rows and columns of one token; the first is 1."""
    text_dim: PositiveInt = 4096
    """Width of the text encoder's embeddings."""
    text_length: PositiveInt = 512
    """Text tokens of a sample, zero-padded; a longer prompt is cut and counted."""
    time_features: PositiveInt = 256
    """Sinusoidal features of a timestep, half cosines and half sines: even."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of every layer norm and RMS norm."""
    semantic_dim: PositiveInt = 1152
    """Width of the semantic encoder's features."""
    semantic_hidden_dim: PositiveInt = 1024
    """Inner width of the MLP that makes tokens of semantic features."""
    roles: Literal["segment", "shifted_rope"] = "segment"
    """How tokens are told apart: a learned type embedding, or (ablation) source positions shifted in time."""
    semantic_rope: Literal["zero", "identity"] = "zero"
    """Rotary factors of semantic tokens: zero, as released, so that they average all values; or no rotation."""
    type_embedding_std: NonNegativeFloat = 0.0
    """Standard deviation of fresh type embeddings; 0, as released, for pre-trained backbones."""
    head_init: Literal["xavier", "zero"] = "xavier"
    """How the output head and the semantic head start where they are fresh."""

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
    """Ranks that share every weight matrix; divides `model.num_heads` and `model.ffn_dim`."""
    context: PositiveInt = 1
    """Ranks that share the tokens of every sample."""
    pipeline: PositiveInt = 1
    """Ranks that share the stack of blocks."""
    data: AutoOrPositive = "auto"
    """Ranks that share a step's samples and the optimizer's state; auto: all that remain."""
    sequence: bool = True
    """Whether tensor ranks also share the tokens between the matrices."""
    ulysses: AutoOrPositive = "auto"
    """Context ranks that exchange heads for tokens, the rest gather keys and values; auto: as many as can."""
    interleave: PositiveInt = 1
    """Pipeline stages of a rank."""
    stage_layers: Annotated[tuple[PositiveInt, ...], Strict(False)] | None = None
    """Blocks of every stage in the model's order, summing to `model.num_layers`; null: as even as can be."""
    overlap_grad_reduce: bool = False
    """Whether gradients travel during the last backward pass."""
    overlap_param_gather: bool = False
    """Whether parameters travel during the next forward pass."""


class BlendEntry(Section):
    """One dataset of a blend and how often its rows are drawn, relative to 1.0."""

    manifest: RecipePath
    """A dataset's manifest."""
    weight: PositiveFloat = 1.0
    """How often its rows are drawn: 1 in proportion to their number, 2 twice as often."""


class DataRecipe(Section):
    """What is trained on, how many samples a step, and how clips are cut."""

    manifest: RecipePath | None = None
    """The one dataset that is trained on; set this or `blend`."""
    blend: Annotated[tuple[BlendEntry, ...], Strict(False)] = ()
    """The datasets that are trained on, each with its weight."""
    images_per_step: NonNegativeInt = 448
    """Images of an optimizer step, over all ranks."""
    videos_per_step: NonNegativeInt = 112
    """Videos of an optimizer step, over all ranks."""
    micro_batch_images: PositiveInt = 1
    """Images, alike in shape, that go through the model together."""
    micro_batch_videos: PositiveInt = 1
    """Videos, alike in shape, that go through the model together."""
    buckets: Annotated[tuple[Bucket, ...], Strict(False)] = DEFAULT_BUCKETS
    """[width, height] that clips are scaled and cropped to, the nearest aspect ratio; 480p by default."""
    max_frames: PositiveInt = 81
    """Frames at most, 4k+1; a longer clip is cut."""
    image_weight: PositiveFloat = 1.0
    """Weight of an image's loss; a video's is 1."""
    prefetch_steps: NonNegativeInt = 2
    """Steps that are prepared ahead of the one in use."""
    decode_threads: PositiveInt = 1
    """Processes of a rank that decode clips."""
    decoder: Literal["auto", "pyav", "dali"] = "auto"
    """Who decodes: DALI, PyAV, or DALI where there is a GPU and DALI is installed."""
    decode_batch: PositiveInt = 8
    """Samples of one kind, at most, that DALI decodes together."""
    decode_timeout_seconds: Annotated[float, Field(gt=0.0, le=86_400.0)] = 60.0
    """A clip that takes longer to decode counts as bad."""
    text_dropout: Share = 0.1
    """Share of samples without their instruction or caption, the prefix kept, so that guidance works."""
    max_bad_share: Share = 0.5
    """The run stops where a larger share of the rows that it tried is bad."""
    decoded_cache_mib: NonNegativeInt = 0
    """Memory of a rank for decoded clips, so that a small dataset is decoded once."""
    cache: RecipePath | None = None
    """A folder that `data cache` filled: what it holds is not encoded again."""

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
    """Shift of the noise levels towards noise, in training and in sampling."""
    num_train_timesteps: PositiveInt = 1000
    """Noise levels that training draws from, all equally often."""
    timestep_weight: Literal["bell", "none"] = "bell"
    """Weight of a noise level in the flow-matching loss: a bell around the middle, or none."""
    guidance: NonNegativeFloat = 5.0
    """Guidance strength of samples and edits; 1: no second pass."""
    sampling_steps: PositiveInt = 50
    """Euler steps of samples and edits."""
    negative_prompt: str | None = None
    """What guidance moves away from; null: an edit without its instruction, `[Video edit]` or `[Image edit]`."""


class AnchorRecipe(Section):
    """Semantic anchoring: which frames are anchors, their tokens, and their share of the loss."""

    num_frames: NonNegativeInt = 1
    """Anchor frames, spread evenly over the target; 1: its first; 0: no semantic tokens, modules nor loss."""
    local_grid: PositiveInt = 8
    """Rows and columns of an anchor's local tokens."""
    global_token: bool = True
    """Whether an anchor also has a token of its mean."""
    weight: NonNegativeFloat = 0.1
    """Weight of the semantic loss beside the flow-matching loss."""
    target: Literal["velocity", "clean"] = "velocity"
    """What the semantic head predicts: the features' velocity, as released, or the clean features."""

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
    """How often, relative to the others, a raw video is its own source."""
    cube: NonNegativeFloat = 2.0
    """How often a run of its source's frames is black."""
    speed: NonNegativeFloat = 3.0
    """How often its source plays at double speed."""
    tube: NonNegativeFloat = 4.0
    """How often its source's tubes, halves of time, height and width, are shuffled."""
    cube_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of the frames that are black."""
    keep_length: bool = False
    """Whether a sped-up source is padded with its last frame to the clip's length."""

    @model_validator(mode="after")
    def _check_weights(self) -> MotionRecipe:
        if self.none + self.cube + self.speed + self.tube == 0:
            raise BrokenRule("none", 0, "and the weights of cube, speed and tube are all 0: set at least one")
        return self


class EncodersRecipe(Section):
    """Which frozen encoders make latents, text embeddings and semantic features, and their weights."""

    video: Literal["dct", "wan"] = "dct"
    """Frames to latents and back: built in, or Wan's VAE."""
    text: Literal["hash", "umt5"] = "hash"
    """Prompts to embeddings: built in, or UMT5."""
    semantic: Literal["tiny", "siglip"] = "tiny"
    """Anchor frames to features: built in, or SigLIP."""
    video_path: RecipePath | None = None
    """Folder of the VAE, or of the pipeline that it belongs to."""
    text_path: RecipePath | None = None
    """Folder of the text encoder with its tokenizer beside it, or of their pipeline."""
    semantic_path: RecipePath | None = None
    """Folder of the SigLIP model."""

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
    """Rank of the changes that are trained, all else frozen; 0: everything is trained."""
    alpha: PositiveFloat | None = None
    """Strength: a change counts `alpha / rank` times; null: as `rank`."""
    targets: Annotated[tuple[LoraTarget, ...], Strict(False)] = get_args(LoraTarget)
    """Linears of every block that change."""

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
        if self.rank == 0 and set(self.targets) != set(get_args(LoraTarget)):
            rule = "is not read: lora.rank is 0, which trains everything: set it, or remove lora.targets"
            raise BrokenRule("targets", list(self.targets), rule)
        return self


class OptimizerRecipe(Section):
    """AdamW, its learning-rate schedule, gradient clipping and the moving average of the weights."""

    learning_rate: PositiveFloat = 2e-5
    """Learning rate after the warm-up."""
    beta1: ShareBelowOne = 0.9
    """AdamW's decay of the gradient's mean."""
    beta2: ShareBelowOne = 0.999
    """AdamW's decay of the gradient's square."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's weight decay."""
    clip_grad_norm: NonNegativeFloat = 1.0
    """Norm that all gradients together are cut to; 0: never."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear rise to `learning_rate`."""
    decay_share: Share = 0.0
    """Share of the run, its last, over which the learning rate falls linearly to 0."""
    ema_decay: ShareBelowOne = 0.9998
    """Decay of the weights' moving average, every step."""
    ema_ramp: bool = False
    """Whether the average begins with a small decay, min(`ema_decay`, (1 + k) / (10 + k)) at step k."""
    ema_device: Literal["device", "host"] = "device"
    """Where the average lies: beside the weights, or in the host's memory."""


class TrainRecipe(Section):
    """The run: its stage, length, folder, seed, precision and what is reported."""

    stage: Stage
    """0: pre-training on raw videos and edits; 1: edits alone."""
    steps: PositiveInt
    """Optimizer steps of the whole run."""
    run_folder: RecipePath
    """Folder of everything that the run writes; one that has checkpoints is gone on with."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of fresh weights, order, noise and perturbations."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of weights and activations in the passes; masters and moments are float32 in any case."""
    float32_matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """How exact torch's float32 products are."""
    recompute: Literal["none", "selective", "selective_ffn", "full"] = "none"
    """What a block runs again in the backward pass to save memory: nothing, cheap operations, more, all."""
    skip_loss_above: PositiveFloat | None = None
    """A step of a larger loss changes nothing; null: no limit."""
    skip_grad_norm_above: PositiveFloat | None = None
    """A step of a larger gradient norm changes nothing; null: no limit."""
    max_skipped_steps: PositiveInt = 20
    """Skipped steps in a row after which the run ends."""
    hang_seconds: PositiveFloat | None = 900.0
    """Without a step for so long, ranks write their stacks and end; null: never."""
    pace_every: NonNegativeInt = 100
    """Steps between two comparisons of the ranks' times; 0: never."""
    log_every: PositiveInt = 10
    """Steps between two lines in the log."""
    sample_every: NonNegativeInt = 0
    """Steps between two rounds of sample edits; 0: after the last step alone."""
    num_samples: NonNegativeInt = 2
    """Sample edits of a round; 0: none."""
    sample_seconds: PositiveFloat = 300.0
    """After a round's first edit, none is begun that would take longer than this for all of them together."""
    sample_clips: RecipePath | None = None
    """A manifest whose first clips are edited instead of the training data's; a clip without a truth may name itself
    as its target."""
    cpu_threads: PositiveInt | None = None
    """Threads of torch on a rank; null: torch's choice."""


class CheckpointRecipe(Section):
    """How often checkpoints are written, whether beside the run, how many are kept, and what the run starts from."""

    every: PositiveInt = 1000
    """Steps between two checkpoints; the last step is always saved."""
    keep: PositiveInt = 2
    """Checkpoints that are kept, the newest."""
    asynchronous: bool = True
    """Whether checkpoints are written while training goes on."""
    resume: bool = True
    """Whether the run folder's newest checkpoint is gone on from; false begins again."""
    init_from: RecipePath | None = None
    """Checkpoint, or run folder, whose weights the run starts from; null: random weights."""
    init_weights: Literal["ema", "model"] = "ema"
    """Which weights of it: the moving average, or the weights themselves."""


class TrackRecipe(Section):
    """Experiment tracking."""

    mlflow: bool = True
    """Whether the run is recorded in MLflow, beside `metrics.jsonl`."""
    experiment: Name = "sama-mega"
    """MLflow's experiment."""
    uri: Name | None = None
    """MLflow's store; `MLFLOW_TRACKING_URI` wins over it; null: an SQLite file, `runs/mlflow.db`."""
    log_sample_ids: bool = False
    """Whether `metrics.jsonl` names every step's samples."""
    statistics_every: NonNegativeInt = 0
    """Steps between two rows of `statistics.jsonl`: activations, gradients and updates by layer; 0: none."""
    bad_batches: NonNegativeInt = 1
    """Steps a life that are kept for `train --replay`, samples and weights, because they were not finite."""


class KernelsRecipe(Section):
    """Which implementation of each fused operation runs."""

    ops: Literal["reference", "triton", "auto"] = "auto"
    """Fused operations: Triton's kernels, plain torch, or Triton where there is a GPU."""
    attention: Name = "auto"
    """flash4, cudnn, te, triton, torch, reference, or auto: the fastest that is right on this machine."""


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
