"""Datasets as people download them, made on the spot: every clip's bytes say which clip it is."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sama_data.ingest.run import Summary, ingest
from sama_data.manifest import load_manifest


def write_files(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Writes files under a folder; text as UTF-8."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def write_clips(root: Path, *names: str) -> Path:
    """Writes clips whose bytes are their names."""
    return write_files(root, {name: clip_bytes(name) for name in names})


def clip_bytes(name: str) -> bytes:
    """What `write_clips` writes."""
    return f"the bytes of {name}".encode()


def tar_bytes(members: Iterable[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """An uncompressed tar; names may repeat."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


class Ingested:
    """What an ingest wrote, read back."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        table = pq.read_table(summary.out)
        self.rows: list[dict[str, Any]] = [
            {key: value for key, value in row.items() if value is not None} for row in table.to_pylist()
        ]
        self.dataset = load_manifest(summary.out)

    @property
    def skipped(self) -> dict[str, int]:
        """Rows left out, by reason."""
        return self.summary.skipped

    def clips(self) -> list[tuple[bytes | None, bytes]]:
        """The bytes of every row's source and target, as the loader would read them."""
        return [(None if row.source is None else row.source.read(), row.target.read()) for row in self.dataset]


def ingested(name: str, source: Path, **options: Any) -> Ingested:
    """Ingests into a manifest beside the source's folder."""
    folder = source if source.is_dir() else source.parent
    return Ingested(ingest(name, source, folder.parent / "manifests" / f"{name}.parquet", **options))
