"""``wb fit``: the smallest device that holds a recorded trace, for each allocator."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from workbench.replay.fitting import Fits


def command(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A recorded trace.")],
    allocator: Annotated[
        list[str] | None,
        typer.Option(
            "--allocator",
            "-a",
            metavar="NAME[:key:value,...]",
            help="What is to hold it; repeat it for several. [bold]all[/]: everything that can run "
            "here. Settings as in PYTORCH_ALLOC_CONF; [bold]caching:env[/]: those in it.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Which device's traffic, such as cpu or cuda:0.")
    ] = None,
    completion: Annotated[
        str,
        typer.Option(help="When work on a stream completes: recorded, immediate, never, delay:N."),
    ] = "recorded",
    timeout: Annotated[float, typer.Option(help="Seconds one replay may take.")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Find the smallest device on which a trace's traffic completes, for each allocator.

    Bisects the capacity of a simulated device, exact to the 2 MiB in which devices hand out memory.

    Examples:

      wb fit run.parquet --allocator caching

      wb fit run.parquet -a caching -a caching:expandable_segments:True --device cuda:0

      wb fit run.parquet --allocator all --json
    """
    from workbench.commands._progress import progress_bar
    from workbench.replay.fit import FitOptions, fit_trace

    options = FitOptions(device=device, completion=completion, timeout=timeout)
    with progress_bar() as progress:
        fits = fit_trace(trace, allocator or [], options, progress)
    if as_json:
        print(json.dumps(fits.document(), indent=1))
    else:
        _print(fits, trace)
    named = {text for text in allocator or [] if text != "all"}
    if named and any(fit.status not in ("fits", "never") for fit in fits.fits):
        raise typer.Exit(1)


def _print(fits: Fits, trace: str) -> None:
    from rich.console import Console

    from workbench.common.words import shell_line
    from workbench.replay.fit_summary import parts

    # A pipe has no width: take one that holds the table unbroken.
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False, emoji=False)
    for part in parts(fits):
        console.print(part, markup=not isinstance(part, str), soft_wrap=isinstance(part, str))
    holding = [fit for fit in fits.fits if fit.capacity is not None]
    if not holding:
        return
    least = min(holding, key=lambda fit: fit.capacity or 0)
    allocator = ":".join(part for part in (least.replayed.name, least.replayed.settings) if part)
    words = ["wb", "replay", trace, "-a", allocator, "--capacity"]
    words.append(f"{(least.capacity or 0) // 2**20}MiB")
    console.print(f"\nNext: {shell_line(words)}", markup=False, soft_wrap=True)
