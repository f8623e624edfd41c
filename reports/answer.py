"""The first lines of the page: what a decision needs, and what not to conclude."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.reports import formats
from workbench.reports.cells import Cell


def answer(cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    """What to conclude about the cells of one trace, and what to keep in mind, as HTML sentences.

    Only what can serve the recorded program as it is can be the answer: as-if replays, references
    and replays whose threads raced are told among the remarks, and never as a recommendation.
    """
    whole = [cell for cell in cells if cell.status == "ok" and cell.peak("reserved") is not None]
    whole.sort(key=_reserved)
    raced = [cell for cell in whole if cell.races]
    fit = [cell for cell in whole if not cell.races]
    as_if = [cell for cell in fit if cell.as_if]
    references = [cell for cell in fit if cell.is_reference and not cell.as_if]
    real = [cell for cell in fit if not cell.as_if and not cell.is_reference]
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
    elif raced and not fit:
        sentences.append("Memory is not compared: in these replays the recorded threads raced.")
    elif not whole:
        sentences.append("No allocator got through this trace; the table says where each ended.")
    if as_if:
        remarks.append(
            f"Replayed as if the traffic were of another kind of memory: {_peaks(as_if)}. "
            "That shows how these allocators behave, not what to deploy in this program."
        )
    if references:
        remarks.append(f"PyTorch's own code, for comparison: {_peaks(references)}.")
    if raced:
        remarks.append(
            f"Threads raced: {_peaks(raced)}. What is live at once then differs from run to run, "
            "so this memory is no verdict; the order global compares it."
        )
    remarks += [formats.markup(c.result.plan_note, 2000) for c in cells if c.result.plan_note]
    for cell in cells:
        if cell.status == "out_of_memory":
            remarks.append(f"{_name(cell)} ran out of memory.")
        elif cell.status != "ok":
            remarks.append(f"{_name(cell)} has no result: {cell.status.replace('_', ' ')}.")
    remarks += [
        f"Left out of <code>all</code>: {formats.markup(name)} ({formats.markup(reason)})."
        for name, reason in _left_out(cells)
    ]
    if cells and not cells[0].info["trace"]["complete"]:
        lost = cells[0].info["trace"]["lost_events"]
        remarks.append(
            f"The recording is incomplete ({formats.count(lost)} events lost): "
            "true peaks may be higher."
        )
    return sentences, remarks


def _reserved(cell: Cell) -> int:
    return cell.peak("reserved") or 0


def _peaks(cells: Sequence[Cell]) -> str:
    return ", ".join(f"{_name(cell)} {formats.size(_reserved(cell))}" for cell in cells)


def _left_out(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """What could not run beside these cells and why; not what ran at another time."""
    ran = {cell.info["allocator"]["name"] for cell in cells}
    found = [(one["name"], one["reason"]) for c in cells for one in c.info.get("left_out", ())]
    return [one for one in dict.fromkeys(found) if one[0] not in ran]


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
