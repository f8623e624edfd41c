"""``wb tune``: search the settings of PyTorch's caching allocator for a recorded trace."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from workbench.replay.tuning import Tuning


def command(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A recorded trace.")],
    check: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACE",
            help="Another run's trace, on which the best must be better too; repeat it for more.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Which device's traffic, such as cuda:0.")
    ] = None,
    capacity: Annotated[
        str | None, typer.Option(help="Memory of the device, such as 80GiB.", metavar="SIZE")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Try about 40 usual settings, no search.")] = False,
    trials: Annotated[int, typer.Option(help="How many settings to try.")] = 200,
    objective: Annotated[
        str,
        typer.Option(
            help="What to make small: peak_reserved, retries, device_calls, or a sum such as "
            "0.9*peak_reserved+0.1*device_calls, each as a share of the default's."
        ),
    ] = "peak_reserved",
    completion: Annotated[
        str,
        typer.Option(help="When work on a stream completes: recorded, immediate, never, delay:N."),
    ] = "recorded",
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A setting not to try; repeat it for several."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search; equal ones give equal answers.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds one replay may take.")] = 600.0,
    top: Annotated[int, typer.Option(help="Rows of the Pareto front.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Find the PYTORCH_ALLOC_CONF that holds a trace's traffic in the least memory.

    Replays the traffic on a simulated device under many settings, and says what to export, or that
    no setting helps, with the evidence.

    Examples:

      wb tune run.parquet --quick

      wb tune run.parquet --check other_run.parquet

      wb tune run.parquet --objective 0.9*peak_reserved+0.1*device_calls --json
    """
    from workbench.commands._progress import progress_bar
    from workbench.common.units import parse_size
    from workbench.replay.tune import TuneOptions, tune_trace

    options = TuneOptions(
        check=check or [],
        device=device,
        capacity=None if capacity is None else parse_size(capacity, "--capacity"),
        quick=quick,
        trials=trials,
        objective=objective,
        completion=completion,
        without=without or [],
        seed=seed,
        timeout=timeout,
    )
    with progress_bar() as progress:
        tuning = tune_trace(trace, options, progress)
    if as_json:
        print(json.dumps(tuning.document(), indent=1))
    else:
        _print(tuning, trace, top)


def _print(tuning: Tuning, trace: str, top: int) -> None:
    from rich.console import Console

    from workbench.common.words import shell_line
    from workbench.replay.tune_summary import follow_up, parts

    # A pipe has no width: take one that holds the tables unbroken.
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False, emoji=False)
    for part in parts(tuning, top):
        # Lines are not broken by us: one of them is to be copied.
        console.print(part, markup=not isinstance(part, str), soft_wrap=isinstance(part, str))
    console.print(f"\nNext: {shell_line(follow_up(tuning, trace))}", markup=False, soft_wrap=True)
