"""The state of an allocator after one event of a replay: segments, blocks, and who holds what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.common.errors import UsageError
from workbench.common.units import format_bytes
from workbench.replay.events import Array
from workbench.replay.result_fields import WATERFALL

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

# What is shown of long lists unasked.
_MAP_LINES = 16
_PIN_ROWS = 10
_LEGEND = "█ in use   ▓ half or more   ░ less   ~ mostly pending   · free   blank: no memory"


class Snapshot:
    """Segments and blocks after one event; shows itself in a terminal and in a notebook.

    Args:
        label: the allocator and its settings.
        event: the event's row in the trace.
        segments: what the attribute of this name holds, without what is summed over blocks.
        blocks: see the attribute.

    Attributes:
        label: as given.
        event: as given.
        segments: one row for each segment in order of their numbers: ``segment`` (its number),
            ``address`` (in this process), ``size`` (bytes that have memory), ``stream``, ``pool``,
            ``expandable``; and over its blocks, in bytes, ``allocated``, ``active``, ``free`` and
            ``largest_free``.
        blocks: one row for each block, in order of segments and offsets: ``segment``, ``offset``,
            ``size`` and ``requested`` in bytes, ``state`` (``active_allocated``,
            ``active_pending_free``, ``inactive``), ``id`` of its allocation, ``alloc_event`` (row
            of the trace), ``age`` (rows since), ``thread``, ``step``, ``phase``, ``scope``,
            ``stack``. What a free block has not, or was not recorded, is -1 or None. In an
            expandable segment only what has memory is listed, so that offsets have gaps.
    """

    def __init__(
        self, label: str, event: int, segments: pd.DataFrame, blocks: pd.DataFrame
    ) -> None:
        self.label = label
        self.event = event
        self.blocks = blocks
        self.segments = _with_sums(segments, blocks)

    @property
    def waterfall(self) -> dict[str, int]:
        """Bytes of reserved memory by part; they add up to all segments' sizes.

        ``live_requested``: what the program asked for and has not freed; ``rounding`` of those
        blocks; ``pending``: freed, and waiting for other streams; ``stranded``: free, in segments
        that are partly used or expandable; ``cached``: free, in segments that are wholly free.
        """
        blocks, segments = self.blocks, self.segments
        live = blocks[blocks["state"] == "active_allocated"]
        whole = (segments["active"] == 0) & ~segments["expandable"]
        requested, allocated = int(live["requested"].sum()), int(live["size"].sum())
        parts = (
            requested,
            allocated - requested,
            int(blocks["size"][blocks["state"] == "active_pending_free"].sum()),
            int(segments["free"][~whole].sum()),
            int(segments["free"][whole].sum()),
        )
        return dict(zip(WATERFALL, parts, strict=True))

    @property
    def reserved(self) -> int:
        """Bytes of all segments."""
        return int(self.segments["size"].sum())

    @property
    def largest_free(self) -> int:
        """Bytes of the largest free block; 0 where there is none."""
        return int(self.segments["largest_free"].max()) if len(self.segments) else 0

    def pinned_by(self) -> pd.DataFrame:
        """Who keeps segments that are mostly empty: those with blocks in less than half of them.

        Returns:
            One row for each segment and place in the program, the most wasted segment first and of
            it the largest share: ``segment``, ``segment_size``, ``wasted`` (bytes of it that are
            not active), ``scope``, ``stack``, ``phase``, and of the active blocks from there
            ``bytes``, ``blocks`` and ``oldest`` (the first of the rows that allocated them).
        """
        segments = self.segments
        empty = segments[(segments["active"] > 0) & (2 * segments["active"] < segments["size"])]
        homes = pd.DataFrame(
            {
                "segment": empty["segment"],
                "segment_size": empty["size"],
                "wasted": empty["size"] - empty["active"],
            }
        )
        active = self.blocks[self.blocks["state"] != "inactive"]
        holders = homes.merge(active, on="segment").groupby(
            ["segment", "segment_size", "wasted", "scope", "stack", "phase"], dropna=False
        )
        pins = (
            holders.agg(
                bytes=("size", "sum"), blocks=("size", "size"), oldest=("alloc_event", "min")
            )
            .reset_index()
            .sort_values(["wasted", "segment", "bytes"], ascending=[False, True, False])
            .reset_index(drop=True)
        )
        for name in ("scope", "stack", "phase"):  # grouping made NaN of None
            texts = pins[name].astype(object)
            pins[name] = texts.where(texts.notna(), None)
        return pins

    def memory_map(self, width: int = 64) -> str:
        """A picture of the segments in text, a line for each, all to one scale; then a legend.

        Args:
            width: characters of the longest segment.

        Raises:
            UsageError: `width` is not above 0.
        """
        return "\n".join(self._map_lines(width, len(self.segments)))

    def _map_lines(self, width: int, most: int) -> list[str]:
        """The lines of `most` segments, the largest of them, and the legend."""
        if width < 1:
            raise UsageError(f"width {width} is not a number of characters; give 1 or more")
        if not len(self.segments):
            return ["no segment"]
        shown = self.segments.sort_values("size", ascending=False, kind="stable")[:most]
        chosen = self.blocks[self.blocks["segment"].isin(shown["segment"])]
        ends = (chosen["offset"] + chosen["size"]).groupby(chosen["segment"]).max()
        unit = -(-int(ends.to_numpy().max()) // width)
        by_segment = dict(tuple(chosen.groupby("segment")))
        lines = []
        shown = shown.sort_index()
        columns = (shown[name].tolist() for name in ("segment", "pool", "size"))
        for number, pool, size in zip(*columns, strict=True):
            drawn = _drawn(by_segment[number], int(ends[number]), unit)
            lines.append(f"{number:>6} {pool:<6}{format_bytes(size):>11} |{drawn}|")
        left_out = len(self.segments) - len(shown)
        if left_out:
            lines.append(f"… and {left_out:,} more, none larger")
        return [*lines, f"{_LEGEND}; a character is {format_bytes(unit)}"]

    def _headline(self) -> str:
        return (
            f"{self.label} after event {self.event:,}: {format_bytes(self.reserved)} reserved in "
            f"{len(self.segments):,} segments, largest free block {format_bytes(self.largest_free)}"
        )

    def _pins(self) -> pd.DataFrame:
        """The first rows of `pinned_by` as texts."""
        pins = self.pinned_by()[:_PIN_ROWS]
        return pd.DataFrame(
            {
                "segment": pins["segment"].map(str),
                "of": pins["segment_size"].map(format_bytes),
                "wasted": pins["wasted"].map(format_bytes),
                "held by": [
                    # The innermost function is the last of a folded stack.
                    scope or (stack or "").rpartition(";")[2] or f"{phase or 'unknown'} phase"
                    for scope, stack, phase in zip(
                        pins["scope"], pins["stack"], pins["phase"], strict=True
                    )
                ],
                "with": pins["bytes"].map(format_bytes),
                "blocks": pins["blocks"].map("{:,}".format),
            },
            dtype=object,
        )

    def __repr__(self) -> str:
        return f"Snapshot({self._headline()!r})"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        yield Text(self._headline())
        parts = Table(title="Reserved, part by part", title_justify="left")
        for name in WATERFALL:
            parts.add_column(name.replace("_", " "), justify="right")
        parts.add_row(*(format_bytes(size) for size in self.waterfall.values()))
        yield parts
        width = max(options.max_width - 28, 8)
        yield Text("\n".join(self._map_lines(min(width, 64), _MAP_LINES)))
        pins = self._pins()
        if len(pins):
            table = Table(title="Segments that are mostly empty", title_justify="left")
            for name in pins.columns:
                table.add_column(name, overflow="fold")
            for row in pins.itertuples(index=False):
                table.add_row(*(Text(text) for text in row))
            yield table

    def _repr_html_(self) -> str:
        from html import escape

        parts = {name.replace("_", " "): [format_bytes(n)] for name, n in self.waterfall.items()}
        lines = "\n".join(self._map_lines(64, _MAP_LINES))
        pins = self._pins()
        return (
            f"<p>{escape(self._headline())}</p>{pd.DataFrame(parts).to_html(index=False)}"
            f"<pre>{escape(lines)}</pre>"
            + (
                f"<p>Segments that are mostly empty</p>{pins.to_html(index=False)}"
                * bool(len(pins))
            )
        )


def _with_sums(segments: pd.DataFrame, blocks: pd.DataFrame) -> pd.DataFrame:
    """`segments` with sums over their blocks."""
    held = {
        "allocated": blocks["state"] == "active_allocated",
        "active": blocks["state"] != "inactive",
        "free": blocks["state"] == "inactive",
    }
    number = segments["segment"]
    summed = segments.copy()
    for name, chosen in held.items():
        sizes = blocks["size"].where(chosen, 0).groupby(blocks["segment"]).sum()
        summed[name] = number.map(sizes).astype(np.int64)
    largest = blocks["size"].where(held["free"], 0).groupby(blocks["segment"]).max()
    summed["largest_free"] = number.map(largest).astype(np.int64)
    return summed


def _drawn(blocks: pd.DataFrame, end: int, unit: int) -> str:
    """One segment's bytes 0 … `end` as characters of `unit` bytes."""
    edges = np.minimum(np.arange(-(-end // unit) + 1) * unit, end)
    starts = blocks["offset"].to_numpy()
    sizes = blocks["size"].to_numpy()
    places = np.column_stack([starts, starts + sizes]).ravel()

    def held(chosen: Any) -> Array:
        """Bytes of the chosen blocks under each character."""
        sums = np.cumsum(np.where(chosen, sizes, 0))
        before = np.column_stack([sums - np.where(chosen, sizes, 0), sums]).ravel()
        return np.diff(np.interp(edges, places, before))

    mapped = held(np.ones(len(sizes), dtype=bool))
    active = held((blocks["state"] != "inactive").to_numpy())
    pending = held((blocks["state"] == "active_pending_free").to_numpy())
    characters = np.select(
        [mapped == 0, 2 * pending > mapped, active == 0, active >= mapped, 2 * active >= mapped],
        [" ", "~", "·", "█", "▓"],
        "░",
    )
    return "".join(characters)
