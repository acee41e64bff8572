"""What importing the package alone does."""

from __future__ import annotations

import subprocess
import sys

REMARK = "Transformer Engine and Apex are not installed. Falling back to Torch optimizers."


def test_remarks_of_megatron_are_silent_whatever_is_imported_first() -> None:
    script = f"import warnings, sama_mega; warnings.warn({REMARK!r}); warnings.warn('seen')"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "seen" in ran.stderr and "Apex" not in ran.stderr
