"""``wb report``: the comparison page."""

from __future__ import annotations

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
    from workbench.common.errors import UsageError
    from workbench.common.outputs import check_output, output_file
    from workbench.common.words import printable
    from workbench.replay.results import load_results
    from workbench.reports.page import GENERATOR, page

    check_output(output, force=True, inputs=results)
    if output.exists() and not force:
        with output.open("rb") as file:
            if GENERATOR.encode() not in file.read(1000):
                raise UsageError(
                    f"{output} exists and is not a page of this workbench; replace it with --force "
                    "or name another file with -o"
                )
    text = page(load_results(results))
    with output_file(output) as part:
        part.write_text(text, encoding="utf-8")
    typer.echo(f"{printable(str(output))}: {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
