"""Weights in and out: Wan2.1 and SAMA, as diffusers, Wan and SAMA's authors publish them."""
