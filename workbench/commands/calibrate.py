"""``wb calibrate``: what the calls of this GPU's driver cost, as a profile."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The profile to write.", metavar="FILE")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What results call it.", show_default="made of the device's name"),
    ] = None,
    capacity: Annotated[
        str | None,
        typer.Option(
            help="Memory to take of the GPU at once, at most, such as 8GiB.",
            metavar="SIZE",
            show_default="what is free",
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(help="Calls of each kind and size.")] = 50,
    force: Annotated[bool, typer.Option(help="Replace the profile if it exists.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the profile instead of tables.")
    ] = False,
    stand_in: Annotated[
        bool,
        typer.Option(hidden=True, help="For tests: also over the stand-in, where there is no GPU."),
    ] = False,
) -> None:
    """Measure what each call of this GPU's driver costs, and by which rules its memory pool works.

    It takes about a minute, needs the GPU for itself, and leaves it as it was. With -o it writes a
    profile, by which wb replay --profile prices the driver calls of a device that is simulated.

    Examples:

      wb calibrate

      wb calibrate -o h200.json

      wb calibrate -o h200.json --name h200 --capacity 16GiB --force
    """
    from workbench.commands._progress import progress_bar
    from workbench.common.outputs import check_output, output_file
    from workbench.common.units import parse_size
    from workbench.common.words import shell_word
    from workbench.replay.calibration import calibrate, pool_table, price_table

    if output is not None:
        check_output(output, force=force)
    with progress_bar() as progress:
        profile = calibrate(
            capacity=None if capacity is None else parse_size(capacity, "--capacity"),
            rounds=repeat,
            name=name,
            stand_in=stand_in,
            progress=lambda done, total: progress("Measuring", done, total),
        )
    text = json.dumps(profile.info, indent=1)
    if output is not None:
        with output_file(output) as part:
            part.write_text(text + "\n", encoding="utf-8")
    if as_json:
        print(text)
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, emoji=False)
    console.print(price_table(profile))
    console.print(pool_table(profile))
    following = "wb calibrate -o profile.json"
    if output is not None:
        following = "wb replay run.parquet -a caching --backend simulated --profile "
        following += shell_word(str(output))
    console.print(f"\nNext: {following}", markup=False, soft_wrap=True)
