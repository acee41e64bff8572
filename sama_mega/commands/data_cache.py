"""`sama-mega data cache`: encodes a recipe's samples once, for all epochs and runs that use the same encoders."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sama_mega.config import load_recipe
from sama_mega.parallel.rank_environment import read_rank_environment

_SKIPPED_SHOWN = 10


def run(recipe: str, overrides: Sequence[str], out: Path, as_json: bool = False) -> int:
    """Fill a cache of latents, semantic features and text embeddings; go on where an earlier life ended.

    Args:
        recipe: YAML file.
        overrides: ``a.b=value`` items.
        out: The cache's folder, made or gone on with.
        as_json: Whether the first rank's last line is one JSON object.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: The recipe, its encoders or `out` are at fault.
        DataError: The manifest is at fault, or none of this rank's rows can be decoded.
    """
    loaded = load_recipe(recipe, overrides)
    ranks = read_rank_environment(os.environ)
    # Imported after the recipe is known to be good: torch takes seconds, a typo should not.
    from sama_data.errors import DataError
    from sama_mega.encoders import build_encoders
    from sama_mega.encoders.feature_cache import CacheFolder
    from sama_mega.observe.sampling import sampling_progress
    from sama_mega.parallel.runtime import find_device
    from sama_mega.parallel.torch_settings import apply_torch_settings
    from sama_mega.train.cache_features import FeatureCacher
    from sama_mega.train.inputs import open_dataset

    apply_torch_settings(loaded)
    dataset = open_dataset(loaded)
    device = find_device(ranks)
    started = time.monotonic()
    cacher = FeatureCacher(loaded, dataset, build_encoders(loaded, device), CacheFolder(out), device)
    num_rows = cacher.num_rows(ranks.rank, ranks.world_size)
    with sampling_progress(max(1, num_rows), "rows", shown=ranks.rank == 0) as on_rows:
        report = cacher.run(ranks.rank, ranks.world_size, on_rows)
    for line in report.skipped[:_SKIPPED_SHOWN]:
        print(f"skipped: {line}", file=sys.stderr)
    if report.skipped and len(report.skipped) == report.rows:
        raise DataError(f"none of {report.rows} rows can be decoded, such as {report.skipped[0]}")
    if ranks.rank == 0:
        share = f" of rank 0 of {ranks.world_size}" if ranks.world_size > 1 else ""
        print(
            f"{report.rows} rows{share}: {report.encoded} features encoded, {report.rows_done_before} rows done before,"
            f" {len(report.skipped)} skipped ({time.monotonic() - started:.1f} s)"
        )
        others = "" if report.finished else "; other processes are not done: the last of them finishes it"
        print(f"train with data.cache={out}{others}")
        if as_json:
            values = asdict(report) | {"out": str(out), "skipped": len(report.skipped)}
            print(json.dumps(values))
    return 0
