"""``wb record``: run a program and record its allocations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

# Options end at the script's name: what follows is the program's.
CONTEXT_SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": False}


def command(
    program: Annotated[
        list[str] | None,
        typer.Argument(metavar="SCRIPT [ARGS]", help="The program and its arguments."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The trace; by default SCRIPT.parquet here."),
    ] = None,
    module: Annotated[
        bool, typer.Option("-m", help="SCRIPT is a module, as in [bold]python -m[/bold].")
    ] = False,
    execute: Annotated[
        bool, typer.Option("--exec", help="SCRIPT is any command, such as torchrun or a shell.")
    ] = False,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="Say what asked for memory: op, module. May be repeated."),
    ] = None,
    stacks: Annotated[bool, typer.Option(help="Record Python stacks: slower.")] = False,
    children: Annotated[bool, typer.Option(help="Record forked children, too.")] = False,
    force: Annotated[bool, typer.Option(help="Replace an existing trace.")] = False,
    spool_folder: Annotated[
        Path | None,
        typer.Option("--spool", help="Folder for the spool; by default beside the trace."),
    ] = None,
    spool_limit: Annotated[
        str | None,
        typer.Option(help="Stop recording at this size of spool; by default half the free disk."),
    ] = None,
    ring: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Keep the last part of the run: about this much spool for each process.",
        ),
    ] = None,
    convert: Annotated[
        str,
        typer.Option(
            help="When to turn the spool into Parquet: at the [bold]end[/bold], or "
            "[bold]live[/bold], which needs less disk."
        ),
    ] = "end",
) -> None:
    """Run a program and record every allocation of tensors it makes.

    The program runs as it would without: its output, signals and exit code are its own.

    [bold]Examples[/bold]

        wb record train.py --epochs 1

        wb record -o run.parquet --scope op -m package.train --lr 3e-4

        wb record --ring 1GiB serve.py

        wb record -o run.parquet --exec torchrun --nproc-per-node 2 train.py
    """
    from workbench.common.errors import UsageError
    from workbench.common.units import parse_size
    from workbench.common.words import printable
    from workbench.recorders import recording
    from workbench.recorders.companion import companion
    from workbench.recorders.recovery import NoTraceError, convert_and_report

    if not program:
        raise UsageError("no program to record; write for example `wb record train.py`")
    if module and execute:
        raise UsageError("-m and --exec exclude each other; keep one of them")
    if convert not in ("end", "live"):
        raise UsageError(f"--convert {convert!r} is unknown; use end or live")
    if ring is not None and convert == "live":
        raise UsageError("--ring drops what --convert live would keep; use one of them")
    name = program[0]
    if not module and not execute and not Path(name).exists():
        raise UsageError(f"the script {name} does not exist; check the name, or see --exec and -m")
    options = recording.RecordOptions(
        output=output or Path(f"{Path(name).stem if not module else name}.parquet"),
        scopes=recording.check_scopes(scope or []),
        stacks=stacks,
        children=children,
        force=force,
        spool=spool_folder,
        spool_limit=None if spool_limit is None else parse_size(spool_limit, "--spool-limit"),
        ring=None if ring is None else recording.check_ring(parse_size(ring, "--ring")),
        converts_live=convert == "live",
    )
    run = program if execute else [sys.executable, *(["-m"] if module else []), *program]
    spool = recording.open_spool(options, run)
    try:
        # A foreign command may bring its own torch: the agent builds for that one when it starts.
        if not execute:
            recording.build_parts(options)
        with companion(spool):
            process_id, ended = recording.run_program(run, recording.environment(spool))
    except BaseException:
        spool.remove()
        raise
    try:
        convert_and_report(spool.folder, options.output, process_id, ended)
    except NoTraceError as error:
        spool.remove()
        print(f"wb: {printable(str(error))}", file=sys.stderr)
        sys.exit(ended.exit_code or error.exit_code)
    spool.remove()
    sys.exit(ended.exit_code)
