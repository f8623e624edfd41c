"""``wb why``: what ate the memory, and what would help."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from workbench.replay.why import Why


def command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A memory snapshot of PyTorch, a trace, or what wb import reads."
        ),
    ],
    device: Annotated[
        str | None, typer.Option(help="Whose memory, such as cuda:0; by default where it ran out.")
    ] = None,
    capacity: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory that PyTorch could have, such as 70GiB."),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of the whole device, such as 80GiB."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the answer as a page.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the page.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say why a program ran out of memory, where its memory was, and which settings would help.

    Of a snapshot the recorded state is shown, reproduced by replaying its history; other settings
    are replayed on a simulated device. Without an out-of-memory in the file, the peak is explained.

    Examples:

        wb why snapshot.pickle

        wb why snapshot.pickle --device-memory 80GiB --html why.html

        wb why run.parquet --capacity 24GiB --json
    """
    from workbench.commands._progress import progress_bar
    from workbench.common.outputs import check_output
    from workbench.common.units import parse_size
    from workbench.importing import explain

    if html is not None:
        check_output(html, force=force, inputs=[file], option="--html")
    sizes = [
        None if text is None else parse_size(text, name)
        for text, name in ((capacity, "--capacity"), (device_memory, "--device-memory"))
    ]
    with progress_bar() as progress:
        why = explain(
            file, device=device, capacity=sizes[0], device_memory=sizes[1], progress=progress
        )
    if html is not None:
        _write_page(why, html)
    if as_json:
        from workbench.replay.why_summary import document

        print(json.dumps(document(why), indent=1))
    else:
        _print(why, file, html)


def _write_page(why: Why, html: Path) -> None:
    from workbench.common.outputs import output_file
    from workbench.replay import why_summary

    text = why_summary.html(why)
    with output_file(html, "--html") as part:
        part.write_text(text, encoding="utf-8")


def _print(why: Why, file: str, html: Path | None) -> None:
    from rich.console import Console

    from workbench.common.words import printable, shell_word
    from workbench.replay.why_summary import parts

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, emoji=False)
    for part in parts(why):
        console.print(part, markup=False, soft_wrap=isinstance(part, str))
    if html is not None:
        console.print(printable(f"The page: {html}"), markup=False, soft_wrap=True)
    name = shell_word(file)
    trace = name if file.endswith(".parquet") else "run.parquet"
    first = "" if trace == name else f"wb import {name} -o run.parquet && "
    console.print(f"Next: {first}wb tune {trace}", markup=False, soft_wrap=True)
