"""What rounding pinned memory to powers of two costs: bytes asked for and bytes pinned.

    python benchmarks/pinned_rounding.py

Three programs' pinned memory, made from the shapes of what they pin and replayed against
``host-pinned`` on the simulated backend (nothing is pinned):

- *images*: a DataLoader with ``pin_memory=True``: 64 images of 3 x 224 x 224 in float32 and their
  labels in each batch, at most 9 batches pinned at once.
- *text*: the same with 32 sequences of tokens (int64) and their mask, padded to the longest in the
  batch; lengths are log-normal with median 400, at most 4,096 (seed 1).
- *offload*: a float32 copy of the weights of Llama 2 7B and both states of its Adam, as optimizers
  that run on the CPU keep them, one block for each tensor.

A batch is copied to the device on a stream of its own, which its blocks wait for; the copy is
complete two batches later.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from engine_events import Operation, make_events

from workbench.common.units import format_bytes
from workbench.replay import _engine

SETTINGS = {
    "power of two": "",
    "best fit": "policy:best-fit",
    "not rounded above 1 MiB": "pinned_max_round_threshold_mb:1",
}
BATCHES = 400
IN_FLIGHT = 8
COPY_STREAM = 1


def loader(batches: Iterator[list[int]]) -> list[Operation]:
    """The pinned memory of a DataLoader: each of `batches` holds the bytes of its tensors."""
    operations: list[Operation] = []
    waiting: list[list[int]] = []
    number = 0
    for sizes in batches:
        operations += [("alloc", number + place, size, 0) for place, size in enumerate(sizes)]
        waiting.append(list(range(number, number + len(sizes))))
        number += len(sizes)
        if len(waiting) > IN_FLIGHT:
            used = waiting.pop(0)
            operations += [("record_stream", one, 0, COPY_STREAM) for one in used]
            operations += [("free", one, 0, 0) for one in used]
    return operations


def images() -> list[Operation]:
    """Batches of one shape."""
    return loader([64 * 3 * 224 * 224 * 4, 64 * 8] for _ in range(BATCHES))


def text() -> list[Operation]:
    """Batches padded to their longest sequence."""
    source = random.Random(1)

    def batch() -> list[int]:
        longest = max(min(int(400 * source.lognormvariate(0, 0.6)), 4096) for _ in range(32))
        return [32 * longest * 8, 32 * longest]

    return loader(batch() for _ in range(BATCHES))


def offload() -> list[Operation]:
    """Weights and two states of each; nothing is freed."""
    hidden, inner, vocabulary, layers = 4096, 11008, 32000, 32
    layer = [hidden * hidden] * 4 + [hidden * inner] * 3 + [hidden] * 2
    shapes = [vocabulary * hidden] * 2 + layer * layers + [hidden]
    return [("alloc", number, size * 4, 0) for number, size in enumerate(shapes * 3)]


def main() -> None:
    """Replay and print."""
    table = Table(title="Bytes asked for and bytes pinned at their peaks", title_justify="left")
    for title in ("program", "asked for", *SETTINGS):
        table.add_column(title, justify="left" if title == "program" else "right")
    for program in (images, text, offload):
        operations = program()
        events = make_events(operations)
        # Two batches later.
        completion = f"delay:{2 * len(operations) // BATCHES}"
        cells = []
        for settings in SETTINGS.values():
            made = _engine.Replay(
                events, "host-pinned", settings, backend="simulated", completion=completion
            )
            peaks = made.memory(1)["peaks"]
            asked, pinned = peaks["live_requested"]["bytes"], peaks["reserved"]["bytes"]
            cells.append(f"{format_bytes(pinned)} ({pinned / asked:.2f})")
        table.add_row(program.__name__, format_bytes(asked), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
