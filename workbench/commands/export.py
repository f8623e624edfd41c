"""``wb export``: a trace, or a replayed state, in another tool's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from workbench.commands._progress import Progress
    from workbench.recorders.exporters import Exporter, ReplaySource, TraceSource


def command(
    trace: Annotated[str, typer.Argument(help="A trace, or a URL of one.", metavar="TRACE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="minimalloc, chrome-counters or torch-snapshot.",
            show_default="what the file's suffix says: .csv, .json, .pickle",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Which device's traffic, such as cuda:0.",
            show_default="the busiest; chrome-counters: all",
        ),
    ] = None,
    allocator: Annotated[
        str | None,
        typer.Option(
            "--allocator",
            "-a",
            metavar="caching[:key:value,...]",
            help="torch-snapshot: what to replay against, with settings as in PYTORCH_ALLOC_CONF.",
            show_default="caching",
        ),
    ] = None,
    capacity: Annotated[
        str | None,
        typer.Option(
            help="torch-snapshot: memory of the device.",
            metavar="SIZE",
            show_default="what the trace says, else 80GiB",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="torch-snapshot: the moment: end, peak (of reserved), oom, or an event's number.",
            metavar="end|peak|oom|EVENT",
            show_default="end",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Write a trace in another tool's format.

    [bold]minimalloc[/]: a CSV of lifetimes, for planners of fixed offsets.
    [bold]chrome-counters[/]: live bytes, steps and phases, for Perfetto and chrome://tracing.
    [bold]torch-snapshot[/]: replays the trace against PyTorch's caching allocator and writes the
    memory snapshot that PyTorch would have written, for pytorch.org/memory_viz.

    Examples:

      wb export run.parquet -o lifetimes.csv

      wb export run.parquet -o counters.json

      wb export run.parquet -o expandable.pickle -a caching:expandable_segments:True --at peak
    """
    from workbench.commands._progress import progress_bar
    from workbench.common.outputs import check_output, output_file
    from workbench.common.words import printable, shell_word
    from workbench.recorders.exporters import discover

    exporter = _choose(discover(), to, output)
    replays = {"--allocator": allocator, "--capacity": capacity, "--at": at}
    if exporter.NEEDS != "replay":
        _refuse(exporter, replays)
    check_output(output, force=force, inputs=[trace])
    with progress_bar() as progress:
        source: ReplaySource | TraceSource
        about: dict[str, Any] = {}
        if exporter.NEEDS == "replay":
            source, about = _replayed(trace, device, replays, progress)
        else:
            source = _opened(trace, device)
        with output_file(output) as part:
            written = exporter.write(source, part, lambda done, of: progress("Writing", done, of))
    shown = {"path": str(output), "format": exporter.NAME, **about, **written.facts}
    if as_json:
        print(json.dumps(shown, indent=1))
        return
    typer.echo(printable(f"{output}: {written.summary}"))
    if about.get("out_of_memory"):
        typer.echo(
            f"Out of memory at event {about['event']:,}; {about['events_left']:,} events come after"
        )
    typer.echo(f"Next: {written.next.format(path=shell_word(str(output)))}")


def _choose(exporters: dict[str, Exporter], to: str | None, output: Path) -> Exporter:
    from workbench.common.errors import UsageError

    if to is not None:
        if to not in exporters:
            raise UsageError(f"--to {to!r} is not a format; known are {', '.join(exporters)}")
        return exporters[to]
    found = [one for one in exporters.values() if output.name.lower().endswith(one.SUFFIX)]
    if len(found) != 1:
        known = ", ".join(f"{one.NAME} ({one.SUFFIX})" for one in exporters.values())
        raise UsageError(
            f"{output}: its suffix does not tell the format; add --to with one of {known}"
        )
    return found[0]


def _refuse(exporter: Exporter, replays: dict[str, str | None]) -> None:
    from workbench.common.errors import UsageError

    given = [option for option, value in replays.items() if value is not None]
    if given:
        raise UsageError(
            f"{given[0]} is for formats that replay the trace, and {exporter.NAME} does not; "
            "leave it out"
        )


def _opened(trace: str, device: str | None) -> TraceSource:
    from workbench.recorders.exporters import TraceSource
    from workbench.recorders.trace import open_trace

    files = open_trace(trace).files
    _only_one(trace, [file.path for file in files])
    return TraceSource(files[0], device)


def _only_one(trace: str, paths: list[str]) -> None:
    from workbench.common.errors import UsageError

    if len(paths) > 1:
        raise UsageError(f"{trace} holds {len(paths)} traces; name one of them, such as {paths[0]}")


def _replayed(
    trace: str, device: str | None, options: dict[str, str | None], progress: Progress
) -> tuple[ReplaySource, dict[str, Any]]:
    """The replay that `options` ask for, and what is to be told of it."""
    from workbench.common.errors import UsageError
    from workbench.common.units import parse_size
    from workbench.recorders.exporters import ReplaySource
    from workbench.recorders.trace import open_trace
    from workbench.replay import _engine
    from workbench.replay.alloc_conf import RULES, RecordedSettings
    from workbench.replay.cell import choose_capacity, choose_device, parse_allocator
    from workbench.replay.events import load_trace
    from workbench.replay.journal import replay_history

    text = options["--allocator"] or "caching"
    spec = parse_allocator(text, [info["name"] for info in _engine.allocators()])
    if spec.name != "caching":
        raise UsageError(
            f"--allocator {text}: a snapshot of PyTorch's is of caching; write caching"
        )
    wanted = options["--capacity"]
    size = None if wanted is None else parse_size(wanted, "--capacity")
    at = _moment(options["--at"] or "end")
    _only_one(trace, [file.path for file in open_trace(trace).files])
    (loaded,) = load_trace(trace, lambda done, of: progress("Reading", done, of))
    chosen = choose_device("device", loaded.bytes_by_device, device)
    limit = choose_capacity("device", chosen, loaded.metadata["devices"].get(chosen), size)
    settings = spec.settings
    if RULES not in spec.settings_by_key():
        # Which rules hold is a matter of PyTorch's release, not of what is tried out.
        settings = RecordedSettings.of(loaded.metadata).replayed(settings)
    replayed = replay_history(
        loaded,
        chosen,
        settings,
        capacity=limit.bytes,
        at=at,
        progress=lambda done, of: progress("Replaying", done, of),
    )
    return ReplaySource(replayed.history, replayed.origins), {
        "allocator": "caching",
        "settings": settings,
        "capacity": limit.bytes,
        "event": replayed.event,
        "out_of_memory": replayed.out_of_memory,
        "events_left": replayed.unread,
    }


def _moment(at: str) -> str | int:
    from workbench.common.errors import UsageError

    if at in ("end", "peak", "oom"):
        return at
    if not (at.isdecimal() and at.isascii() and len(at) < 19):
        raise UsageError(f"--at {at!r} is not a moment; write end, peak, oom or an event's number")
    return int(at)
