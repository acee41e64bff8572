"""What `edit` refuses before it samples."""

from __future__ import annotations

import pytest

from sama_mega.commands.edit import _require_work_for_all
from sama_mega.config.errors import ConfigError
from sama_mega.inference.editor import SamplingSettings


@pytest.mark.parametrize(
    ("num_data_ranks", "guidance", "source_guidance", "passes"),
    [(1, 1.0, 0.0, 1), (2, 5.0, 0.0, 2), (2, 1.0, 1.0, 2), (3, 5.0, 1.0, 3)],
)
def test_every_data_rank_has_a_pass_to_make(
    num_data_ranks: int, guidance: float, source_guidance: float, passes: int
) -> None:
    settings = SamplingSettings(2, guidance, 1, source_guidance)
    _require_work_for_all(num_data_ranks, settings)
    with pytest.raises(ConfigError, match=rf"a step has {passes} passes to share .*raise --tp or --cp"):
        _require_work_for_all(passes + 1, settings)
