"""``wb report``: the comparison page."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated

import typer


def command(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that wb replay wrote: of one cell, or of several.", metavar="RESULT..."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page to write; an older page is replaced.")
    ] = Path("report.html"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is not a page of ours.")
    ] = False,
) -> None:
    """Compare results on one page that opens offline in any browser.

    Everything is inside the file: the table, the charts and what draws them.

    Examples:

        wb report results/ -o report.html

        wb report before/ after/ -o comparison.html
    """
    from workbench.common.errors import RunError, UsageError
    from workbench.common.files import replaced_file
    from workbench.replay.results import load_results
    from workbench.reports.page import GENERATOR, page

    if output.is_dir():
        raise UsageError(f"{output} is a folder; name a file with -o, such as {output}/report.html")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent} does not exist; make it, or name another file with -o")
    if not os.access(output.parent, os.W_OK):
        raise UsageError(f"{output.parent} cannot be written to; name another file with -o")
    if output.exists() and not force:
        with output.open("rb") as file:
            if GENERATOR.encode() not in file.read(1000):
                raise UsageError(
                    f"{output} exists and is not a page of this workbench; replace it with --force "
                    "or name another file with -o"
                )
    text = page(load_results(results))
    try:
        with replaced_file(output) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        problem = f"cannot write {output} ({os.strerror(error.errno or 0)})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise RunError(
                f"{problem}; nothing half-written was left: make room, or name another file with -o"
            ) from None
        raise UsageError(f"{problem}; name another file with -o") from None
    typer.echo(f"{output}: {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
