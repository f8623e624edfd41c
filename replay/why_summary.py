"""What ``wb why`` shows: at most a screen."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from workbench.common.units import format_bytes
from workbench.common.words import masked, some
from workbench.replay.alloc_conf import NEW_KEYS
from workbench.replay.why import ENOUGH, Choice, Why

if TYPE_CHECKING:
    from rich.table import Table

_PARTS = {
    "live_requested": "tensors in use",
    "rounding": "lost to rounding",
    "pending": "freed, waiting for streams",
    "stranded": "stranded: free, but in segments in use",
    "cached": "cached: free, in whole segments",
}
# Frames of the allocator and of what recorded the stack.
_MACHINERY = ("torch::unwind", "CapturedTraceback", "gather", "CachingAllocator", "c10::")
_FRAMES = 3
_PINS = 3
_BAR = 24


def parts(why: Why) -> Iterator[Table | str]:
    """What to print, in order: tables, and lines of plain text, safe to print."""
    for part in _parts(why):
        yield masked(part) if isinstance(part, str) else part


def _parts(why: Why) -> Iterator[Table | str]:
    yield from _what(why)
    yield ""
    yield _waterfall(why)
    yield from _lost(why)
    yield from _pins(why)
    yield ""
    yield _choices(why)
    yield from _advice(why)
    yield from _belief(why)


def html(why: Why) -> str:
    """The same as a page of its own."""
    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=110, highlight=False, emoji=False)
    for part in parts(why):
        console.print(part, markup=False, soft_wrap=isinstance(part, str))
    return console.export_html(inline_styles=True)


def _what(why: Why) -> Iterator[str]:
    request = why.request
    if request is None and why.verdict is not None and why.verdict.kind != "exact" and (
        not why.verdict.entries and why.reproduced
    ):  # fmt: skip
        yield (
            f"{why.path}: holds no history of {why.device}; this is its state at the end, and "
            "whether memory ran out is not known"
        )
        return
    if request is None:
        yield (
            f"{why.path}: {why.device} did not run out of memory; this is the peak of its reserved "
            f"memory, row {why.snapshot.event:,}"
        )
        return
    free = "" if request.device_free is None else (
        f", and {why.device} had {format_bytes(request.device_free)} left"
    )  # fmt: skip
    seen = "" if request.count else " (in the replay)"
    yield (
        f"{why.path}: out of memory{seen} at row {request.row:,}: "
        f"{format_bytes(request.size)} were asked for{free}"
    )
    where = [f"step {request.step}"] if request.step >= 0 else []
    where += [request.phase] if request.phase != "other" else []
    where += [request.scope] if request.scope else []
    frames = own_frames(request.stack)
    if where or frames:
        yield f"  in {', '.join(where)}" if where else "  asked for in"
    for frame in frames:
        yield f"    {frame}"
    blame = why.fragmentation_is_to_blame
    live = why.snapshot.waterfall["live_requested"] + request.size
    if blame is True and why.left is not None:
        yield (
            f"Fragmentation is to blame: tensors and the request need {format_bytes(live)}, "
            f"PyTorch could have {format_bytes(why.left)}"
        )
    elif blame is False and why.left is not None:
        yield (
            f"The device is too small: tensors and the request alone need {format_bytes(live)}, "
            f"PyTorch could have {format_bytes(why.left)}; no allocator serves that"
        )


def own_frames(stack: str | None, most: int = _FRAMES) -> list[str]:
    """The innermost frames of a folded stack that are the program's own, innermost first."""
    if not stack:
        return []
    frames = stack.split(";")[::-1]
    python = [frame for frame in frames if ".py:" in frame]
    own = [
        frame
        for frame in python
        if "/site-packages/" not in frame and "/torch/" not in frame and "/lib/python" not in frame
    ]
    named = [frame for frame in frames if not any(word in frame for word in _MACHINERY)]
    return [frame[-100:] for frame in (own or python or named)[:most]]


def _waterfall(why: Why) -> Table:
    from rich.table import Table

    found = why.snapshot.waterfall
    reserved = why.snapshot.reserved
    table = Table(
        title=f"{format_bytes(reserved)} reserved on {masked(why.device)}"
        + (" (as recorded)" if why.reproduced else " (in a replay)"),
        title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0),
    )  # fmt: skip
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for name, words in _PARTS.items():
        share = found[name] / max(reserved, 1)
        table.add_row(words, format_bytes(found[name]), f"{share:.1%}", "█" * round(_BAR * share))
    others = why.held_by_others
    table.add_row(
        "held by others on the device",
        "not in the file" if others is None else format_bytes(others), "",
        "--device-memory SIZE tells" if others is None else "",
    )  # fmt: skip
    return table


def _lost(why: Why) -> Iterator[str]:
    found, reserved = why.snapshot.waterfall, max(why.snapshot.reserved, 1)
    lost = sum(found[name] for name in ("rounding", "pending", "stranded"))
    yield (
        f"Lost to fragmentation: {format_bytes(lost)} ({lost / reserved:.1%}); "
        f"{format_bytes(found['cached'])} ({found['cached'] / reserved:.1%}) more is cached, which "
        "PyTorch gives back before it runs out; the largest free block is "
        f"{format_bytes(why.snapshot.largest_free)}"
    )


def _pins(why: Why) -> Iterator[str]:
    pins = why.snapshot.pinned_by()
    if not len(pins):
        return
    segments = pins.drop_duplicates("segment")
    wasted = int(segments["wasted"].sum())
    yield (
        f"{len(segments):,} segments are mostly empty and kept by a few blocks "
        f"({format_bytes(wasted)} of them free). Who pins the emptiest:"
    )
    for row in pins.head(_PINS).to_dict("records"):
        frames = own_frames(row["stack"], 1)
        place = frames[0] if frames else row["scope"] or "unknown (no stacks in the file)"
        held, whole = format_bytes(row["bytes"]), format_bytes(row["segment_size"])
        yield f"  {held} in {some(row['blocks'], 'block')} of a segment of {whole}: {place}"


def _choices(why: Why) -> Table:
    from rich.table import Table

    limit = f" on {format_bytes(why.left)}" if why.left is not None else ""
    table = Table(
        title=f"The same requests replayed under other settings{limit}: peak of reserved memory, "
        "retries, device calls, and the smallest device that holds all",
        title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold",
    )  # fmt: skip
    # Short names: the settings need the room.
    for name in ("outcome", "reserved", "retries", "calls", "fits in"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    if why.failure_is_missed:
        reserved = format_bytes(why.snapshot.reserved)
        settings = masked(why.recorded.settings or "default")
        table.add_row("out of memory", reserved, "", "", "", f"{settings} (as recorded)")
    else:
        table.add_row(*_row(why.recorded, why.settings_known))
    for choice in why.shown:
        table.add_row(*_row(choice, False))
    return table


def _row(choice: Choice, recorded: bool) -> list[str]:
    outcome, fit = choice.outcome, choice.fit
    return [
        {"ok": "serves all", "out_of_memory": "out of memory"}.get(outcome.status, outcome.status),
        format_bytes(outcome.peak_reserved),
        f"{outcome.known_retries:,}",
        f"{outcome.device_calls:,}",
        f"{fit.capacity // 2**20:,} MiB" if fit and fit.capacity else "",
        masked(choice.settings or "default") + (" (recorded)" if recorded else ""),
    ]


def _advice(why: Why) -> Iterator[str]:
    if why.failure_is_missed:
        yield (
            "Mind: from a fresh start the recorded settings serve all of it too, on less than it "
            "failed with; what was stranded between the blocks from before the history is what "
            "failed, and the other rows are too good by as much. A history from the program's "
            "start tells more"
        )
    yield from _best(why)
    yield from _smallest(why)


def _best(why: Why) -> Iterator[str]:
    helping = why.helping
    must_serve = why.request is not None and why.left is not None
    if not helping:
        yield (
            "No setting serves the request on that much memory"
            if must_serve
            else f"No setting helps: none holds it in {ENOUGH:.0%} less"
        )
        return
    best = helping[0]
    peak = max(why.recorded.outcome.peak_reserved, 1)
    saved = peak - best.outcome.peak_reserved
    gain = (
        "it serves the request"
        if must_serve
        else f"{format_bytes(saved)} less ({saved / peak:.1%})"
    )
    if why.as_if:
        yield (
            f"As-if: {best.settings or 'the defaults'} would be best, but {why.device} is not the "
            "caching allocator's memory: nothing to set"
        )
        return
    word = "Worth trying" if why.failure_is_missed else "Set"
    yield f"{word}: {best.export}" + ("" if why.failure_is_missed else f"   ({gain})")
    for warning in best.outcome.warnings:
        yield f"  Mind: {warning}"
    new = [key for key in NEW_KEYS if key in best.settings]
    if new:
        yield f"  Mind: PyTorch takes {' and '.join(new)} since 2026, and stops at it before"


def _smallest(why: Why) -> Iterator[str]:
    """The smallest device under the recorded settings, and under those that fit a smaller one."""
    own = None if why.failure_is_missed else why.recorded.fit
    told = []
    if own is not None and own.capacity:
        retries = own.at.known_retries if own.at else 0
        costs = ""
        if retries and own.roomy:
            many = some(retries, "retry", "retries")
            costs = f" ({many}: cached memory is given back first; {_mib(own.roomy)} without)"
        name = "the recorded settings" if why.settings_known else "the defaults"
        told.append(f"{_mib(own.capacity)} with {name}{costs}")
    elif why.failure_is_missed and why.left is not None:
        told.append(
            f"above {format_bytes(why.left)} with the recorded settings, which failed on it"
        )
    others = [one for one in why.helping if one.fit is not None and one.fit.capacity]
    least = min(others, key=lambda one: (one.fit and one.fit.capacity) or 0, default=None)
    if least is not None and least.fit is not None and least.fit.capacity:
        if own is None or own.capacity is None or least.fit.capacity < own.capacity:
            told.append(f"{_mib(least.fit.capacity)} with {least.settings or 'the defaults'}")
        else:
            told.append("no setting above fits a smaller one")
    if told:
        yield f"Smallest device that would have held it, all for PyTorch: {'; '.join(told)}"


def _mib(size: int) -> str:
    return f"{size // 2**20:,} MiB"


def _belief(why: Why) -> Iterator[str]:
    yield ""
    if why.verdict is None:
        yield "Self-check: none; this file says nothing of what the allocator did"
    else:
        yield f"Self-check: {why.verdict}"
        for fact in why.verdict.facts[:2]:
            yield f"  inferred: {fact}"
        if why.verdict.facts[2:]:
            yield f"  inferred: {len(why.verdict.facts) - 2:,} more; --json lists them"
    for assumption in why.assumptions:
        yield f"Assumed: {assumption}"


def document(why: Why) -> dict[str, Any]:
    """For JSON, without what JSON has no number for."""
    import json

    plain: dict[str, Any] = json.loads(json.dumps(why.document(), default=str))
    return plain
