"""The SAMA diffusion transformer.

Shape legend: B batch, C T H W latents, M semantic tokens, F semantic features, L text tokens, s this rank's tokens,
N tokens of the whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.enums import ModelType
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sama_kernels.qk_norm_rope import RopeTables, build_rope_tables
from sama_mega.config.schema import Recipe
from sama_mega.model.block import SamaBlock
from sama_mega.model.embeddings import (
    PatchEmbedding,
    SemanticFeatureMLP,
    TextEmbedding,
    TimeEmbedding,
    patch_grid,
    patchify,
    unpatchify,
)
from sama_mega.model.heads import SemanticHead, VelocityHead
from sama_mega.model.norms import SegmentEmbedding
from sama_mega.model.parallel_layers import copied_to_stages, sum_gradient_over_tensor_ranks
from sama_mega.model.recompute import run_with_recompute
from sama_mega.parallel.collectives import all_reduce_in_place
from sama_mega.parallel.layout import Stage
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parallel.token_layout import SEMANTIC, TokenLayout


@dataclass(frozen=True)
class ModelOutput:
    """What the model says about one micro-batch.

    Attributes:
        velocity: ``[B, C, T, H, W]`` float32, whole on every rank.
        semantic_velocity: ``[B, M, F]`` float32, whole on every rank, without gradient; only when no semantic
            target was given.
        semantic_loss_share: ``[B]`` float32, this rank's part of each sample's mean absolute error; the parts sum
            to the loss over the ranks that share the sequence. Only when a semantic target was given.
    """

    velocity: Tensor
    semantic_velocity: Tensor | None
    semantic_loss_share: Tensor | None


@dataclass(frozen=True)
class ModelInput:
    """What the model reads of one micro-batch; every rank of its samples has all of it.

    Attributes:
        noisy_latents: ``[B, C, T, H, W]`` float32 target latents at the sample's sigma.
        timesteps: ``[B]`` float32, 1000 * sigma.
        text: ``[B, L, text_dim]`` float32, zero rows after the prompt.
        source_latents: ``[B, C, Ts, Hs, Ws]`` float32 clean source; None for text-to-video.
        noisy_semantic: ``[B, M, F]`` float32 anchor features at the same sigma; None without anchors.
        semantic_target: ``[B, M, F]`` float32 what the semantic head should predict; given in training.
    """

    noisy_latents: Tensor
    timesteps: Tensor
    text: Tensor
    source_latents: Tensor | None = None
    noisy_semantic: Tensor | None = None
    semantic_target: Tensor | None = None


class SamaDiT(MegatronModule):
    """One pipeline stage (often the whole) of Wan2.1's video DiT over [source | semantic | target].

    Without anchor frames (`anchor.num_frames: 0`) it has no part for semantic tokens and takes none.

    The first stage embeds the tokens, the last holds the heads. The embeddings of time and text, which every block
    needs, have a copy on every stage.

    Args:
        recipe: The whole recipe.
        config: megatron's configuration of the same recipe and layout.
        context: The running layout.
        stage: The part to build.

    Source: SAMA (arXiv 2603.19228) section 3; ``WanModel`` in Cynthiazxy123/SAMA@5c6bb5b.
    """

    def __init__(self, recipe: Recipe, config: TransformerConfig, context: ParallelContext, stage: Stage) -> None:
        super().__init__(config)
        self.recipe = recipe
        self.context = context
        self.stage = stage
        self.model_type = ModelType.encoder_or_decoder
        self._received: Tensor | None = None
        if stage.is_first:
            self.patch_embedding = PatchEmbedding(recipe, config, context)
            self.segment_embedding: SegmentEmbedding | None = None
            if recipe.model.roles == "segment":
                self.segment_embedding = SegmentEmbedding(recipe.model.dim, config, context)
            if recipe.anchor.num_frames:
                self.siglip_feat_mlp = SemanticFeatureMLP(recipe, config, context)
        self.text_embedding = copied_to_stages(TextEmbedding(recipe, config, context), stage, context)
        self.time_embedding = copied_to_stages(TimeEmbedding(recipe, config, context), stage, context)
        self.blocks = nn.ModuleDict({str(layer): SamaBlock(recipe, config, context) for layer in stage.layers})
        if stage.is_last:
            self.head = VelocityHead(recipe, config, context)
            if recipe.anchor.num_frames:
                self.semantic_head = SemanticHead(recipe, config, context)

    def set_input_tensor(self, received: Tensor | list[Tensor | None] | None) -> None:
        """Takes what the stage before sent, for the next `forward`; megatron's schedules call it.

        Args:
            received: ``[s, B, dim]``, alone or in a list; None on the first stage.
        """
        self._received = received[0] if isinstance(received, list) else received

    def forward(self, given: ModelInput) -> ModelOutput | Tensor:
        """Runs this stage on one micro-batch.

        Returns:
            On the last stage the velocity and either the semantic velocity or this rank's share of its loss; before
            it the residual stream ``[s, B, dim]`` for the next stage.
        """
        layout = self._token_layout(given)
        hidden = self._embed(layout, given) if self.stage.is_first else self._take_received()
        # In the order in which they are registered: that is the order in which their parameters arrive.
        text_embedded = sum_gradient_over_tensor_ranks(self.text_embedding(given.text), self.context)
        time, time_modulation = self.time_embedding(given.timesteps)
        rope = self._rope(layout, hidden.device)
        for block in self.blocks.values():
            hidden = run_with_recompute(
                self.recipe.train.recompute,
                block,
                hidden,
                time_modulation,
                text_embedded,
                rope,
                layout.num_tokens,
            )
        return self._output(layout, hidden, time, given) if self.stage.is_last else hidden

    def hidden_shape(self, given: ModelInput) -> tuple[int, int, int]:
        """``(s, B, dim)``: what stages send each other for a micro-batch."""
        return self._token_layout(given).tokens_per_shard, given.text.shape[0], self.recipe.model.dim

    def num_own_tokens(self, given: ModelInput) -> int:
        """Of the ``s`` tokens that this rank has of a micro-batch's samples between the matrices, how many are real."""
        layout = self._token_layout(given)
        first = self.context.sequence_shard * layout.tokens_per_shard
        return min(max(0, layout.num_tokens - first), layout.tokens_per_shard)

    def _take_received(self) -> Tensor:
        received, self._received = self._received, None
        assert received is not None, f"stage {self.stage.index} received nothing"
        return received

    def _output(self, layout: TokenLayout, hidden: Tensor, time: Tensor, given: ModelInput) -> ModelOutput:
        velocity = self._velocity(layout, hidden, time)
        if given.noisy_semantic is None:
            return ModelOutput(velocity, None, None)
        if given.semantic_target is None:
            return ModelOutput(velocity, self._semantic_velocity(layout, hidden), None)
        return ModelOutput(velocity, None, self._semantic_loss_share(layout, hidden, given.semantic_target))

    def _token_layout(self, given: ModelInput) -> TokenLayout:
        patch_size, source = self.recipe.model.patch_size, given.source_latents
        return TokenLayout(
            source_grid=None if source is None else patch_grid(source, patch_size),
            num_semantic=0 if given.noisy_semantic is None else given.noisy_semantic.shape[1],
            target_grid=patch_grid(given.noisy_latents, patch_size),
            num_shards=self.context.layout.sequence_shards,
        )

    def _embed(self, layout: TokenLayout, given: ModelInput) -> Tensor:
        """Embeds this rank's tokens only: ``[s, B, dim]``, padding zero."""
        patch_size, source = self.recipe.model.patch_size, given.source_latents
        segments = (
            None if source is None else patchify(source, patch_size),
            None if given.noisy_semantic is None else given.noisy_semantic.transpose(0, 1),
            patchify(given.noisy_latents, patch_size),
        )
        types = None if self.segment_embedding is None else self.segment_embedding()
        pieces = []
        for piece in layout.shard_ranges(self.context.sequence_shard):
            features = segments[piece.segment]
            assert features is not None
            embed = self.siglip_feat_mlp if piece.segment == SEMANTIC else self.patch_embedding
            embedded = embed(features[piece.start : piece.stop])
            pieces.append(embedded if types is None else embedded + types[piece.segment])
        num_padding = layout.tokens_per_shard - sum(piece.shape[0] for piece in pieces)
        if num_padding:
            shape = (num_padding, *pieces[0].shape[1:])
            pieces.append(torch.zeros(shape, dtype=pieces[0].dtype, device=pieces[0].device))
        return torch.cat(pieces)

    def _rope(self, layout: TokenLayout, device: torch.device) -> RopeTables:
        model = self.recipe.model
        shifted = model.roles == "shifted_rope"
        # Inside attention a context rank holds the tokens of all its tensor ranks.
        tokens_held = layout.num_padded_tokens // self.context.layout.context
        return build_rope_tables(
            model.dim // model.num_heads,
            layout.source_grid,
            layout.num_semantic,
            layout.target_grid,
            source_time_offset=layout.target_grid[0] if shifted else 0,
            rotate_semantic_to_zero=model.semantic_rope == "zero",
            first_token=self.context.context_rank * tokens_held,
            num_tokens=tokens_held,
            device=device,
        )

    def _velocity(self, layout: TokenLayout, hidden: Tensor, time: Tensor) -> Tensor:
        """The head's output is 64 features a token: cheap to run on every token and to gather whole."""
        patches = self.head(hidden, time).float()
        if layout.num_shards > 1:
            # Every rank computes the same loss from the whole output, so each keeps its own slice of the gradient.
            patches = gather_from_sequence_parallel_region(
                patches, tensor_parallel_output_grad=False, group=self.context.sequence_group
            )
        target = patches[layout.target_start : layout.num_tokens]
        return unpatchify(target, layout.target_grid, self.recipe.model.patch_size)

    def _semantic_loss_share(self, layout: TokenLayout, hidden: Tensor, target: Tensor) -> Tensor:
        piece, position = layout.shard_segment(self.context.sequence_shard, SEMANTIC)
        mine = hidden[position : position + piece.stop - piece.start]
        error = self.semantic_head(mine, target.transpose(0, 1)[piece.start : piece.stop])
        return error / (target.shape[1] * target.shape[2])

    @torch.no_grad()
    def _semantic_velocity(self, layout: TokenLayout, hidden: Tensor) -> Tensor:
        piece, position = layout.shard_segment(self.context.sequence_shard, SEMANTIC)
        mine = self.semantic_head(hidden[position : position + piece.stop - piece.start]).float()
        if layout.num_shards == 1:
            return mine.transpose(0, 1)
        whole = mine.new_zeros(layout.num_semantic, *mine.shape[1:])
        whole[piece.start : piece.stop] = mine
        all_reduce_in_place(whole, group=self.context.sequence_group)
        return whole.transpose(0, 1)
