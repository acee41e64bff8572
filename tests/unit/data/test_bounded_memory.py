"""Thousands of samples later, the loader's process and its workers hold as much as after the first hundreds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sama_data.manifest import write_jsonl

WARM_UP, SAMPLES = 400, 2000
MOST_GROWTH_MIB = 32
"""A sample takes 0.2 MiB: were one of five of the 1,600 kept, it would be more."""
MOST_OPEN_FILES = 2
"""A worker may be reading a file at that moment."""

PROGRAM = """
import json, os, sys
from pathlib import Path
from sama_data.loader import LoaderSettings, Quarantine, SampleLoader
from sama_data.manifest import load_manifest

manifest, checks = Path(sys.argv[1]), [int(number) for number in sys.argv[2:]]
settings = LoaderSettings(2, 8, buckets=((64, 64),), max_frames=17, decode_threads=2, decoded_cache_mib=2)
quarantine = Quarantine(manifest.with_name("quarantine.jsonl"))


def resident_mib(process):
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def held_by(process):
    return {"mib": resident_mib(process), "descriptors": len(os.listdir(f"/proc/{process}/fd"))}


def workers():
    tasks = Path("/proc/self/task").iterdir()
    return sorted(int(child) for task in tasks for child in (task / "children").read_text().split())


with SampleLoader(load_manifest(manifest), settings, 0, 1, quarantine) as loader:
    num_samples = 0
    for step in loader.prefetching(0, checks[-1] // 10):
        num_samples += len(step.samples)
        if num_samples in checks:
            found = [held_by(process) for process in (os.getpid(), *workers())]
            print(json.dumps({"samples": num_samples, "held": found}))
"""


@pytest.mark.timeout(120)
def test_memory_and_descriptors_stay_what_they_are(tmp_path, make_frames, make_video):
    rows = []
    for number in range(40):
        for side in ("source", "target"):
            make_video(tmp_path / f"{side}{number}.mp4", make_frames(9, 64, 64, seed=number))
        pair = {"source": f"source{number}.mp4", "target": f"target{number}.mp4"}
        rows.append(pair | {"instruction": "x", "kind": "video" if number % 5 else "image"})
    rows.append({"video": "missing.mp4", "caption": "x"})
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "manifest.jsonl"), str(WARM_UP), str(SAMPLES)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
    early, late = (json.loads(line)["held"] for line in ended.stdout.splitlines())
    assert len(early) == len(late) == 3  # the loader's process and two workers
    for before, after in zip(early, late, strict=True):
        assert after["mib"] < before["mib"] + MOST_GROWTH_MIB
        assert after["descriptors"] <= before["descriptors"] + MOST_OPEN_FILES
