"""``wb recover``: save a recording that was cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(help="The spool folder, NAME.parquet.spool.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The trace; by default what the recording named."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an existing trace.")] = False,
) -> None:
    """Turn what a recording left behind into a trace.

    Needed when `wb record` itself was killed, the power went, or the disk was too full for the
    trace. The folder is removed when the trace is written.

    [bold]Example[/bold]

        wb recover run.parquet.spool
    """
    from workbench.recorders.recovery import recover

    recover(folder, output, force=force)
