"""What a person reads of a search for the smallest device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from workbench.common.units import format_bytes
from workbench.common.words import masked
from workbench.replay.fitting import UNIT, Fit, Fits
from workbench.replay.notes import as_if_note
from workbench.replay.tune_summary import cell

if TYPE_CHECKING:
    from rich.table import Table


def parts(fits: Fits) -> Iterator[Table | str]:
    """The table, and what a reader of it must know."""
    yield table(fits)
    yield from sentences(fits)


def html(fits: Fits) -> str:
    """The same for a notebook."""
    from html import escape

    frame = fits.to_pandas()
    columns = ["trace", "device", "label", "status", "capacity_bytes", "peak_live_bytes"]
    columns += ["headroom_bytes", "retries", "device_calls", "without_retry_bytes"]
    text = "".join(f"<p>{escape(line)}</p>" for line in sentences(fits))
    return str(frame[columns].to_html(index=False, na_rep="-")) + text


def table(fits: Fits) -> Table:
    """One row for each allocator and trace file."""
    from rich.table import Table

    made = Table(title="The smallest device that holds it", title_justify="left")
    made.add_column("allocator", overflow="fold")
    for title in ("smallest device", "peak live", "headroom", "retries", "device calls"):
        made.add_column(title, justify="right")
    made.add_column("without a retry", justify="right")
    several = len({(fit.subject.path, fit.subject.device) for fit in fits.fits}) > 1
    for fit in fits.fits:
        made.add_row(*_row(fit, several))
    return made


def _row(fit: Fit, several: bool) -> list[str]:
    name = fit.allocator.label + (" *" if fit.subject.as_if else "")
    if several:
        name = f"{fit.subject.path}, {fit.subject.device}: {name}"
    name = cell(name)
    live = format_bytes(fit.subject.peak_live)
    if fit.at is None or fit.headroom is None or fit.headroom_share is None:
        return [name, fit.status.replace("_", " "), live, "-", "-", "-", "-"]
    return [
        name,
        exact(fit.capacity),
        live,
        f"{format_bytes(fit.headroom)} ({fit.headroom_share:.1%})",
        "not reported" if fit.at.retries is None else f"{fit.at.retries:,}",
        f"{fit.at.device_calls:,}",
        exact(fit.roomy),
    ]


def exact(size: int | None) -> str:
    """A multiple of the device's unit, to the byte."""
    return "-" if size is None else f"{size // 2**20:,} MiB"


def sentences(fits: Fits) -> list[str]:
    """What the numbers mean, and what each search met."""
    found: dict[str, None] = {
        f"Exact to {format_bytes(UNIT)}, the unit in which a device hands out memory; headroom is "
        f"what lies beyond the peak of live memory. Simulated device, completion "
        f"{fits.completion}.": None
    }
    if any(fit.at is not None and fit.at.retries for fit in fits.fits):
        found[
            "A retry waits for the device and releases everything cached: a device that just fits "
            "may be slow."
        ] = None
    for fit in fits.fits:
        label = fit.allocator.label
        if fit.reason is not None:
            found[f"{label} on {fit.subject.path}: {fit.reason}."] = None
        if fit.also:
            sizes = ", ".join(exact(size) for size in fit.also)
            found[
                f"{label} on {fit.subject.path} also completes in {sizes}, though not in "
                f"{exact((fit.capacity or 0) - UNIT)}: less memory makes it release more. Do not "
                "build on that."
            ] = None
        for warning in fit.unlimited.warnings if fit.unlimited else ():
            found[f"{label}: {warning}."] = None
        if fit.rules:
            found[f"{label}: replayed with {fit.rules}, as {fit.subject.path} says."] = None
    as_if = [fit.subject for fit in fits.fits if fit.subject.as_if]
    if as_if:
        found[as_if_note((subject.device, subject.kind) for subject in as_if)] = None
    for fit in fits.fits:
        found.update(dict.fromkeys(fit.subject.notes))
    for name, reason in fits.left_out:
        found[f"Left out: {name} ({reason})."] = None
    return [masked(one) for one in found]
