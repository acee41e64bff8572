"""Checks that need a GPU: `make gpu-check` runs `check.py`, which runs these tests and the benchmarks."""
