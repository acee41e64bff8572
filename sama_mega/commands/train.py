"""`sama-mega train`: runs a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict

from sama_mega.config import load_recipe
from sama_mega.parallel.rank_environment import read_rank_environment
from sama_mega.train.startup import StartupClock
from sama_mega.train.stop import StopRequest


def run(recipe: str, overrides: Sequence[str] | None = None, as_json: bool = False) -> int:
    """Trains to the recipe's last step, or until a signal asks to stop: then with everything saved.

    Args:
        recipe: YAML file.
        overrides: ``a.b=value`` items.
        as_json: Whether rank 0's last line is one JSON object.

    Returns:
        Exit status 0.
    """
    clock = StartupClock(os.environ)
    # Before the imports below: a signal that comes during them counts too.
    with StopRequest() as stop:
        loaded = load_recipe(recipe, overrides or ())
        # Imported after the recipe is known to be good: torch takes seconds, a typo should not.
        from sama_mega.train.run import Start, train

        summary = train(loaded, Start(stop, clock))
    if as_json and read_rank_environment(os.environ).rank == 0:
        print(json.dumps(asdict(summary)))
    return 0
