"""Decodes every clip of a manifest once: what each of them really is, and which rows must not be trained on."""
