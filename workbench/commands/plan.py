"""``wb plan``: a static plan of a trace's memory, and whether another trace keeps to it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from workbench.commands._progress import Progress
    from workbench.replay import _engine
    from workbench.replay.events import LoadedTrace
    from workbench.replay.plans import Comparison, Origin


def command(
    trace: Annotated[
        str, typer.Argument(metavar="TRACE", help="A recorded trace; with --check also a plan.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The plan to write.", metavar="FILE")
    ] = None,
    planner: Annotated[
        str, typer.Option(help="best, greedy, first-fit-by-size, skyline or squeaky-wheel.")
    ] = "best",
    alignment: Annotated[
        int, typer.Option(help="Bytes that every block starts at a multiple of.")
    ] = 64,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="A:B", help="Plan the steps from A up to, not including, B; else all events."
        ),
    ] = None,
    thread: Annotated[
        int | None,
        typer.Option(help="Whose allocations.", show_default="the thread that makes most"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Time for planners that can give up; the first plan is waited for")
    ] = 10.0,
    device: Annotated[
        str | None,
        typer.Option(help="Which device's traffic.", show_default="cpu, else the busiest"),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Another trace: does it keep to the plan?"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Plan where every allocation of a trace goes, in one arena as low as can be found.

    The plan is checked by code of its own before it is written. What is not freed within the
    planned events has no place in it. With --check, the exit code is 1 where the other trace
    differs.

    Examples:

      wb plan run.parquet -o plan.parquet

      wb plan run.parquet -o step.parquet --steps 2:3

      wb plan run.parquet --planner greedy --json

      wb plan plan.parquet --check other_run.parquet
    """
    from workbench.commands._progress import progress_bar
    from workbench.common.errors import UsageError
    from workbench.common.outputs import check_output
    from workbench.replay.plans import compare, is_plan, plan_facts, traffic_to_plan, write_plan

    if output is not None:
        check_output(output, force=force, inputs=[trace, check or trace])
    given = {"planner": planner, "alignment": alignment, "seconds": seconds}
    settings = [f"{key}:{value}" for key, value in given.items()]
    settings += [f"steps:{steps}"] if steps is not None else []
    settings += [f"thread:{thread}"] if thread is not None else []
    with progress_bar() as progress:
        if check is not None and Path(trace).is_file() and is_plan(trace):
            if output is not None or steps is not None or thread is not None:
                raise UsageError(
                    f"{trace} is a plan already; leave out -o, --steps and --thread, or name the "
                    "trace it was made of"
                )
            from workbench.replay.plans import read_plan

            plan, origin = read_plan(trace)
            file: str | None = trace
        else:
            plan, origin = _planned(trace, device, ",".join(settings), progress)
            file = None if output is None else str(output)
        if output is not None:
            write_plan(plan, origin, output)
        compared = None
        if check is not None:
            other = _loaded(check, progress)
            compared = compare(plan, traffic_to_plan(other, device or origin.device)[0])
    facts = {
        "path": file,
        **asdict(origin),
        **plan_facts(plan),
    }
    if as_json:
        checked = compared and {"trace": check, "matches": compared.matches, **asdict(compared)}
        print(json.dumps({**facts, "check": checked}, indent=1))
    else:
        _print(facts, compared, trace, check)
    if compared is not None and not compared.matches:
        raise typer.Exit(1)


def _loaded(trace: str, progress: Progress) -> LoadedTrace:
    from workbench.common.errors import UsageError
    from workbench.replay.events import load_trace

    loaded = load_trace(trace, lambda done, of: progress("Reading", done, of))
    if len(loaded) > 1:
        raise UsageError(
            f"{trace} holds {len(loaded)} traces; name one of them, such as {loaded[0].path}"
        )
    return loaded[0]


def _planned(
    trace: str, device: str | None, settings: str, progress: Progress
) -> tuple[_engine.Plan, Origin]:
    from workbench.replay.plans import plan_of_traffic, traffic_to_plan

    traffic, origin = traffic_to_plan(_loaded(trace, progress), device)
    progress("Planning", 0, 1)
    plan = plan_of_traffic(traffic, settings)
    progress("Planning", 1, 1)
    return plan, origin


def _print(
    facts: dict[str, Any], compared: Comparison | None, trace: str, check: str | None
) -> None:
    from rich.console import Console

    from workbench.common.words import printable, shell_line

    # A pipe has no width: take one that holds the lines unbroken.
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False, emoji=False)
    for line in _lines(facts):
        console.print(printable(line), markup=False, soft_wrap=True)
    if compared is not None:
        console.print()
        console.print(printable(_verdict(compared, str(check))), markup=False, soft_wrap=True)
    words = _next_command(facts, compared, trace, check)
    console.print(f"\nNext: {shell_line(words)}", markup=False, soft_wrap=True)


def _next_command(
    facts: dict[str, Any], compared: Comparison | None, trace: str, check: str | None
) -> list[str]:
    from workbench.replay.cell import quoted

    if compared is None or check is None:
        allocator = "plan"
        if facts["path"] is not None:
            allocator = f"plan:file:{quoted(facts['path'])}"
            allocator += ",rearm:step,on_mismatch:fallback" if facts["steps"] else ""
        return ["wb", "replay", trace, "-a", allocator, "-a", "caching"]
    if facts["path"] is None:
        return ["wb", "plan", trace, "-o", "plan.parquet"]
    allocator = f"plan:file:{quoted(facts['path'])}"
    allocator += "" if compared.matches else ",on_mismatch:fallback"
    return ["wb", "replay", check, "-a", allocator]


def _lines(facts: dict[str, Any]) -> list[str]:
    from workbench.common.units import format_bytes

    where = facts["path"] or "plan"
    steps = facts["steps"]
    made_of = f"steps {steps[0]} to {steps[1] - 1}" if steps else "all events"
    ratio = "" if facts["ratio"] is None else f", {facts['ratio']:.4f} times the lower bound"
    lines = [
        f"{where}: {facts['allocations']:,} allocations of thread {facts['thread']}, {made_of}",
        f"height       {format_bytes(facts['height_bytes'])}{ratio}",
        f"lower bound  {format_bytes(facts['lower_bound_bytes'])}, the peak of what is planned",
        f"planner      {facts['planner'] or '-'}, in {facts['seconds']:.2g} s",
    ]
    if facts["unmanaged"]:
        lines.append(
            f"unmanaged    {facts['unmanaged']:,} allocations of "
            f"{format_bytes(facts['unmanaged_bytes'])}, not freed within: from raw memory"
        )
    else:
        lines.append("unmanaged    none: everything is freed within")
    return lines


def _verdict(compared: Comparison, check: str) -> str:
    if compared.matches:
        return f"{check} keeps to the plan: {compared.found:,} allocations, all as planned"
    both = min(compared.planned, compared.found)
    text = (
        f"{check} does not keep to the plan: {compared.problem}; of {both:,} ids "
        f"{compared.sizes_differ:,} have another size and {compared.lifetimes_differ:,} another "
        "lifetime"
    )
    if compared.found < compared.planned:
        missing = compared.planned - compared.found
        text += f"; {missing:,} of the plan's {compared.planned:,} ids are missing"
    elif compared.found > compared.planned:
        text += f"; {compared.found - compared.planned:,} allocations more than planned follow"
    return text
