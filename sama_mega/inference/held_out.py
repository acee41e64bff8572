"""Which clips of the synthetic world no training sees."""

from __future__ import annotations

HELD_OUT_SEED = 1_000_003
"""Worlds of different seeds share no scene; the demo trains on another seed."""
