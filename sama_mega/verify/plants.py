"""Known bugs of parallel training, planted in the running code: does `verify` catch them here, on this cluster?

Each was found, in one form or another, in a published framework where nobody had noticed it. A plant replaces one
function of the code that trains; each says in writing which tensors it must break, and those alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import ParallelRecipe, Recipe
from sama_mega.model import attention, context_attention, sama_dit
from sama_mega.parallel import gradients
from sama_mega.parallel.data_parallel import ParameterBuckets
from sama_mega.parallel.layout import Layout
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train import step
from sama_mega.train.batch import modality_weight
from sama_mega.train.slots import SlotStatistics

ALL_GRADIENTS = ("gradient_norm", "grad *", "update *", "next *")
"""What breaks when a backward pass is wrong behind a right forward pass: also the step that follows."""


@dataclass(frozen=True)
class Plant:
    """One bug.

    Attributes:
        name: What `--plant` calls it.
        summary: What it does wrong.
        needs: The layouts in which it can be wrong, in words.
        applies: Whether a layout, run as a recipe's section says, is one of them.
        breaks: Patterns of the checks that must fail, `*` for any text and `LAST` for the last block's number.
        spares: Patterns of those among them that must not.
        planted: The code with the bug in it, for the length of a block.
    """

    name: str
    summary: str
    needs: str
    applies: Callable[[Layout, ParallelRecipe], bool]
    breaks: tuple[str, ...]
    spares: tuple[str, ...]
    planted: Callable[[], AbstractContextManager[None]]

    def must_break(self, check: str, recipe: Recipe) -> bool:
        """Whether a check must fail under this bug, and not fail without it."""
        if recipe.anchor.num_frames == 0 and "semantic_loss" in check:
            return False  # 0 in the layout and on one rank, whatever is wrong
        num_layers = recipe.model.num_layers
        return _matches(check, self.breaks, num_layers) and not _matches(check, self.spares, num_layers)


def find_plant(name: str, layout: Layout, parallel: ParallelRecipe) -> Plant:
    """Looks a bug up.

    Raises:
        ConfigError: There is none of this name, or it cannot be wrong in this layout.
    """
    if name not in PLANTS:
        raise ConfigError(f"--plant ({name}) must be one of {', '.join(PLANTS)}")
    plant = PLANTS[name]
    if not plant.applies(layout, parallel):
        raise ConfigError(f"--plant ({name}) needs {plant.needs}, and this is {layout.describe()}")
    return plant


def _matches(check: str, patterns: tuple[str, ...], num_layers: int) -> bool:
    return any(fnmatchcase(check, pattern.replace("LAST", str(num_layers - 1))) for pattern in patterns)


def _both(*patterns: str) -> tuple[str, ...]:
    """The gradient and the update of some parameters."""
    return tuple(f"{kind} {pattern}" for kind in ("grad", "update") for pattern in patterns)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Puts a value in an attribute's place, as long as it is entered."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _rank_local_norm() -> AbstractContextManager[None]:
    original = attention.qk_norm_rope

    def rank_local(*inputs: Any, sum_over_ranks: Any = None, **options: Any) -> Any:
        # Each rank's mean square stands for the whole width's, as code that divides by its own width would have it.
        full_width = options.pop("full_width")
        local_width = inputs[0].shape[-2] * inputs[0].shape[-1]
        return original(*inputs, full_width=full_width if sum_over_ranks is None else local_width, **options)

    return replaced(attention, "qk_norm_rope", rank_local)


def _norm_summed_forward_only() -> AbstractContextManager[None]:
    original = attention.qk_norm_rope

    def forward_only(*inputs: Any, sum_over_ranks: Any = None, **options: Any) -> Any:
        sent: list[bool] = []

        def sum_first_message(partial: Tensor) -> None:
            # The second message would be the backward pass's.
            if not sent:
                sum_over_ranks(partial)
            sent.append(True)

        return original(*inputs, sum_over_ranks=sum_over_ranks and sum_first_message, **options)

    return replaced(attention, "qk_norm_rope", forward_only)


def _with_token_count(change: Callable[[int, int], int]) -> AbstractContextManager[None]:
    """Attention that is told another number of real tokens: a function of the real and the padded number."""
    original = attention.context_attention

    def miscounted(
        q: Tensor, k: Tensor, v: Tensor, num_tokens: int, context: ParallelContext, **options: Any
    ) -> Tensor:
        told = change(num_tokens, q.shape[1] * context.layout.context)
        return original(q, k, v, told, context, **options)

    return replaced(attention, "context_attention", miscounted)


def _stale_keys_and_values() -> AbstractContextManager[None]:
    """The other ranks' keys and values are those of the attention before, as a missing wait would leave them."""
    exchange, gather = context_attention.exchange_heads_for_tokens, context_attention.gather_tokens
    kept: dict[torch.Size, Tensor] = {}

    def stale(fresh: Tensor, token_axis: int, group: torch.distributed.ProcessGroup) -> Tensor:
        """This rank's own tokens, among those of an earlier call."""
        before = kept.get(fresh.shape, torch.zeros_like(fresh))
        kept[fresh.shape] = fresh.detach()
        own = torch.zeros_like(fresh, dtype=torch.bool)
        own.tensor_split(group.size(), dim=token_axis)[group.rank()].fill_(True)
        return torch.where(own, fresh, before)

    def exchanged(parts: Tensor, group: torch.distributed.ProcessGroup) -> Tensor:
        q, k, v = exchange(parts, group)
        return torch.stack([q, *stale(torch.stack([k, v]), 2, group)])

    def gathered(k: Tensor, v: Tensor, group: torch.distributed.ProcessGroup) -> tuple[Tensor, Tensor]:
        k_whole, v_whole = stale(torch.stack(gather(k, v, group)), 2, group)
        return k_whole, v_whole

    @contextmanager
    def planted() -> Iterator[None]:
        with (
            replaced(context_attention, "exchange_heads_for_tokens", exchanged),
            replaced(context_attention, "gather_tokens", gathered),
        ):
            yield

    return planted()


def _unsliced_output_gradient() -> AbstractContextManager[None]:
    original = sama_dit.gather_from_sequence_parallel_region

    def summed(patches: Tensor, tensor_parallel_output_grad: bool, group: Any) -> Tensor:
        return original(patches, tensor_parallel_output_grad=True, group=group)

    return replaced(sama_dit, "gather_from_sequence_parallel_region", summed)


def _unsummed_sequence_gradients() -> AbstractContextManager[None]:
    original = gradients.flattened_all_reduce

    def not_over_tensor_ranks(tensors: Any, group: torch.distributed.ProcessGroup) -> None:
        if group.group_desc != "TENSOR_MODEL_PARALLEL_GROUP":
            original(tensors, group)

    return replaced(gradients, "flattened_all_reduce", not_over_tensor_ranks)


def _unsummed_stage_copies() -> AbstractContextManager[None]:
    return replaced(gradients, "_sum_stage_copies", lambda *_: None)


def _unawaited_parameters() -> AbstractContextManager[None]:
    # The forward pass reads what is there: other data ranks' slices of the step before.
    return replaced(ParameterBuckets, "finish_param_sync", lambda *_, **__: None)


def _mean_of_means() -> AbstractContextManager[None]:
    def local_mean(drawn: Any, recipe: Any, context: ParallelContext) -> SlotStatistics:
        statistics = SlotStatistics(drawn, recipe, context)
        local_weight = sum(modality_weight(sample.kind, recipe) for sample in drawn.samples)
        statistics.total_weight = local_weight * context.layout.data
        return statistics

    return replaced(step, "SlotStatistics", local_mean)


_SEQUENCE_SHARED = _both(
    *("patch_embedding.*", "segment_embedding.weight", "siglip_feat_mlp.*", "time_embedding.linear_*"),
    *("blocks.*.modulation", "blocks.*.norm3.*", "blocks.*.o.bias", "blocks.*.ffn.linear_out.bias"),
    *("head.*", "semantic_head.*"),
)
_BEHIND_THE_LAST_NORM = _both(
    *("head.*", "semantic_head.*", "blocks.LAST.ffn.*", "blocks.LAST.cross_attn.o.*"),
    "blocks.LAST.cross_attn.norm_*",
)

PLANTS: dict[str, Plant] = {
    plant.name: plant
    for plant in (
        Plant(
            "rank_local_qk_norm",
            "q and k are normed over the heads of one tensor rank instead of all",
            "parallel.tensor above 1",
            lambda layout, _: layout.tensor > 1,
            ("*",),
            (),
            _rank_local_norm,
        ),
        Plant(
            "qk_norm_summed_forward_only",
            "the q/k norm's statistics are summed over tensor ranks forward, their gradients are not",
            "parallel.tensor above 1",
            lambda layout, _: layout.tensor > 1,
            ALL_GRADIENTS,
            _BEHIND_THE_LAST_NORM,
            _norm_summed_forward_only,
        ),
        Plant(
            "dropped_tail_token",
            "the last token of a sequence that does not divide is lost to attention",
            "a sequence shared by several ranks (parallel.context above 1, or parallel.tensor with sequence)",
            lambda layout, _: layout.sequence_shards > 1,
            ("*",),
            (),
            lambda: _with_token_count(lambda real, padded: real - 1),
        ),
        Plant(
            "unmasked_padding",
            "the padding that makes a sequence divide is attended to",
            "a sequence shared by several ranks (parallel.context above 1, or parallel.tensor with sequence)",
            lambda layout, _: layout.sequence_shards > 1,
            ("*",),
            (),
            lambda: _with_token_count(lambda real, padded: padded),
        ),
        Plant(
            "stale_kv_shard",
            "attention reads other context ranks' keys and values of the call before",
            "parallel.context above 1",
            lambda layout, _: layout.context > 1,
            ("*",),
            (),
            _stale_keys_and_values,
        ),
        Plant(
            "unsliced_output_gradient",
            "the gathered velocity's gradient is summed over ranks that computed the same loss",
            "a sequence shared by several ranks (parallel.context above 1, or parallel.tensor with sequence)",
            lambda layout, _: layout.sequence_shards > 1,
            ALL_GRADIENTS,
            _both("semantic_head.*"),
            _unsliced_output_gradient,
        ),
        Plant(
            "unreduced_sequence_gradients",
            "parameters that each tensor rank applies to its own tokens keep their own gradients",
            "parallel.tensor above 1 with parallel.sequence",
            lambda layout, _: layout.sequence,
            ("gradient_norm", *_SEQUENCE_SHARED, "next *"),
            (),
            _unsummed_sequence_gradients,
        ),
        Plant(
            "unreduced_stage_copies",
            "the pipeline stages' copies of the time and text embeddings keep their own gradients",
            "parallel.pipeline above 1",
            lambda layout, _: layout.num_stages > 1,
            ("gradient_norm", *_both("time_embedding.*", "text_embedding.*"), "next *"),
            (),
            _unsummed_stage_copies,
        ),
        Plant(
            "unawaited_parameters",
            "the forward pass does not wait for the parameters that other data ranks updated",
            "parallel.overlap_param_gather, and parallel.data or context above 1",
            lambda layout, parallel: parallel.overlap_param_gather and layout.data * layout.context > 1,
            ("next *",),
            (),
            _unawaited_parameters,
        ),
        Plant(
            "mean_of_means_loss",
            "each data rank averages over its own samples, and the ranks over each other",
            "parallel.data above 1",
            lambda layout, _: layout.data > 1,
            ("loss", "flow_matching_loss", "semantic_loss", *ALL_GRADIENTS),
            (),
            _mean_of_means,
        ),
    )
}
"""By name."""
