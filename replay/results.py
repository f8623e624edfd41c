"""The result format: reading it, and the words both its writer and its readers use.

docs/result-format.md describes every field. Reports import this module and nothing else of replay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.common.errors import BrokenFileError

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1
CELL_FILE = "cell.json"
# Columns of the timeline that have a smallest and a largest value in each bucket.
SERIES = ("requested", "live_requested", "allocated", "active", "reserved", "segments")
TABLES: dict[str, tuple[str, ...]] = {
    "timeline": (
        *("event_first", "event_last", "time_ns", "phase", "step"),
        *(f"{name}_{bound}" for name in SERIES for bound in ("min", "max")),
    ),
    "blocks": (
        *("moment", "segment", "segment_address", "segment_size", "stream", "pool", "offset"),
        *("size", "requested", "state", "alloc_event", "id", "scope", "stack"),
    ),
    "latency": ("state", "kind", "cause", "bucket_low_ns", "bucket_high_ns", "count"),
}
TEXT_COLUMNS = ("phase", "moment", "pool", "state", "scope", "stack", "kind", "cause")
STATUSES = ("ok", "out_of_memory", "plan_mismatch", "crashed", "timed_out", "unavailable")
# Fields every result has, and the type of each; None where it may be null.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "key": dict,
    "name": str,
    "label": str,
    "trace": dict,
    "allocator": dict,
    "backend": dict,
    "as_if": bool,
    "capacity": dict,
    "completion": str,
    "outcome": dict,
    "memory": (dict, type(None)),
    "latency": (dict, type(None)),
    "throughput": dict,
    "harness": (dict, type(None)),
    "digests": dict,
    "processes": int,
    "machine": dict,
    "versions": dict,
    "warnings": list,
    "command": str,
    "created": str,
}
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
    if not isinstance(info, dict) or "format_version" not in info:
        raise BrokenFileError(path, "not a result: format_version is missing", _REMEDY)
    if info["format_version"] != FORMAT_VERSION:
        raise BrokenFileError(
            path,
            f"result format version {info['format_version']!r}, and this workbench reads version "
            f"{FORMAT_VERSION}",
            _REMEDY,
        )
    for field, kind in _FIELDS.items():
        if field not in info:
            raise BrokenFileError(path, f"field {field!r} is missing", _REMEDY)
        if not isinstance(info[field], kind):
            raise BrokenFileError(
                path, f"field {field!r} has the wrong type {type(info[field]).__name__}", _REMEDY
            )
    if info["outcome"].get("status") not in STATUSES:
        raise BrokenFileError(
            path, f"unknown outcome status {info['outcome'].get('status')!r}", _REMEDY
        )
    return info


class CellResult:
    """One result: a cell's folder.

    Args:
        folder: where ``cell.json`` is.

    Raises:
        BrokenFileError: the folder is not a result, or a broken one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        except (OSError, pa.ArrowInvalid) as error:
            raise BrokenFileError(
                path, f"not Parquet, or cut short ({str(error).splitlines()[0]})", _REMEDY
            ) from None
        for column in TABLES[name]:
            if column not in table.column_names:
                raise BrokenFileError(path, f"column {column!r} is missing", _REMEDY)
        frame: pd.DataFrame = table.to_pandas()
        return frame


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
