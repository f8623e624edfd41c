"""``wb allocators``: what can be replayed against, and what of it can run here."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the allocators: what each models, its settings, and whether it can run here.

    Examples:

      wb allocators

      wb allocators --json
    """
    from workbench.replay.allocators import known_allocators

    allocators = list(known_allocators().values())
    if as_json:
        print(json.dumps({"allocators": allocators}, indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for title in ("name", "what it models", "memory", "settings", "runs here"):
        table.add_column(title, overflow="fold")
    for allocator in allocators:
        settings = "\n".join(f"{key}: {text}" for key, text in allocator["settings"].items())
        table.add_row(
            escape(allocator["name"]),
            escape(allocator["summary"]),
            allocator["kind"],
            escape(settings) or "none",
            "yes" if allocator["available"] else escape(f"no: {allocator['reason']}"),
        )
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, emoji=False)
    console.print(table)
    console.print("\nNext: wb replay run.parquet --allocator all", markup=False)
