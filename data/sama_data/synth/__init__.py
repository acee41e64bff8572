"""A synthetic editing world with an exact ground truth: generated in memory, or written as clips and manifests.

In memory: `make_pair(seed, index)`. On disk: `sama_data.synth.write.write_world` (which needs PyAV and Pillow).
"""

from __future__ import annotations

from sama_data.synth.edits import EditPair, make_pair
from sama_data.synth.spec import EDIT_KINDS, WorldSpec

__all__ = ["EDIT_KINDS", "EditPair", "WorldSpec", "make_pair"]
