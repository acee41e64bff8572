"""Decoding with DALI: encoded bytes in, uint8 frames of a bucket's size out, on the GPU where there is one.

`reader` reads rows in batches, `look` says what a file is and whether DALI decodes it exactly, `pipeline` holds the
graph, `frames` what comes out of it.
"""
