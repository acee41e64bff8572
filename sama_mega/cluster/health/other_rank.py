"""The health check from any other rank's side: it answers what rank 0 asks until the verdict."""

from __future__ import annotations

import time

from sama_mega.cluster.health.bandwidth import measure
from sama_mega.cluster.health.folder_probe import MARKER_SECONDS, probe_other
from sama_mega.cluster.health.guest import Guest
from sama_mega.cluster.health.messages import MeetingError, Message
from sama_mega.cluster.health.rank import Rank, complete, describe_rank

# What rank 0's own probes may take where everything hangs, besides waiting for others.
_HOST_SECONDS = 90.0


def check_as_other(rank: Rank) -> int:
    """Runs the check as a rank other than 0.

    Returns:
        The exit status of all ranks.

    Raises:
        MeetingError: Rank 0 cannot be reached, is gone, or turned this rank away.
    """
    place, timeout_seconds = rank.place, rank.settings.timeout_seconds
    assert place.master_address is not None and place.master_port is not None, place
    hello = {"key": rank.key, "rank": place.rank, "node": rank.node}
    with Guest(place.master_address, place.master_port, hello, timeout_seconds) as guest:
        patience_seconds = timeout_seconds + _HOST_SECONDS
        _report(guest, rank, patience_seconds)
        while True:
            message = guest.receive(patience_seconds)
            if message["kind"] == "verdict":
                return int(message["status"])
            guest.tell(_answer(message))


def _report(guest: Guest, rank: Rank, patience_seconds: float) -> None:
    report = describe_rank(rank)
    marker = guest.receive(patience_seconds).get("marker")
    folder = None
    if rank.speaks_for_node and rank.recipe is not None:
        # Rank 0 must have the report in time even where the marker never shows.
        marker_seconds = min(MARKER_SECONDS, rank.settings.timeout_seconds / 4)
        folder = probe_other(rank.recipe.train.run_folder, marker, marker_seconds=marker_seconds)
    report = complete(report, rank, folder, guest.local_address)
    guest.tell({"kind": "report", "report": report.model_dump()})


def _answer(message: Message) -> Message:
    match message["kind"]:
        case "clock":
            return {"kind": "clock", "time": time.time()}
        case "measure":
            return {"kind": "bandwidth", "result": measure(message["plan"], message["seconds"])}
        case kind:
            raise MeetingError(f"rank 0 asked for {kind!r}, which this rank does not know: use one clone on all nodes")
