"""What a person reads first of a replay: one row for each cell, as a table, a frame or HTML."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from workbench.common.errors import UsageError
from workbench.common.units import format_bytes, format_duration
from workbench.replay.notes import notes
from workbench.replay.result_fields import WATERFALL
from workbench.replay.results import CellResult
from workbench.replay.summary_rows import (
    KINDS,
    QUANTILES,
    STATES,
    grows_unreported,
    named,
    row_of,
    rows,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

    from workbench.replay.snapshot import Snapshot


def _share(value: float | None, otherwise: str = "-") -> str:
    return otherwise if value is None else f"{value:.1%}"


def _bytes(value: int | None, otherwise: str = "-") -> str:
    return otherwise if value is None else format_bytes(value)


def _driver_time(row: Mapping[str, Any]) -> str:
    if row["driver_ns"] is None:
        return "not priced"
    return format_duration(row["driver_ns"]) + (" (model)" if row["driver_time_is_model"] else "")


def _otherwise(row: Mapping[str, Any]) -> str:
    """What stands for a number that is not there: not told by the allocator, or not measured."""
    return "-" if row["peak_requested_bytes"] is None else "not reported"


def _name(row: Mapping[str, Any], several_traces: bool) -> str:
    marks = [(" †", row["latency_source"] == "reference"), (" *", row["as_if"])]
    name = row["allocator"] + "".join(mark for mark, holds in marks if holds)
    return named(name, row["trace"], several_traces)


def memory_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    """Peak memory, what of it was unused or added by rounding, and how the replay ended."""
    from rich.table import Table

    table = Table(title="Memory", title_justify="left")
    table.add_column("allocator", overflow="fold")
    table.add_column("backend")
    for title in ("peak live requested", "peak allocated", "peak reserved", "unused", "rounding"):
        table.add_column(title, justify="right")
    table.add_column("device calls", justify="right")
    priced = any(row["driver_ns"] is not None for row in cells)
    if priced:
        table.add_column("driver time", justify="right")
    growth = any(grows_unreported(row) for row in cells)
    if growth:
        table.add_column("resident growth", justify="right")
    table.add_column("outcome", overflow="fold")
    several = len({row["trace"] for row in cells}) > 1
    for row in cells:
        calls, unknown = row["device_calls"], _otherwise(row)
        table.add_row(
            _name(row, several),
            row["backend"],
            _bytes(row["peak_live_requested_bytes"]),
            _bytes(row["peak_allocated_bytes"], unknown),
            _bytes(row["peak_reserved_bytes"], unknown),
            _share(row["unused_share"], "-" if row["peak_reserved_bytes"] == 0 else unknown),
            _share(row["rounding_share"], unknown),
            unknown if calls is None else f"{calls:,}",
            *([_driver_time(row)] if priced else []),
            *([_bytes(row["resident_growth_bytes"])] if growth else []),
            row["outcome"].replace("_", " "),
        )
    return table


def waterfall_table(cells: Sequence[Mapping[str, Any]]) -> Table | None:
    """Where the reserved bytes are at their peak; the parts of a row add up to its first number.

    Without the cells that report no parts; None where none does.
    """
    from rich.table import Table

    table = Table(title="Peak of reserved, part by part", title_justify="left")
    table.add_column("allocator", overflow="fold")
    table.add_column("peak reserved", justify="right")
    for part in WATERFALL:
        table.add_column(part.replace("_", " "), justify="right")
    several = len({row["trace"] for row in cells}) > 1
    for row in cells:
        if all(row[f"waterfall_{part}_bytes"] is None for part in WATERFALL):
            continue
        table.add_row(
            _name(row, several),
            _bytes(row["peak_reserved_bytes"]),
            *(_bytes(row[f"waterfall_{part}_bytes"]) for part in WATERFALL),
        )
    return table if table.row_count else None


def torch_statistics_table(result: CellResult) -> Table | str:
    """`CellResult.torch_statistics` as a table, or one sentence where there are none."""
    from rich.table import Table

    label = result.info["label"]
    if not result.torch_statistics:
        return f"torch.cuda.memory_stats of {label}: not reported."
    table = Table(title=f"torch.cuda.memory_stats of {label}", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("number", justify="right")
    table.add_column("size", justify="right")
    for name, number in sorted(result.torch_statistics.items()):
        is_size = "bytes" in name or (name == "max_split_size" and number >= 0)
        table.add_row(name, f"{number:,}", format_bytes(number) if is_size else "")
    return table


def speed_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    """Latency of single calls and throughput; cold and steady apart."""
    from rich.table import Table

    sources = sorted({row["latency_source"] for row in cells})
    table = Table(title=f"Latency of single calls: {', '.join(sources)}", title_justify="left")
    table.add_column("allocator", overflow="fold")
    table.add_column("state")
    table.add_column("alloc p50 / p99 / max", justify="right")
    table.add_column("free p50 / p99 / max", justify="right")
    table.add_column("events per second", justify="right")
    several = len({row["trace"] for row in cells}) > 1
    for row in cells:
        for state in STATES:
            times = [
                " / ".join(
                    "-" if value is None else format_duration(value)
                    for value in (row[f"{state}_{kind}_{quantile}_ns"] for quantile in QUANTILES)
                )
                for kind in KINDS
            ]
            rate = row[f"{state}_events_per_s"]
            table.add_row(
                _name(row, several) if state == STATES[0] else "",
                state,
                *times,
                "-" if rate is None else f"{rate:,.0f}",
            )
    return table


# So many threads are shown of a cell; cell.json has more.
_SHOWN_THREADS = 8


def thread_table(results: Sequence[CellResult]) -> Table | None:
    """Latency by recorded thread, in the steady state; None where no trace has several."""
    from rich.table import Table

    table = Table(title="Latency by recorded thread, steady", title_justify="left")
    table.add_column("allocator", overflow="fold")
    for title in ("thread", "calls", "alloc p50 / p99 / max", "free p50 / p99 / max"):
        table.add_column(title, justify="right")
    table.add_column("waited for a lock", justify="right")
    several = len({result.info["trace"]["path"] for result in results}) > 1
    for result in results:
        info = result.info
        threads = (info["latency"] or {}).get("threads", {}).get("steady", {})
        by_calls = sorted(threads, key=lambda number: -_calls(threads[number]))
        name = _name({**row_of(info), "allocator": _ordered_label(info)}, several)
        for place, number in enumerate(by_calls[:_SHOWN_THREADS]):
            found = threads[number]
            wait = found["lock_wait"]
            table.add_row(
                "" if place else name,
                number,
                f"{_calls(found):,.0f}",
                *(_quantiles(found.get(kind)) for kind in KINDS),
                # A median over processes may lie between two whole numbers.
                f"{wait['count']:,.1f}".removesuffix(".0")
                + f" x, {format_duration(wait['total_ns'])}",
            )
        if len(by_calls) > _SHOWN_THREADS:
            table.add_row("", f"{len(by_calls) - _SHOWN_THREADS} more")
    return table if table.row_count else None


def _ordered_label(info: Mapping[str, Any]) -> str:
    order = info.get("order", "global")
    return str(info["label"]) + ("" if order == "global" else f", {order}")


def _calls(thread: Mapping[str, Any]) -> float:
    return float(sum(thread[kind]["count"] for kind in KINDS if kind in thread))


def _quantiles(calls: Mapping[str, Any] | None) -> str:
    if calls is None:
        return "-"
    return " / ".join(format_duration(calls[f"{name}_ns"]["median"]) for name in QUANTILES)


class TemporaryFolder:
    """A folder that goes when nothing refers to this any more.

    Args:
        path: the folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)


class Result:
    """What `workbench.replay` returns; shows itself as tables in a terminal and in a notebook.

    Args:
        cells: one for each cell.
        left_out: allocators of `all` that cannot run here, each with its reason.
    """

    def __init__(
        self,
        cells: Sequence[CellResult] = (),
        left_out: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.cells = list(cells)
        self.left_out = list(left_out)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: int) -> CellResult:
        return self.cells[index]

    def __repr__(self) -> str:
        return f"Result({self.cells!r})"

    def snapshot_at(self, event: SupportsIndex | str) -> Snapshot:
        """`CellResult.snapshot_at` of the one cell there is.

        Raises:
            UsageError: there are several, or none.
        """
        if len(self.cells) != 1:
            raise UsageError(
                f"this result has {len(self.cells)} cells; say which one's snapshot is wanted, "
                "as in result[0].snapshot_at('peak')"
            )
        return self.cells[0].snapshot_at(event)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each cell; the columns of `rows`, units in their names."""
        import pandas as pd

        return pd.DataFrame(rows(self.cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = rows(self.cells)
        yield memory_table(cells)
        tables = (waterfall_table(cells), speed_table(cells), thread_table(self.cells))
        yield from (table for table in tables if table is not None)
        yield from notes(self.cells, self.left_out)

    def _repr_html_(self) -> str:
        from html import escape

        frame = self.to_pandas().drop(columns=["cell", "trace", "reason"])
        said = "".join(f"<p>{escape(note)}</p>" for note in notes(self.cells, self.left_out))
        return str(frame.to_html(index=False, na_rep="-")) + said
