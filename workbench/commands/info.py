"""``wb info``: what is in a trace."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from workbench.recorders.trace import Trace, TraceFile
    from workbench.recorders.trace.summary import Bucket, DeviceSummary, FileSummary, Share

_MOST_ROWS = 10_000


def command(
    trace: Annotated[
        str,
        typer.Argument(
            help="A trace, a folder of traces (rank=0.parquet …), or a URL of either.",
            metavar="TRACE",
        ),
    ],
    events: Annotated[
        str | None,
        typer.Option(
            "--events", metavar="A:B", help="Print the events from A up to, not including, B."
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="How many scopes to list.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what is in a trace: events, peak of live memory, sizes, lifetimes, who held the peak.

    The whole trace is read and checked against the rules of its format.

    Examples:

        wb info run.parquet

        wb info run.parquet --events 0:20

        wb info ranks/ --json
    """
    from workbench.recorders.trace import open_trace

    opened = open_trace(trace)
    if events is not None:
        _print_rows(_only_file(opened), events, as_json)
        return
    summaries = _summarise(opened, show_progress=not as_json)
    if as_json:
        print(
            json.dumps(
                {"path": opened.path, "files": [summary.to_json() for summary in summaries]},
                indent=1,
            )
        )
        return
    console = _console()
    if len(summaries) > 1:
        console.print(_files_table(summaries))
    shown = max(summaries, key=lambda summary: max(_peaks(summary), default=0))
    _print_summary(console, shown, top, several=len(summaries) > 1)
    console.print(f"Next: wb replay {opened.path} --allocator all", markup=False, soft_wrap=True)


def _summarise(trace: Trace, show_progress: bool) -> list[FileSummary]:
    from rich.console import Console
    from rich.progress import Progress

    from workbench.recorders.trace.summary import summarise

    errors = Console(stderr=True, emoji=False)
    hidden = not (show_progress and errors.is_terminal)
    with Progress(console=errors, transient=True, disable=hidden) as progress:
        task = progress.add_task("Reading", total=max(trace.rows, 1))
        done_before = 0

        def advance(done: int, _: int) -> None:
            progress.update(task, completed=done_before + done)

        summaries = []
        for file in trace.files:
            summaries.append(summarise(file, advance))
            done_before += file.rows
    return summaries


def _peaks(summary: FileSummary) -> Iterator[int]:
    return (device.peak_bytes for device in summary.devices)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 100, highlight=False, emoji=False)


def _table(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns hold text and the others numbers."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", overflow="fold")
    return table


def _print_summary(console: Console, summary: FileSummary, top: int, several: bool) -> None:
    from workbench.common.units import format_bytes

    console.print(_overview(summary, several))
    for warning in warnings(summary):
        console.print(f"[yellow]Warning:[/] {plain(warning)}", soft_wrap=True)
    if not summary.events:
        console.print("The trace holds no events.")
        return
    console.print(_devices_table(summary))
    for device in summary.devices:
        for what, shares in (("phases", device.peak_phases), ("scopes", device.peak_scopes)):
            if any(share.name is not None for share in shares):
                console.print(_shares_table(device, what, shares, top))
    if summary.sizes:
        console.print(_sizes_table(summary.sizes))
    if summary.lifetimes_in_ns:
        console.print(_lifetimes_table(summary))
    left = sum(device.live_bytes for device in summary.devices)
    console.print(f"Live at the end: {format_bytes(left)}")


def _overview(summary: FileSummary, several: bool) -> Table:
    from rich.table import Table

    from workbench.common.units import format_duration

    about = summary.metadata
    versions = about["versions"]
    rows = {
        "trace": summary.path + (" (the one with the highest peak)" if several else ""),
        "program": " ".join(str(word) for word in about["program"]),
        "process": _joined(pid=about["process_id"], rank=about["rank"], of=about["world_size"]),
        "recorded": _joined(
            on=about["start_wall_clock"], devices=", ".join(_device_names(summary))
        ),
        "versions": _joined(**{str(name): value for name, value in versions.items()}),
        "ended": _joined(how=about["ended"], exit_code=about["exit_code"], signal=about["signal"]),
        "events": f"{summary.events:,}  ("
        + ", ".join(f"{count:,} {event}" for event, count in summary.event_counts.items())
        + ")",
        "span": _span(summary),
        "steps": f"{summary.last_step:,} completed" if summary.last_step >= 0 else "none seen",
    }
    if summary.peak_checks and all(c.in_trace == c.reported for c in summary.peak_checks):
        checked = ", ".join(check.device for check in summary.peak_checks)
        rows["checked"] = f"peak of requested bytes on {checked}: as PyTorch reported it"
    if summary.first_time_ns is not None and summary.last_time_ns is not None and summary.events:
        rate = (summary.last_time_ns - summary.first_time_ns) / summary.events
        rows["span"] += f", one event in {format_duration(rate)}"
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in [*rows.items(), *_imported(about)]:
        if value:
            table.add_row(name, plain(value))
    return table


def _imported(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows about the import, where the trace was imported."""
    from workbench.commands._imported import check_lines, note_lines

    imported = about["imported"]
    if imported is None:
        return
    yield "imported", _joined(kind=imported.get("kind"), file=imported.get("file"))
    lines = note_lines(imported.get("notes", ())) + check_lines(imported.get("checks", ()))
    yield from (("", line) for line in lines)


def _device_names(summary: FileSummary) -> list[str]:
    recorded = [str(device) for device in summary.metadata["recorded"]]
    return list(dict.fromkeys([*recorded, *(device.device for device in summary.devices)]))


def _joined(**values: Any) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in values.items()
        if value not in (None, "")
    )


def _span(summary: FileSummary) -> str:
    from workbench.common.units import format_duration

    if summary.first_time_ns is None or summary.last_time_ns is None:
        return "no events"
    return format_duration(summary.last_time_ns - summary.first_time_ns)


def warnings(summary: FileSummary) -> Iterator[str]:
    """What to know before believing the numbers, a sentence each."""
    about = summary.metadata
    if not about["complete"]:
        count, reason = about["lost_events"], about["lost_reason"] or "no reason is given"
        yield (
            f"the trace is incomplete: {count:,} events are known to be lost ({reason}); peaks may "
            "be too low"
            if count
            else f"the trace is incomplete ({reason}); peaks outside of it are not known"
        )
    if about["dropped_events"]:
        yield (
            f"the trace begins {about['dropped_events']:,} events into the recording, which were "
            "dropped to keep the last part (--ring); what was live there is in it as live events"
        )
    if about["unmatched_frees"]:
        yield (
            f"{about['unmatched_frees']:,} frees had no allocation in the recording and are left "
            "out: that memory was allocated before recording began"
        )
    if about["reused_addresses"]:
        yield (
            f"{about['reused_addresses']:,} allocations stay live because their free was never "
            "seen; live memory is too high by them"
        )
    for check in summary.peak_checks:
        if check.in_trace != check.reported:
            yield (
                f"{check.device}: PyTorch reported a peak of {check.reported:,} requested bytes, "
                f"the trace comes to {check.in_trace:,}: some memory went past the recorder"
            )
    if about["forked_children"]:
        yield f"{about['forked_children']:,} forked children were not recorded"


def _devices_table(summary: FileSummary) -> Table:
    from workbench.common.units import format_bytes, format_duration

    table = _table(
        "Live memory (requested bytes)",
        "device", "peak live", "blocks", "event", "time", "step", "phase", "live at end", "blocks",
    )  # fmt: skip
    for device in summary.devices:
        table.add_row(
            plain(device.device),
            format_bytes(device.peak_bytes),
            f"{device.peak_blocks:,}",
            f"{device.peak_event:,}",
            format_duration(device.peak_time_ns),
            f"{device.peak_step:,}" if device.peak_step >= 0 else "",
            plain(device.peak_phase),
            format_bytes(device.live_bytes),
            f"{device.live_blocks:,}",
        )
    return table


def _shares_table(device: DeviceSummary, what: str, shares: list[Share], top: int) -> Table:
    from workbench.common.units import format_bytes

    table = _table(
        f"{plain(device.device)}: {what} that allocated what is live at the peak",
        what[:-1], "bytes", "share", "blocks",
    )  # fmt: skip
    for share in shares[:top]:
        table.add_row(
            plain(share.name) if share.name is not None else "(none)",
            format_bytes(share.bytes),
            f"{share.bytes / max(device.peak_bytes, 1):.1%}",
            f"{share.blocks:,}",
        )
    rest = shares[top:]
    if rest:
        size = sum(share.bytes for share in rest)
        table.add_row(
            f"({len(rest):,} others)",
            format_bytes(size),
            f"{size / max(device.peak_bytes, 1):.1%}",
            f"{sum(share.blocks for share in rest):,}",
        )
    return table


def _sizes_table(sizes: list[Bucket]) -> Table:
    from workbench.common.units import format_bytes

    table = _table("Sizes of allocations", "from", "below", "allocations", "bytes", "", left=0)
    table.columns[-1].justify = "left"
    most = max(bucket.count for bucket in sizes)
    for bucket in sizes:
        table.add_row(
            format_bytes(bucket.low),
            format_bytes(bucket.high),
            f"{bucket.count:,}",
            format_bytes(bucket.bytes or 0),
            _bar(bucket.count, most),
        )
    return table


def _lifetimes_table(summary: FileSummary) -> Table:
    from workbench.common.units import format_duration

    table = _table(
        "Lifetimes, from allocation to free", "events", "freed", "", "time", "freed", "", left=0
    )
    for place in (2, 5):
        table.columns[place].justify = "left"
    sides = [_cells(summary.lifetimes_in_events, lambda number: f"{number:,}")]
    sides.append(_cells(summary.lifetimes_in_ns, format_duration))
    empty = ("", "", "")
    for place in range(max(len(side) for side in sides)):
        table.add_row(*(cell for side in sides for cell in (side[place : place + 1] or [empty])[0]))
    return table


def _cells(buckets: list[Bucket], show: Any) -> list[tuple[str, str, str]]:
    most = max(bucket.count for bucket in buckets)
    return [
        (f"< {show(bucket.high)}", f"{bucket.count:,}", _bar(bucket.count, most))
        for bucket in buckets
    ]


def _bar(count: int, most: int) -> str:
    return "█" * max(round(10 * count / most), 0) or "▏"


def _files_table(summaries: list[FileSummary]) -> Table:
    from workbench.common.units import format_bytes

    table = _table("Files", "file", "device", "events", "span", "peak live", "complete", left=2)
    for summary in summaries:
        name = summary.path.rsplit("/", 1)[-1]
        peaks = [(plain(device.device), device.peak_bytes) for device in summary.devices]
        for device, peak in peaks or [("none", 0)]:
            table.add_row(
                plain(name),
                device,
                f"{summary.events:,}",
                _span(summary),
                format_bytes(peak),
                "yes" if summary.metadata["complete"] else "[yellow]no[/]",
            )
    return table


def _only_file(trace: Trace) -> TraceFile:
    from workbench.common.errors import UsageError

    if len(trace.files) > 1:
        raise UsageError(
            f"{trace.path}: holds {len(trace.files)} files; --events needs one of them, such as "
            f"{trace.files[0].path}"
        )
    return trace.files[0]


def _parse_range(text: str, rows: int) -> tuple[int, int]:
    from workbench.common.errors import UsageError

    first, colon, last = text.partition(":")
    try:
        start = int(first or 0)
        stop = int(last) if last else rows
    except ValueError:
        start, stop, colon = 0, 0, ""
    if not colon or start < 0 or (last and stop < start):
        raise UsageError(f"--events {text!r} is not a range of events; write for example 0:20")
    stop = min(stop, rows)
    if stop - start > _MOST_ROWS:
        raise UsageError(
            f"--events {text!r} names {stop - start:,} events; ask for at most {_MOST_ROWS:,}, or "
            "read the Parquet file with pandas"
        )
    if start >= rows:
        raise UsageError(f"--events {text!r} is past the end: the trace has {rows:,} events")
    return start, stop


def _print_rows(file: TraceFile, text: str, as_json: bool) -> None:
    start, stop = _parse_range(text, file.rows)
    rows = [row for batch in file.read_rows(start, stop) for row in batch.to_pylist()]
    if as_json:
        print(json.dumps({"path": file.path, "first_event": start, "events": rows}, default=str))
        return
    used = [name for name in file.schema.names if any(row[name] is not None for row in rows)]
    same = {  # not a column each: terminals are narrow
        name: rows[0][name]
        for name in ("device", "stream", "thread", "pool", "step", "phase")
        if all(row[name] == rows[0][name] for row in rows)
    }
    shown = [name for name in used if name not in same]
    table = _table("", "row", *shown, left=0)
    table.box = None
    for place, row in enumerate(rows):
        table.add_row(
            f"{start + place:,}",
            *("" if row[name] is None else plain(str(row[name])) for name in shown),
        )
    console = _console()
    console.print(
        f"{file.path}: events {start:,} to {stop - 1:,}", markup=False, soft_wrap=True, style="bold"
    )
    console.print(table)
    if same:
        console.print("In all of them: " + plain(_joined(**same)), soft_wrap=True)


def plain(text: str) -> str:
    """Text from a file, safe to print: no markup of ours, no commands to the terminal."""
    from rich.markup import escape

    from workbench.common.words import printable

    return escape(printable(text))
