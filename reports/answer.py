"""The first lines of the page: what a decision needs, and what not to conclude."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.reports import formats
from workbench.reports.cells import Cell


def answer(cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    """What to conclude about the cells of one trace, and what to keep in mind, as HTML sentences.

    Only what can serve the recorded program as it is can be the answer: as-if replays are told
    among the remarks, and never as a recommendation.
    """
    fit = [cell for cell in cells if cell.status == "ok" and cell.peak("reserved") is not None]
    real = sorted((c for c in fit if not c.as_if), key=_reserved)
    as_if = sorted((c for c in fit if c.as_if), key=_reserved)
    sentences: list[str] = []
    remarks: list[str] = []
    if real:
        best = real[0]
        sentences.append(
            f"{_name(best)} holds the program in the least memory: "
            f"<strong>{formats.size(best.peak('reserved'))}</strong> reserved"
            f"{_distance(best)}{_calls(best)}."
        )
        if len(real) > 1:
            most = real[-1]
            if most.peak("reserved") == best.peak("reserved"):
                sentences.append("The others that can serve it reserve just as much.")
            else:
                sentences.append(
                    f"{_name(most)} needs the most of those that can serve it: "
                    f"<strong>{formats.size(most.peak('reserved'))}</strong>{_distance(most)}{_calls(most)}."
                )
    elif not as_if:
        sentences.append("No allocator got through this trace; the table says where each ended.")
    if as_if:
        told = ", ".join(f"{_name(c)} {formats.size(c.peak('reserved'))}" for c in as_if)
        remarks.append(
            f"Replayed as if the traffic were a device's: {told}. "
            "That shows how these allocators behave, not what to deploy in this program."
        )
    for cell in cells:
        if cell.status == "out_of_memory":
            remarks.append(f"{_name(cell)} ran out of memory.")
        elif cell.status != "ok":
            remarks.append(f"{_name(cell)} has no result: {cell.status.replace('_', ' ')}.")
    if cells and not cells[0].info["trace"]["complete"]:
        lost = cells[0].info["trace"]["lost_events"]
        remarks.append(
            f"The recording is incomplete ({formats.count(lost)} events lost): "
            "true peaks may be higher."
        )
    return sentences, remarks


def _reserved(cell: Cell) -> int:
    return cell.peak("reserved") or 0


def _name(cell: Cell) -> str:
    return f"<b>{formats.markup(cell.label)}</b>"


def _calls(cell: Cell) -> str:
    """The cost that every machine agrees on; times of our own code are no headline."""
    calls = cell.driver_calls
    return "" if calls is None else f", in {formats.count(calls)} device calls"


def _distance(cell: Cell) -> str:
    reserved = cell.peak("reserved")
    if reserved is None or not cell.live_peak:
        return ""
    ratio = reserved / cell.live_peak
    if ratio < 1.0005:
        return ", the peak of live memory and no more"
    if ratio >= 2:
        return f", {ratio:.1f} times the peak of live memory"
    return f", {formats.share(ratio - 1)} above the peak of live memory"
