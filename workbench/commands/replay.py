"""``wb replay``: measure allocators on a recorded trace."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from workbench.replay.runner import Session


def command(
    traces: Annotated[list[str], typer.Argument(metavar="TRACE...", help="Recorded traces.")],
    allocator: Annotated[
        list[str] | None,
        typer.Option(
            "--allocator",
            "-a",
            metavar="NAME[:key:value,...]",
            help="What to measure; repeat it for several. [bold]all[/]: everything that can run "
            "here. Settings as in PYTORCH_ALLOC_CONF; [bold]caching:env[/]: those in it.",
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Where memory comes from: host, simulated.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Which device's traffic, such as cpu or cuda:0.")
    ] = None,
    capacity: Annotated[
        str | None, typer.Option(help="Memory of the device, such as 8GiB.", metavar="SIZE")
    ] = None,
    completion: Annotated[
        str,
        typer.Option(help="When work on a stream completes: recorded, immediate, never, delay:N."),
    ] = "recorded",
    after_oom: Annotated[
        str, typer.Option(help="Out of memory: stop, or continue without what was refused.")
    ] = "stop",
    order: Annotated[
        str,
        typer.Option(
            help="Recorded threads: global: one thread makes all calls as recorded; handoff: as "
            "many threads, which wait where a block comes from another; free: without waiting."
        ),
    ] = "global",
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="What driver calls cost, as wb calibrate measured it: prices those of the backend "
            "simulated, and gives the model of the driver's pool its rules.",
        ),
    ] = None,
    repeat: Annotated[
        int | None,
        typer.Option(
            help="Timed processes for each cell.",
            show_default="10, and at least 3 for a cell that takes long",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds a process may take.")] = 600.0,
    force: Annotated[bool, typer.Option(help="Replace what is in the way.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "results"
    ),
    html: Annotated[Path | None, typer.Option(help="Also write the comparison page.")] = None,
    stats: Annotated[
        str | None,
        typer.Option(
            metavar="torch",
            help="Also print each cell's statistics under the names of torch.cuda.memory_stats.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Replay recorded traces against allocators and measure memory and latency.

    Every run is a process of its own; one that crashes or hangs is a row that says so. Out of
    memory is a result.

    Examples:

      wb replay run.parquet --allocator all

      wb replay run.parquet --allocator direct --allocator caching --capacity 8GiB -o results

      wb replay run.parquet -a caching -a caching:expandable_segments:True --device cuda:0

      wb replay run.parquet --allocator caching:env --stats torch

      wb replay run.parquet --allocator all --order handoff

      wb replay run.parquet -a caching -a async --backend simulated --profile h100.json

      wb replay run.parquet --allocator caching --repeat 20 --json
    """
    from workbench.commands._progress import progress_bar
    from workbench.common.errors import RunError, UsageError
    from workbench.common.outputs import check_output
    from workbench.common.units import parse_size
    from workbench.replay.job import Options
    from workbench.replay.runner import replay_traces

    if html is not None:
        check_output(html, force=True, inputs=traces, option="--html")
    if stats not in (None, "torch"):
        raise UsageError(f"--stats {stats!r} is not known; write --stats torch")
    options = Options(
        device=device,
        backend=backend,
        capacity=None if capacity is None else parse_size(capacity, "--capacity"),
        completion=completion,
        after_oom=after_oom,
        order=order,
        profile=profile,
        repeat=repeat,
        timeout=timeout,
        force=force,
        command=shlex.join(["wb", *sys.argv[1:]]),
    )
    with progress_bar() as progress:
        session = replay_traces(traces, allocator or [], output, options, progress)
    if html is not None and session.results:
        _write_page(session, html, force)
    if as_json:
        print(json.dumps(_document(session), indent=1))
    else:
        _print(session, output, html, torch_statistics=stats == "torch")
    if session.errors:
        raise RunError("; ".join(session.errors))
    if session.failed:
        raise typer.Exit(1)


def _document(session: Session) -> dict[str, object]:
    return {
        "cells": [result.info for result in session.results],
        "left_out": [{"allocator": name, "reason": reason} for name, reason in session.left_out],
        "errors": session.errors,
    }


def _print(session: Session, output: Path, html: Path | None, *, torch_statistics: bool) -> None:
    from rich.console import Console

    from workbench.common.words import printable, shell_word
    from workbench.replay.notes import notes
    from workbench.replay.summary import (
        memory_table,
        speed_table,
        thread_table,
        torch_statistics_table,
        waterfall_table,
    )
    from workbench.replay.summary_rows import rows

    # A pipe has no width: take one that holds the tables unbroken.
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, emoji=False)
    if session.results:
        cells = rows(session.results)
        tables = (memory_table(cells), waterfall_table(cells), speed_table(cells))
        for table in (*tables, thread_table(session.results)):
            if table is not None:
                console.print(table)
    for result in session.results if torch_statistics else ():
        console.print(torch_statistics_table(result), markup=False)
    for note in notes(session.results, session.left_out):
        console.print(note, markup=False)
    if html is not None:
        console.print("\n" + printable(f"The page: {html}"), markup=False, soft_wrap=True)
    else:
        console.print(
            f"\nNext: wb report {shell_word(str(output))} -o report.html",
            markup=False,
            soft_wrap=True,
        )


def _write_page(session: Session, html: Path, force: bool) -> None:
    from workbench.commands import report

    # What it says is for people; standard output may be promised to a JSON document.
    with contextlib.redirect_stdout(sys.stderr):
        report.command([result.folder for result in session.results], html, force)
