"""Turns datasets as people have them into manifests: one file a set, `registry` lists them, `run` does the work.

A set's file says where that dataset keeps things and nothing more: it yields candidates, rows whose clips are still
the names that the dataset uses. `run` finds the clips (`finder`, `archives`), leaves out what cannot be used and counts
why, and writes the manifest.
"""
