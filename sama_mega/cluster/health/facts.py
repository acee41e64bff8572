"""What a rank reports. It travels as JSON, so a node that runs other code fails to fit and is named for it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(_Facts):
    """One GPU as the driver describes it; None where it does not say.

    Attributes:
        index: The driver's number of it.
        uuid: Its name for life.
        name: Its kind.
        driver: Version of the driver.
        memory_total_mib: All of its memory.
        memory_free_mib: What nobody uses.
        uncorrected_errors: Uncorrected ECC errors since the driver started.
        fault: What the driver wrote in place of a value, such as `GPU requires reset`.
    """

    index: int
    uuid: str
    name: str
    driver: str
    memory_total_mib: float | None
    memory_free_mib: float | None
    uncorrected_errors: int | None
    fault: str | None = None


class GpuFacts(_Facts):
    """The GPUs that one rank may use.

    Attributes:
        granted: GPUs of the job on this node, as Slurm says; None where it says nothing.
        gpus: Those that the driver shows, without the ones that CUDA_VISIBLE_DEVICES hides.
        error: Why the driver shows none; None where it answered.
        has_slices: Whether parts of GPUs were granted, which the driver does not count.
        log: Lines of the kernel's log about hardware errors of GPUs; empty too where it cannot be read.
    """

    granted: int | None
    gpus: tuple[Gpu, ...]
    error: str | None = None
    has_slices: bool = False
    log: tuple[str, ...] = ()


class FolderFacts(_Facts):
    """The run folder, as one node sees it.

    Attributes:
        path: Absolute.
        free_gib: Free for this user; None where the folder cannot be looked at.
        error: Why it cannot be used, a clause that ends in the fix; None where files can be written.
        shows_marker: Whether the file is there that rank 0 wrote; None where it wrote none.
    """

    path: str
    free_gib: float | None
    error: str | None
    shows_marker: bool | None


class SoftwareFacts(_Facts):
    """What would run here.

    Attributes:
        versions: Version by package.
        code: Digest by file of the framework's sources.
    """

    versions: dict[str, str]
    code: dict[str, str]


class MachineFacts(_Facts):
    """The rest of a node.

    Attributes:
        cpus: CPUs that this task may use.
        shared_memory_free_gib: Free in /dev/shm; None where there is none.
        loopback: The address of the node's own name where every one of them is loopback, else None.
        interface: The network interface that leads to rank 0; None where it is not known.
        chosen_interfaces: Variables that name the network interface to use and are set.
        open_files: How many files and connections a process may have open.
    """

    cpus: int
    shared_memory_free_gib: float | None
    loopback: str | None
    interface: str | None
    chosen_interfaces: tuple[str, ...]
    open_files: int


class RankReport(_Facts):
    """What one rank has to say; the first rank of a node speaks for the node.

    Attributes:
        rank: Global rank.
        local_rank: Rank on its node.
        node: The node's name, as Slurm knows it.
        python: Version of Python.
        backend: What the user wants ranks to talk through; None: whatever fits.
        input_error: Why the recipe cannot be used here.
        gpus, folder, software, machine: Facts of the node; None from the other ranks.
    """

    rank: int
    local_rank: int
    node: str
    python: str
    backend: str | None = None
    input_error: str | None = None
    gpus: GpuFacts | None = None
    folder: FolderFacts | None = None
    software: SoftwareFacts | None = None
    machine: MachineFacts | None = None
