"""``wb doctor``: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check this machine: packages, recording, replaying, and what makes timings unsteady.

    The exit code is 1 where something that the workbench needs is broken.

    Examples:

      wb doctor

      wb doctor --json
    """
    from workbench.commands import _health

    findings = _health.examine()
    broken = any(finding.state == "broken" for finding in findings)
    if as_json:
        print(
            json.dumps({"healthy": not broken, "findings": [vars(f) for f in findings]}, indent=1)
        )
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table()
        for title in ("", "part", "found", "meaning"):
            table.add_column(title, overflow="fold")
        colours = {"ok": "green", "note": "yellow", "broken": "red"}
        for finding in findings:
            table.add_row(
                f"[{colours[finding.state]}]{finding.state}[/]",
                finding.part,
                escape(finding.found),
                escape(finding.meaning),
            )
        console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, emoji=False)
        console.print(table)
        console.print("\nNext: wb record -o run.parquet train.py", markup=False)
    if broken:
        raise typer.Exit(1)
