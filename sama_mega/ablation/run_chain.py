"""`python -m sama_mega.ablation.run_chain`: both stages of one variant with one seed, and its scores.

A process of its own: the study itself loads no torch, and several of these run at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from sama_data.errors import DataError
from sama_mega.ablation.score import score_chain
from sama_mega.ablation.study import STAGES, VARIANTS, Chain, Study
from sama_mega.config.errors import UserError
from sama_mega.train.run import train


def main(argv: list[str] | None = None) -> int:
    """Trains and scores; goes on where an earlier process was killed.

    Args:
        argv: The command line; None reads `sys.argv`.

    Returns:
        Exit status: 0, or 2 with one line where the user's input is at fault.
    """
    parser = argparse.ArgumentParser(prog="python -m sama_mega.ablation.run_chain", description=__doc__)
    parser.add_argument("study", type=Path, help="the study's folder")
    parser.add_argument("variant", choices=[variant.name for variant in VARIANTS])
    parser.add_argument("seed", type=int)
    options = parser.parse_args(argv)
    variants = {variant.name: variant for variant in VARIANTS}
    chain = Chain(Study.load(options.study), variants[options.variant], options.seed)
    try:
        for stage in STAGES:
            train(chain.recipe(stage))
        _write(chain)
    except (UserError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(chain: Chain) -> None:
    size = chain.study.size
    scores = score_chain(chain.run_folder(0), chain.run_folder(1), size.clips_per_kind, size.curve_clips_per_kind)
    draft = chain.scores.with_suffix(".tmp")
    draft.write_text(json.dumps(scores))
    os.replace(draft, chain.scores)


if __name__ == "__main__":
    sys.exit(main())
