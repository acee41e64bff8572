"""What the wheel and the import linter rely on."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize("package", ["sama_mega", "kernels/sama_kernels", "data/sama_data"])
def test_every_folder_of_modules_is_a_package(package: str, repo_root: Path) -> None:
    folders = {path.parent for path in (repo_root / package).rglob("*.py")}
    # A folder without __init__.py would be left out of the wheel and of the linter's import rules.
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
