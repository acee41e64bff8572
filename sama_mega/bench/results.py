"""Where a benchmark's figures go: a dated file with the machine, the versions and the command."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sama_mega.config.errors import ConfigError
from sama_mega.observe.environment import describe_environment

NO_GPU = "no GPU: float32 on the CPU; such figures say nothing about training"


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the figures hold for: the run's environment without its uncommitted changes, and the device."""
    environment = describe_environment()
    if isinstance(environment.get("git"), dict):
        environment["git"] = {key: value for key, value in environment["git"].items() if key != "diff"}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": name,
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        **environment,
    }


def require_writable(folder: Path) -> None:
    """Makes the folder of results before minutes are measured.

    Raises:
        ConfigError: Nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"--results ({folder}) cannot be written: {error.strerror}: choose another folder") from error


def write_results(folder: Path, what: str, results: dict[str, Any]) -> Path:
    """Writes ``DATE-what.json``, with a number behind the date where there is one of that name already.

    Raises:
        OSError: The folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.now().strftime("%Y-%m-%d")
    text = json.dumps(results, indent=1) + "\n"
    for number in range(1, 1000):
        path = folder / (f"{date}-{what}.json" if number == 1 else f"{date}.{number}-{what}.json")
        try:
            with path.open("x") as file:
                file.write(text)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{folder}: 999 results of {date} are there already")


def wide_console() -> Console:
    """Where tables go: a log has no width of its own."""
    return Console() if Console().is_terminal else Console(width=140)
