"""Training data: manifests, decoding, buckets, perturbation plans, order, and the loader that joins them.

Yields uint8 frames and plans; knows neither the model nor how a plan is applied. Import the module you need
(`sama_data.loader`, `sama_data.manifest`, ...): this package imports none of them, so that it costs nothing.
"""
