"""Where in the program the events of a trace came from: the stacks recorded beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workbench.common.errors import BrokenFileError
from workbench.common.outputs import stacks_beside

if TYPE_CHECKING:
    from workbench.replay.events import Array, LoadedTrace


def read_stacks(loaded: LoadedTrace) -> tuple[Array, list[str]]:
    """The stack of every row of a trace.

    Returns:
        For each row a place in the list, or -1; and the folded stacks, none where none were
        recorded or their file is not beside the trace.

    Raises:
        BrokenFileError: the file of stacks is broken.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from workbench.recorders.trace import open_trace

    path = Path(loaded.path)
    # They lie beside the trace itself; where links to both were made, beside the link.
    beside = (stacks_beside(path), path.with_name(f"{path.stem}.stacks.parquet"))
    table = next((file for file in beside if file.is_file()), path)
    if table == path or not loaded.metadata.get("stacks"):
        return np.full(loaded.rows, -1, dtype=np.int64), []
    try:
        column = pq.read_table(table, columns=["stack"]).column("stack").cast(pa.string())
        stacks = [text or "" for text in column.to_pylist()]
    except (OSError, KeyError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise BrokenFileError(table, f"not a table of stacks ({reason})", "remove it") from None
    (file,) = open_trace(loaded.path).files
    numbers = np.concatenate(
        [
            np.zeros(0, dtype=np.int64),
            *(
                batch.column("stack_id").fill_null(-1).to_numpy(zero_copy_only=False)
                for batch in file.batches(columns=["stack_id"], check=False)
            ),
        ]
    )
    return np.where((numbers >= 0) & (numbers < len(stacks)), numbers, -1), stacks
