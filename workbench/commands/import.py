"""``wb import``: a file of another tool as a trace."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from workbench.importing import ImportReport


def _show_kinds(wanted: bool) -> None:
    """Print the list of kinds and end."""
    if not wanted:
        return
    from workbench.recorders.importers import discover

    for name, importer in discover().items():
        typer.echo(f"{name:16} {importer.SUMMARY}")
    raise typer.Exit


def command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What another tool wrote; gzip is unpacked.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The trace; by default FILE's name, .parquet, here."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What FILE is; by default its content says."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an existing trace.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    kinds: Annotated[
        bool,
        typer.Option("--kinds", callback=_show_kinds, is_eager=True, help="List the kinds."),
    ] = False,
) -> None:
    """Turn what another tool recorded into a trace: no GPU and no second run are needed.

    The kinds are PyTorch's memory snapshots and profiler traces, logs of RMM, problems of
    MiniMalloc, and what other packages add; --kinds lists them.

    Examples:

        wb import profile.json.gz -o run.parquet

        wb import rmm_log.dev0.csv -o run.parquet

        wb import snapshot.pickle -o run.parquet --force

        wb import buffers.csv --kind minimalloc --json
    """
    from workbench.commands._progress import progress_bar
    from workbench.importing import import_file

    target = output or Path(f"{file.name.split('.')[0] or 'imported'}.parquet")
    with progress_bar() as progress:
        report = import_file(file, target, kind=kind, force=force, progress=progress)
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        _print(report)


def _print(report: ImportReport) -> None:
    from rich.console import Console

    from workbench.commands._imported import check_lines, note_lines
    from workbench.commands.info import plain, warnings
    from workbench.common.units import format_bytes
    from workbench.common.words import shell_word

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False, emoji=False)
    summary = report.summary
    lines = [f"{report.file}: {summary.events:,} events, read as {report.kind}"]
    lines += [
        f"{device.device}: {device.allocs:,} allocations, peak live "
        f"{format_bytes(device.peak_bytes)} at event {device.peak_event:,}"
        for device in summary.devices
    ]
    lines += note_lines(report.notes) + check_lines(report.checks)
    lines += [f"Warning: {warning}" for warning in warnings(summary)]
    lines += [f"Next: wb info {shell_word(str(report.output))}"]
    for line in lines:
        console.print(plain(line), soft_wrap=True)
