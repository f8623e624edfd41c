"""MiniMalloc's CSV of lifetimes: what a planner of fixed offsets starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from workbench.common.units import format_bytes
from workbench.common.words import some
from workbench.recorders.exporters import Progress, TraceSource, Written, choose_device
from workbench.recorders.trace.checks import OPS, TextCodes

NAME = "minimalloc"
SUMMARY = "MiniMalloc CSV: id, lower, upper, size of one device's allocations"
SUFFIX = ".csv"
NEEDS = "trace"

_COLUMNS = ("event", "id", "size", "device")
_MADE, _FREED = OPS["alloc"], OPS["free"]


def write(source: TraceSource, path: Path, progress: Progress) -> Written:
    """Write a row for each allocation of one device.

    A lifetime is half-open, [lower, upper), and counts rows of the trace; what is never freed ends
    after the last row. Allocations of 0 bytes need no place and are left out.

    Raises:
        UsageError: the trace has no such device.
        TraceError: a row breaks a rule of the trace format.
    """
    made, freed, devices = _rows(source, progress)
    device_of = {str(text): code for code, text in enumerate(devices.texts)}
    totals = {
        name: int(made["size"][made["device"] == code].sum(dtype=np.int64))
        for name, code in device_of.items()
        if (made["device"] == code).any()
    }
    device = choose_device(totals, source.file.path, source.device)
    # Ids count from 0 in order of allocation, over all devices.
    upper = np.full(len(made["id"]), source.file.rows, dtype=np.int64)
    upper[freed["id"]] = freed["row"]
    ours = made["device"] == device_of.get(device or "", -1)
    empty = int((ours & (made["size"] == 0)).sum())
    chosen = ours & (made["size"] > 0)
    table = pa.table(
        {
            "id": made["id"][chosen],
            "lower": made["row"][chosen],
            "upper": upper[chosen],
            "size": made["size"][chosen],
        }
    )
    with path.open("wb") as file:
        file.write(f"{','.join(table.column_names)}\n".encode())  # Arrow would quote the names
        csv.write_csv(table, file, csv.WriteOptions(include_header=False, quoting_style="none"))
    peak = _peak(table)
    left_out = f", {empty:,} of 0 bytes left out" if empty else ""
    return Written(
        f"{some(table.num_rows, 'allocation')} of {device or 'no device'}{left_out}; "
        f"no plan can be lower than the peak of live bytes, {format_bytes(peak)}",
        f"plan offsets with minimalloc --input={{path}} --output=plan.csv --capacity={peak}",
        {
            "device": device,
            "allocations": table.num_rows,
            "left_out_zero_bytes": empty,
            "peak_live_bytes": peak,
        },
    )


def _rows(
    source: TraceSource, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any], TextCodes]:
    """Columns of the rows that allocate, and of those that free; the devices' codes."""
    events, devices = TextCodes(), TextCodes()
    parts: dict[int, dict[str, list[Any]]] = {
        op: {name: [] for name in ("row", "id", "size", "device")} for op in (_MADE, _FREED)
    }
    first = 0
    for batch in source.file.batches(_COLUMNS):
        codes = events.encode(batch.column("event"))
        ops = np.array([OPS.get(text or "", 0) for text in events.texts] or [0], np.uint8)[codes]
        columns = {
            "row": np.arange(first, first + batch.num_rows),
            "id": batch.column("id").to_numpy(),
            "size": batch.column("size").to_numpy(),
            "device": devices.encode(batch.column("device")),
        }
        for op, part in parts.items():
            for name, column in columns.items():
                part[name].append(column[ops == op])
        first += batch.num_rows
        progress(first, source.file.rows)
    made, freed = (
        {
            name: np.concatenate(lists) if lists else np.zeros(0, np.int64)
            for name, lists in p.items()
        }
        for p in parts.values()
    )
    return made, freed, devices


def _peak(table: pa.Table) -> int:
    """The greatest number of bytes alive at once."""
    size = table["size"].to_numpy()
    at = np.concatenate([table["lower"].to_numpy(), table["upper"].to_numpy()])
    change = np.concatenate([size, -size])
    # What ends at an event is gone before what begins there.
    order = np.lexsort([change, at])
    return int(np.cumsum(change[order], dtype=np.int64).max(initial=0))
