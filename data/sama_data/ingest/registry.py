"""The sets that can be ingested, by name."""

from __future__ import annotations

import difflib

from sama_data.errors import DataError
from sama_data.ingest.diffsynth import DIFFSYNTH
from sama_data.ingest.diffusion_pipe import DIFFUSION_PIPE
from sama_data.ingest.ditto import DITTO
from sama_data.ingest.gpt_image_edit import GPT_IMAGE_EDIT
from sama_data.ingest.interface import IngestSet
from sama_data.ingest.koala import KOALA
from sama_data.ingest.motionbench import MOTIONBENCH
from sama_data.ingest.nhr_edit import NHR_EDIT
from sama_data.ingest.openve import OPENVE
from sama_data.ingest.pico_banana import PICO_BANANA
from sama_data.ingest.reco import RECO
from sama_data.ingest.sama_edit_filtered import SAMA_EDIT_FILTERED
from sama_data.ingest.videox_fun import VIDEOX_FUN
from sama_data.ingest.x2edit import X2EDIT

SETS: tuple[IngestSet, ...] = (
    NHR_EDIT,
    GPT_IMAGE_EDIT,
    X2EDIT,
    PICO_BANANA,
    DITTO,
    OPENVE,
    RECO,
    KOALA,
    MOTIONBENCH,
    SAMA_EDIT_FILTERED,
    DIFFUSION_PIPE,
    VIDEOX_FUN,
    DIFFSYNTH,
)


def find_set(name: str) -> IngestSet:
    """Returns the set of a name; case, `-` and `_` make no difference.

    Raises:
        DataError: There is none.
    """
    by_name = {_plain(known): chosen for chosen in SETS for known in (chosen.name, *chosen.aliases)}
    chosen = by_name.get(_plain(name))
    if chosen is None:
        near = difflib.get_close_matches(_plain(name), by_name, n=1)
        hint = f"; did you mean {by_name[near[0]].name}?" if near else ""
        raise DataError(f"no set is called {name!r}{hint}: use one of {', '.join(known.name for known in SETS)}")
    return chosen


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")
