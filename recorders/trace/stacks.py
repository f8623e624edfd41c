"""The stack table that lies beside a trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.common.errors import RunError
from workbench.common.files import replaced_file
from workbench.common.outputs import stacks_beside


def write_stacks(trace: Path, stacks: Sequence[str]) -> Path | None:
    """Write ``NAME.stacks.parquet`` beside `trace`; without stacks, remove an earlier one.

    Args:
        trace: the trace, ``NAME.parquet``.
        stacks: folded, in the order of their numbers.

    Raises:
        RunError: the disk is full, or writing fails for another reason.
    """
    path = stacks_beside(trace)
    if not stacks:
        path.unlink(missing_ok=True)
        return None
    table = pa.table(
        {
            "stack_id": pa.array(range(len(stacks)), pa.int32()),
            "stack": pa.array(stacks, pa.string()),
        }
    )
    try:
        with replaced_file(path) as part:
            pq.write_table(table, part, compression="zstd")
    except OSError as error:
        raise RunError(
            f"{path}: the stacks could not be written ({error.strerror or error}); make room, or "
            "name a file on another disk"
        ) from error
    return path
