"""Benchmarks: parity first, then time, against named baselines in the same run."""
