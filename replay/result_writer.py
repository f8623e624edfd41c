"""Writes results: whole or not at all, and never over something else."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.common.errors import BrokenFileError, RunError, UsageError
from workbench.common.files import replaced_folder
from workbench.replay.results import CELL_FILE, TABLES, TEXT_COLUMNS, read_cell_json


def prepare_output(output: Path) -> None:
    """Make `output` and try whether results can be written there, before anything is measured.

    Raises:
        UsageError: it cannot be made or written to.
    """
    probe = output / f".{os.getpid()}.part"
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write results into {output} ({error.strerror}); name another folder with -o"
        ) from None


def check_free(folder: Path, key: Mapping[str, Any], *, force: bool) -> None:
    """See that `folder` may be written: absent, or a result of the cell `key`, or `force`.

    Raises:
        UsageError: it holds something else.
    """
    if force or not folder.exists():
        return
    try:
        there = read_cell_json(folder).get("key")
    except BrokenFileError:
        there = None
    if there != dict(key):
        what = "not a result of this workbench" if there is None else "the result of another cell"
        differing = ", ".join(name for name in key if (there or {}).get(name) != key[name])
        why = f" (another {differing})" if there is not None else ""
        raise UsageError(
            f"{folder} is {what}{why}; replace it with --force or name another folder with -o"
        )


def write_result(
    folder: Path, info: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]], *, force: bool
) -> None:
    """Write one cell's result.

    Args:
        folder: the cell's own folder.
        info: the content of ``cell.json``.
        tables: for each of `TABLES`, its columns; a missing table is written empty.
        force: replace whatever is there.

    Raises:
        UsageError: `folder` is not free.
        RunError: the disk is full, or the folder cannot be written.
    """
    for last_try in (False, True):
        check_free(folder, info["key"], force=force)
        try:
            with replaced_folder(folder) as part:
                _write(part, info, tables)
            return
        except OSError as error:
            # Another command may have put its result of the same cell there at this moment.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) and not last_try:
                continue
            raise RunError(
                f"cannot write the result {folder} ({os.strerror(error.errno or 0)}); nothing "
                "half-written was left: make room, or name another folder with -o"
            ) from None


def _empty(columns: Sequence[str]) -> Any:
    import pyarrow as pa

    types = {name: pa.string() if name in TEXT_COLUMNS else pa.int64() for name in columns}
    return pa.schema(types).empty_table()


def _write(part: Path, info: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, columns in TABLES.items():
        filled = tables.get(name)
        table = pa.table(dict(filled)) if filled else _empty(columns)
        with (part / f"{name}.parquet").open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
    with (part / CELL_FILE).open("w", encoding="utf-8") as file:
        json.dump(info, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
