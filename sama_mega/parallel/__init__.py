"""Degrees to process groups, and the only door to megatron-core's runtime.

Nothing is imported here: `sama-mega check` reads `layout` alone and must not pay for torch.
"""
