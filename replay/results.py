"""The result format: reading it, and the words both its writer and its readers use.

docs/result-format.md describes every field. Reports import this module and nothing else of replay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from workbench.common.errors import BrokenFileError
from workbench.common.units import format_bytes
from workbench.replay.result_fields import RESULT, field_problem, shown

if TYPE_CHECKING:
    import pandas as pd

    from workbench.replay.replayed_again import ReplayedAgain
    from workbench.replay.snapshot import Snapshot

FORMAT_VERSION = 1
CELL_FILE = "cell.json"
# Columns of the timeline that have a smallest and a largest value in each bucket.
SERIES = ("requested", "live_requested", "allocated", "active", "reserved", "segments")
BOUNDS = ("min", "max")
TABLES: dict[str, tuple[str, ...]] = {
    "timeline": (
        *("event_first", "event_last", "time_ns", "phase", "step"),
        *(f"{name}_{bound}" for name in SERIES for bound in BOUNDS),
    ),
    "blocks": (
        *("moment", "segment", "segment_address", "segment_size", "stream", "pool", "offset"),
        *("size", "requested", "state", "alloc_event", "id", "scope", "stack"),
    ),
    "latency": ("state", "kind", "cause", "bucket_low_ns", "bucket_high_ns", "count"),
}
TEXT_COLUMNS = ("phase", "moment", "pool", "state", "scope", "stack", "kind", "cause")
STATUSES = (
    *("ok", "out_of_memory", "plan_mismatch", "library_fault", "crashed", "timed_out"),
    "unavailable",
)
_REMEDY = "replay the trace again with wb replay"


def read_cell_json(folder: Path) -> dict[str, Any]:
    """The checked ``cell.json`` of a result.

    Raises:
        BrokenFileError: missing, not JSON, of another version, or without a field.
    """
    path = folder / CELL_FILE
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenFileError(folder, f"this folder has no {CELL_FILE}", _REMEDY) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenFileError(path, f"cannot be read ({error})", _REMEDY) from None
    except json.JSONDecodeError as error:
        raise BrokenFileError(
            path, f"not JSON, or cut short (line {error.lineno}: {error.msg})", _REMEDY
        ) from None
    except (ValueError, RecursionError) as error:  # a number too long, lists nested too deeply
        raise BrokenFileError(
            path, f"not JSON that can be read ({str(error)[:100]})", _REMEDY
        ) from None
    if not isinstance(info, dict) or "format_version" not in info:
        raise BrokenFileError(path, "not a result: format_version is missing", _REMEDY)
    if info["format_version"] != FORMAT_VERSION:
        raise BrokenFileError(
            path,
            f"result format version {shown(info['format_version'])}, and this workbench reads "
            f"version {FORMAT_VERSION}",
            _REMEDY,
        )
    problem = field_problem("", info, RESULT)
    if problem is not None:
        raise BrokenFileError(path, f"field {problem}", _REMEDY)
    if info["outcome"]["status"] not in STATUSES:
        raise BrokenFileError(
            path, f"unknown outcome status {shown(info['outcome']['status'])}", _REMEDY
        )
    return info


def device_calls(driver_calls: Mapping[str, Any]) -> int | None:
    """The calls that an allocator made to the driver or the system and that were served.

    All of ``memory.driver_calls`` count, those to the driver's pool and of CUDA events too, but not
    ``refused``. None where they are not reported.
    """
    if driver_calls.get("alloc") is None:
        return None
    return sum(number or 0 for name, number in driver_calls.items() if name != "refused")


def driver_ns(memory: Mapping[str, Any]) -> int | None:
    """Nanoseconds in the driver's calls of the memory pass, but for those that hold streams back.

    None where they have no price: there is no driver, or nobody measured it.
    """
    times = memory.get("driver_time")
    if times is None:
        return None
    return sum(int(time["total_ns"]) for kind, time in times["kinds"].items() if kind != "gate")


def driver_time_is_model(memory: Mapping[str, Any]) -> bool:
    """Whether the driver's calls were counted, and priced by a profile, and not timed."""
    return bool((memory.get("driver_time") or {}).get("source") == "model")


def takes_memory_itself(memory: Mapping[str, Any] | None) -> bool:
    """Whether the allocator of a cell asks the system for memory, past the backend."""
    return memory is not None and memory["driver_calls"].get("alloc") is None


def rounding_bytes(memory: Mapping[str, Any]) -> int | None:
    """By how much the peak of allocated is above that of live requested; None: not reported.

    Of the peaks, not at one event: who lists no blocks still reports those.
    """
    peaks = memory.get("peaks", {})
    allocated, asked = (
        peaks.get(name, {}).get("bytes") for name in ("allocated", "live_requested")
    )
    return None if allocated is None or asked is None else int(allocated - asked)


def rounding_share(memory: Mapping[str, Any]) -> float | None:
    """The share of allocated bytes that nobody asked for; see `rounding_bytes`."""
    rounding = rounding_bytes(memory)
    if rounding is None:
        return None
    return rounding / memory["peaks"]["allocated"]["bytes"] if rounding else 0.0


class CellResult:
    """One result: a cell's folder.

    Args:
        folder: where ``cell.json`` is.

    Raises:
        BrokenFileError: the folder is not a result, or a broken one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keeps: object = None  # what must live for as long as the folder is read
        self.info = read_cell_json(folder)
        for table in TABLES:
            if not (folder / f"{table}.parquet").is_file():
                raise BrokenFileError(
                    folder / f"{table}.parquet", "this part of the result is missing", _REMEDY
                )

    def __repr__(self) -> str:
        return f"CellResult({self.info['name']!r}, {self.info['outcome']['status']!r})"

    @property
    def name(self) -> str:
        """The cell's name, which is also its folder's."""
        return str(self.info["name"])

    @property
    def torch_statistics(self) -> dict[str, int]:
        """The flat dictionary of ``torch.cuda.memory_stats`` after the replay's last event.

        Empty where PyTorch's original keeps none, and where the memory pass did not end.
        """
        return dict((self.info["memory"] or {}).get("torch_statistics", {}))

    @property
    def plan_note(self) -> str | None:
        """How good the cell's plan is and how the traffic kept to it; None without a plan."""
        plan = self.info.get("plan")
        if not plan:
            return None
        ratio = "" if plan["ratio"] is None else f", {plan['ratio']:.4f} of the lower bound"
        height = format_bytes(plan["height_bytes"])
        said = [f"{self.info['label']}: {plan['managed']:,} planned in {height}{ratio}"]
        served = plan["served"] or {}
        for name, text in (
            ("unmanaged", "not freed within the plan"),
            ("other_threads", "by other threads"),
            ("outside", "before the plan begins"),
        ):
            if served.get(name):
                said.append(f"{served[name]:,} allocations {text} came from raw memory")
        if served.get("mismatches") or served.get("fallback"):
            said.append(
                f"{served['mismatches']:,} mismatches sent {served['fallback']:,} allocations of "
                f"{format_bytes(served['fallback_bytes'])} to raw memory, at most "
                f"{format_bytes(served['peak_fallback_bytes'])} at once"
            )
        return "; ".join(said) + "."

    def snapshot_at(self, event: SupportsIndex | str) -> Snapshot:
        """Segments and blocks after an event; the trace is replayed in this process up to its end.

        Args:
            event: a row of the trace, as everywhere in a result (where it is not one of the
                replayed events, the last before it counts); or ``peak``, the peak of reserved; or
                ``oom``, the first out of memory.

        Raises:
            UsageError: no such event, or the replay did not reach it.
            BrokenFileError: the trace is not where it was, or is another one.
            RunError: this version of the workbench decides otherwise.
        """
        return self._again.at(event)

    @cached_property
    def _again(self) -> ReplayedAgain:
        from workbench.replay.replayed_again import ReplayedAgain

        return ReplayedAgain(self.info)

    @cached_property
    def timeline(self) -> pd.DataFrame:
        """Memory over events: one row for each bucket of events."""
        return self._table("timeline")

    @cached_property
    def blocks(self) -> pd.DataFrame:
        """Segments and blocks at the peak and at out of memory: one row for each block."""
        return self._table("blocks")

    @cached_property
    def latency(self) -> pd.DataFrame:
        """Histograms: one row for each state, kind, cause and bucket."""
        return self._table("latency")

    def _table(self, name: str) -> pd.DataFrame:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / f"{name}.parquet"
        try:
            table = pq.read_table(path)
            table.validate(full=True)  # text that is not UTF-8, which pandas meets only later
            frame: pd.DataFrame = table.to_pandas()
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BrokenFileError(path, f"not Parquet, or cut short ({reason})", _REMEDY) from None
        for column in TABLES[name]:
            if table.column_names.count(column) != 1:
                problem = "is there twice" if column in table.column_names else "is missing"
                raise BrokenFileError(path, f"column {column!r} {problem}", _REMEDY)
            if table.num_rows and not _is_column(column, table.column(column)):
                kind = table.column(column).type
                wanted = "text" if column in TEXT_COLUMNS else "numbers without nulls"
                raise BrokenFileError(
                    path, f"column {column!r} holds {kind}, not {wanted}", _REMEDY
                )
        return frame


def _is_column(name: str, column: Any) -> bool:
    """Whether `column` of a table with rows holds what a column of that name does."""
    from pyarrow import types

    kind = column.type
    not_reported = column.null_count == len(column)
    if not_reported and name.rpartition("_")[0] in SERIES and types.is_integer(kind):
        return True
    if name in TEXT_COLUMNS:
        if types.is_dictionary(kind):
            kind = kind.value_type
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind))
    numbers = types.is_integer(kind) or (name.startswith("bucket_") and types.is_floating(kind))
    return bool(numbers and not column.null_count)


def find_results(paths: Sequence[Path]) -> list[Path]:
    """The cells' folders in `paths`, which are such folders or hold them; in order of their names.

    Raises:
        BrokenFileError: a path that is missing or holds no result.
    """
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            problem = "not a folder with results" if path.exists() else "no such folder"
            raise BrokenFileError(path, problem, "name a folder that wb replay wrote")
        if (path / CELL_FILE).exists():
            found = [path]
        else:
            # Folders that start with a dot are being written.
            found = sorted(
                file.parent
                for file in path.glob(f"*/{CELL_FILE}")
                if not file.parent.name.startswith(".")
            )
        if not found:
            raise BrokenFileError(path, "holds no result", "name a folder that wb replay wrote")
        folders += [folder for folder in found if folder not in folders]
    return folders


def load_results(paths: Sequence[Path]) -> list[CellResult]:
    """The results in `paths`; each is a cell's folder or a folder of them.

    Raises:
        BrokenFileError: see `find_results` and `CellResult`.
    """
    return [CellResult(folder) for folder in find_results(paths)]
