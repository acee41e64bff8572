"""Starts the ranks: from the launcher's variables to a device, process groups and seeded generators.

Everything downstream receives a `ParallelContext`; no forward pass asks megatron-core's global state for a
group.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from sama_mega.config.errors import ConfigError
from sama_mega.parallel.collectives import world_group
from sama_mega.parallel.cpu_shim import install_cpu_shim
from sama_mega.parallel.layout import Layout, resolve_layout
from sama_mega.parallel.rank_environment import RankEnvironment, read_rank_environment

if TYPE_CHECKING:
    from sama_mega.config import Recipe

BACKEND_VARIABLE = "SAMA_MEGA_BACKEND"
# Longer than a slow save or a cold data cache, shorter than an unnoticed night.
DEFAULT_TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class ParallelContext:
    """One rank's view of the run: where it computes and with whom it talks.

    Attributes:
        device: Where this rank computes.
        layout: Degrees of every axis.
        rank, world_size: Global rank, number of ranks.
        tensor_rank, context_rank, pipeline_rank, data_rank: Place along every axis.
        tensor_group: Ranks sharing weight matrices.
        pipeline_group: Ranks sharing the stack of blocks, otherwise in the same place.
        ulysses_group: Context ranks that exchange heads for tokens; neighbours in the sequence.
        key_value_group: Context ranks that gather each other's keys and values: one of every `ulysses_group`.
        data_group: Ranks holding other samples, otherwise in the same place.
        model_group: Ranks working on the same samples (tensor x context x pipeline).
        world_group: All ranks.
        host_world_group: All ranks over gloo, whatever the others use: for messages of the host, in host memory.
        groups: The same for megatron-core, with its own names (`tp`, `pp`, `cp`, `dp`, `dp_cp`, `mp`, ...).
    """

    device: torch.device
    layout: Layout
    rank: int
    world_size: int
    tensor_rank: int
    context_rank: int
    pipeline_rank: int
    data_rank: int
    tensor_group: dist.ProcessGroup
    pipeline_group: dist.ProcessGroup
    ulysses_group: dist.ProcessGroup
    key_value_group: dist.ProcessGroup
    data_group: dist.ProcessGroup
    model_group: dist.ProcessGroup
    world_group: dist.ProcessGroup
    host_world_group: dist.ProcessGroup
    groups: ProcessGroupCollection

    @property
    def sequence_shard(self) -> int:
        """This rank's place, in token order, among the `layout.sequence_shards` that share a sample's tokens."""
        if not self.layout.sequence:
            return self.context_rank
        return self.context_rank * self.layout.tensor + self.tensor_rank

    @property
    def sequence_group(self) -> dist.ProcessGroup:
        """The ranks that share one sample's tokens, in token order."""
        return self.groups.tp_cp if self.layout.sequence else self.groups.cp

    @property
    def stages(self) -> range:
        """The pipeline stages that this rank runs."""
        return self.layout.stages_of(self.pipeline_rank)

    @property
    def reports_samples(self) -> bool:
        """Whether this rank, of all those that work on a sample, reports what they all know of it."""
        return self.tensor_rank == 0 and self.context_rank == 0 and self._is_last_stage

    @property
    def reports_token_shares(self) -> bool:
        """Whether this rank reports its part of a sum over a sample's tokens; the parts of all such ranks sum up."""
        return (self.layout.sequence or self.tensor_rank == 0) and self._is_last_stage

    @property
    def _is_last_stage(self) -> bool:
        return self.pipeline_rank == self.layout.pipeline - 1

    @property
    def is_first_rank(self) -> bool:
        """Whether this is the rank that prints, logs and writes run files."""
        return self.rank == 0


def start_parallel(
    recipe: Recipe,
    *,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    environ: Mapping[str, str] | None = None,
) -> ParallelContext:
    """Joins the world that torchrun, srun or nobody started, and splits it as the recipe says.

    The layout is validated first: an impossible one raises on every rank before any of them waits for
    another.

    Args:
        recipe: `parallel`, `model` (for validation) and `train.seed` are read.
        timeout_seconds: How long a collective may wait for the other ranks before this rank fails.
        environ: Launcher variables; the process's own by default.

    Raises:
        ConfigError: Impossible layout, contradicting variables, unknown backend or a missing GPU.
    """
    environment = read_rank_environment(os.environ if environ is None else environ)
    layout = resolve_layout(recipe, environment.world_size)
    backend = _choose_backend(os.environ if environ is None else environ)
    # One hardware queue: megatron's overlap of tensor-parallel messages with matmuls relies on issue order. CUDA reads
    # it when a device is first chosen.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = _choose_device(environment, backend)
    install_cpu_shim()
    _join_world(environment, backend, timeout_seconds)
    return form_groups(layout, device, seed=recipe.train.seed, timeout_seconds=timeout_seconds)


def find_device(environment: RankEnvironment) -> torch.device:
    """Where a rank computes that works by itself and joins no world; ranks may share a GPU."""
    return _choose_device(environment, "gloo")


def form_groups(
    layout: Layout, device: torch.device, *, seed: int, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
) -> ParallelContext:
    """Splits a world that exists already; `verify` calls it again for a second layout of the same ranks.

    Args:
        layout: Its world_size must be the world's.
        device: Where this rank computes.
        seed: Seeds torch's generator alike everywhere and megatron's tensor-parallel generator per tensor
            rank.
        timeout_seconds: Limit for the new groups' collectives; megatron-core rounds it up to minutes.
    """
    assert dist.get_world_size() == layout.world_size, (dist.get_world_size(), layout.world_size)
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        context_parallel_size=layout.context,
        distributed_timeout_minutes=max(1, math.ceil(timeout_seconds / 60)),
        # Only megatron's legacy checkpoint formats gather through extra gloo groups; ours do not.
        create_gloo_process_groups=False,
    )
    torch.manual_seed(seed)
    # On the CPU megatron's tracker is the shim's; on a GPU this also seeds the CUDA generator.
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    return _describe_rank(layout, device, timeout_seconds)


def solo_context(context: ParallelContext) -> ParallelContext:
    """A one-rank layout for this rank alone, inside a larger world; every rank must call it.

    `verify` builds its one-rank reference with it: the same code, with groups of one.
    """
    one_each = [[rank] for rank in range(context.world_size)]
    own_group = _own_group(one_each, "SOLO")
    names = [field.name for field in fields(ProcessGroupCollection) if hasattr(context.groups, field.name)]
    num_layers = sum(context.layout.stage_layers)
    layout = Layout(1, 1, 1, 1, sequence=False, world_size=1, stage_layers=(num_layers,))
    return ParallelContext(
        device=context.device,
        layout=layout,
        rank=0,
        world_size=1,
        tensor_rank=0,
        context_rank=0,
        pipeline_rank=0,
        data_rank=0,
        tensor_group=own_group,
        pipeline_group=own_group,
        ulysses_group=own_group,
        key_value_group=own_group,
        data_group=own_group,
        model_group=own_group,
        world_group=own_group,
        host_world_group=_own_group(one_each, "SOLO_HOST", backend="gloo"),
        groups=ProcessGroupCollection(**dict.fromkeys(names, own_group)),
    )


def leave_groups(context: ParallelContext) -> None:
    """Closes a layout's connections, for a process that goes through many layouts; the world stays.

    Every rank calls it, with nothing under way. A group left open costs a thread and a connection to each of its ranks.
    """
    held = [getattr(context, field.name) for field in fields(context)]
    # megatron-core forms more groups than it hands out (experts', embeddings'); it lists them all.
    held += parallel_state._global_process_group_list or []
    groups = {id(group): group for group in held if isinstance(group, dist.ProcessGroup)}
    for group in groups.values():
        if group is not world_group():
            dist.destroy_process_group(group)


def stop_parallel() -> None:
    """Leaves every process group; does nothing when none was formed."""
    if not dist.is_initialized():
        return
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _choose_backend(environ: Mapping[str, str]) -> str:
    wanted = environ.get(BACKEND_VARIABLE)
    if wanted is None:
        return "nccl" if torch.cuda.is_available() else "gloo"
    if wanted not in ("gloo", "nccl"):
        raise ConfigError(f"{BACKEND_VARIABLE} ({wanted}) must be gloo or nccl")
    if wanted == "nccl" and not torch.cuda.is_available():
        raise ConfigError(f"{BACKEND_VARIABLE} (nccl) needs a GPU and this host has none: use gloo or unset it")
    return wanted


def _choose_device(environment: RankEnvironment, backend: str) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    num_devices = torch.cuda.device_count()
    # With `srun --gpus-per-task=1` each task sees its own GPU as number 0; gloo lets ranks share one.
    shares = backend == "gloo" or (environment.source == "srun" and num_devices == 1)
    if environment.local_rank >= num_devices and not shares:
        raise ConfigError(
            f"local rank ({environment.local_rank}) must be less than this host's GPUs ({num_devices}): "
            f"start {num_devices} ranks a host, or set {BACKEND_VARIABLE}=gloo to share GPUs"
        )
    device = torch.device("cuda", environment.local_rank % num_devices)
    torch.cuda.set_device(device)
    return device


def _join_world(environment: RankEnvironment, backend: str, timeout_seconds: float) -> None:
    if dist.is_initialized():
        raise RuntimeError("this process already joined a world: call stop_parallel() first")
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group(
        backend,
        store=_make_store(environment, timeout),
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=timeout,
    )


def _make_store(environment: RankEnvironment, timeout: timedelta) -> dist.Store:
    """Where the ranks exchange addresses: in memory, at a file, or at rank 0's TCP port."""
    if environment.world_size == 1:
        return dist.HashStore()
    if environment.rendezvous_file is not None:
        return dist.FileStore(environment.rendezvous_file, environment.world_size)
    assert environment.master_address is not None, environment
    assert environment.master_port is not None, environment
    # torchrun's agent serves the port itself; elsewhere rank 0 does.
    agent_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        environment.master_address,
        environment.master_port,
        environment.world_size,
        is_master=environment.rank == 0 and not agent_serves,
        timeout=timeout,
        multi_tenant=True,
    )
    # A restarted torchrun group talks to the same server, which still holds the previous attempt's keys.
    return dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _describe_rank(layout: Layout, device: torch.device, timeout_seconds: float) -> ParallelContext:
    rank = dist.get_rank()
    groups = ProcessGroupCollection.use_mpu_process_groups()
    place = layout.coordinates(rank)
    # Our arithmetic and megatron's must agree, or samples and shards end up on the wrong ranks.
    assert (place.tensor, place.context, place.data, place.pipeline) == (
        groups.tp.rank(),
        groups.cp.rank(),
        groups.dp.rank(),
        groups.pp.rank(),
    ), (place, rank)
    timeout = timedelta(seconds=timeout_seconds)
    ulysses_group, key_value_group = _context_groups(layout, groups, timeout)
    return ParallelContext(
        device=device,
        layout=layout,
        rank=rank,
        world_size=layout.world_size,
        tensor_rank=place.tensor,
        context_rank=place.context,
        pipeline_rank=place.pipeline,
        data_rank=place.data,
        tensor_group=groups.tp,
        pipeline_group=groups.pp,
        ulysses_group=ulysses_group,
        key_value_group=key_value_group,
        data_group=groups.dp,
        model_group=_model_group(layout, groups, timeout),
        world_group=world_group(),
        host_world_group=_own_group([range(layout.world_size)], "HOST_WORLD", timeout, backend="gloo"),
        groups=groups,
    )


def _context_groups(
    layout: Layout, groups: ProcessGroupCollection, timeout: timedelta
) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """The two ways in which context ranks meet: exchanging heads, gathering keys and values."""
    if layout.context == 1:
        return groups.cp, groups.cp
    exchanging, gathering = layout.split_context_ranks()
    return _own_group(exchanging, "ULYSSES", timeout), _own_group(gathering, "KEY_VALUE", timeout)


def _model_group(layout: Layout, groups: ProcessGroupCollection, timeout: timedelta) -> dist.ProcessGroup:
    """All ranks of a sample; megatron's `mp` is tensor x pipeline and leaves out context."""
    if layout.context == 1:
        return groups.mp
    members = [layout.ranks_of_data_index(data_index) for data_index in range(layout.data)]
    return _own_group(members, "MODEL_WITH_CONTEXT", timeout)


def _own_group(
    members: Sequence[Sequence[int]],
    description: str,
    timeout: timedelta | None = None,
    *,
    backend: str | None = None,
) -> dist.ProcessGroup:
    """Creates disjoint groups, of the world's backend or another, and returns the one that holds this rank.

    Every rank creates every group, in the same order: torch demands it.
    """
    own = None
    for ranks in members:
        group = dist.new_group(list(ranks), timeout=timeout, backend=backend, group_desc=description)
        own = group if dist.get_rank() in ranks else own
    assert isinstance(own, dist.ProcessGroup), members
    return own
