"""What this project draws random numbers for; the generator is `sama_kernels.philox`."""

from __future__ import annotations

from enum import IntEnum


class Stream(IntEnum):
    """What a draw is for; two purposes never share numbers. Values are part of every recorded run."""

    TIMESTEP = 0
    LATENT_NOISE = 1
    SEMANTIC_NOISE = 2
    TEXT_DROPOUT = 3
    SAMPLING_LATENT = 4
    SAMPLING_SEMANTIC = 5
