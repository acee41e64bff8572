"""Benchmarks of whole parts: what is compared first gives the same results, then its time is taken.

`decoding` compares ways to decode clips, which `decoders` holds, on the clips that `clips` makes; `record` says on
which machine and with which versions.
"""
