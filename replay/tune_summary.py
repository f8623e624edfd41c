"""What a person reads of a search for settings: the evidence, the front, what to set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from workbench.common.units import format_bytes
from workbench.common.words import masked
from workbench.replay.subjects import Subject
from workbench.replay.tuning import ENOUGH, Check, Tried, Tuning

if TYPE_CHECKING:
    from rich.table import Table

STATUS = {"ok": "completed", "timed_out": "timed out", "out_of_memory": "out of memory"}


def parts(tuning: Tuning, top: int = 10) -> Iterator[Table | str]:
    """Tables and lines of text, in the order in which they are read.

    Args:
        tuning: what was found.
        top: rows of the Pareto front at most.
    """
    yield evidence_table(tuning)
    if tuning.checks:
        yield checks_table(tuning)
    if len(tuning.front) > 1:
        yield front_table(tuning, top)
    yield from sentences(tuning)


def html(tuning: Tuning) -> str:
    """The same for a notebook."""
    from html import escape

    best = [one for one in (tuning.default, tuning.own, tuning.best) if one is not None]
    frame = tuning.to_pandas()
    shown = frame[frame["settings"].isin([one.settings for one in best])]
    columns = ["settings", "status", "peak_reserved_bytes", "device_calls", "retries"]
    text = "".join(f"<p>{escape(line)}</p>" for line in sentences(tuning))
    return str(shown[columns].to_html(index=False, na_rep="-")) + text


def evidence_table(tuning: Tuning) -> Table:
    """The defaults, what the trace ran with, and the best, side by side."""
    subject = tuning.subject
    table = _table(f"{subject.device} of {subject.path}: {subject.events:,} events", "settings")
    rows = [("default", tuning.default)]
    if tuning.own is not None:
        rows.append((f"{tuning.own.settings} (as recorded)", tuning.own))
    if tuning.best not in (tuning.default, tuning.own):
        rows.append((f"{tuning.best.settings} (best)", tuning.best))
    for name, tried in rows:
        table.add_row(cell(name), *_numbers(tried, subject))
    return table


def checks_table(tuning: Tuning) -> Table:
    """The defaults and the best on the other traces."""
    table = _table("On other traces", "trace", "settings")
    for check in tuning.checks:
        name = f"{check.subject.path}, {check.subject.device}, {check.subject.events:,} events"
        table.add_row(cell(name), "default", *_numbers(check.default, check.subject))
        if check.best.settings:
            table.add_row("", "best", *_numbers(check.best, check.subject))
    return table


def front_table(tuning: Tuning, top: int) -> Table:
    """Less memory for more device calls, and the other way round."""
    front = tuning.front[:top]
    left = len(tuning.front) - len(front)
    table = _table(
        "Pareto front of peak reserved and device calls"
        + (f": {top} of {len(tuning.front)}" if left else ""),
        "settings",
    )
    for tried in front:
        table.add_row(cell(tried.settings or "default"), *_numbers(tried, tuning.subject))
    return table


def _table(title: str, *left: str) -> Table:
    from rich.table import Table

    table = Table(title=cell(title), title_justify="left")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in ("peak reserved", "over peak live", "device calls", "retries"):
        table.add_column(name, justify="right")
    table.add_column("outcome", overflow="fold")
    return table


def _numbers(tried: Tried, subject: Subject) -> list[str]:
    outcome = tried.outcome
    status = STATUS.get(outcome.status, outcome.status)
    if not outcome.measured:
        return ["-", "-", "-", "-", status]
    row = subject.row(outcome)
    over = outcome.peak_reserved - subject.peak_live
    return [
        format_bytes(outcome.peak_reserved),
        f"{format_bytes(over)} ({over / subject.peak_live:.1%})" if row is None else "-",
        f"{outcome.device_calls:,}",
        f"{outcome.known_retries:,}",
        status if row is None else f"{status} at row {row:,}",
    ]


def sentences(tuning: Tuning) -> list[str]:
    """The answer, what it rests on, and what to know beside; the answer first."""
    found = [_answer(tuning)]
    if tuning.subject.as_if:
        found.append(
            f"As-if replay: {tuning.subject.device} traffic through an allocator for GPUs. It "
            "shows what settings do to such traffic, not what to deploy."
        )
    if tuning.export is not None:
        found += ["", tuning.export, ""]
    found.append(_basis(tuning))
    found += [f"Warning: {sentence}." for sentence in tuning.warnings]
    found += _costs(tuning)
    crashed = [one for one in tuning.tried if not one.outcome.measured]
    found += [
        f"{one.settings or 'default'} has no result: {one.outcome.reason}." for one in crashed
    ]
    return [masked(one) for one in (*found, *tuning.subject.notes, *tuning.notes)]


def _answer(tuning: Tuning) -> str:
    best, default = tuning.best.settings, tuning.default.outcome
    tried = f"{len(tuning.tried):,} settings tried"
    match tuning.verdict:
        case "nothing_completes":
            return (
                f"No setting helps: with each of {tried} the device's {_capacity(tuning)} are not "
                "enough."
            )
        case "no_setting_helps":
            return (
                f"No setting helps: of {tried} none saves more than {ENOUGH:.0%} of "
                f"{tuning.objective.text} against the default (the best saves "
                f"{max(tuning.most_gained, 0.0):.1%})."
            )
        case "gain_does_not_hold":
            failing = next(check for check in tuning.checks if not check.holds)
            return (
                f"No setting helps: {best} {_gains(tuning.gain, tuning)} here, but "
                f"{_check_words(failing, tuning)} {failing.subject.path}."
            )
    if not default.completed:
        return f"{best} completes, where the default runs out of memory."
    return f"{best} {_gains(tuning.gain, tuning)} against the default."


def _gains(found: float | None, tuning: Tuning) -> str:
    if not tuning.default.outcome.completed:
        return "completes"
    return f"saves {found or 0.0:.1%} of {tuning.objective.text}"


def _check_words(check: Check, tuning: Tuning) -> str:
    if check.gain is None:
        return f"is {STATUS.get(check.best.outcome.status, check.best.outcome.status)} on"
    return f"{_gains(check.gain, tuning)} on"


def _capacity(tuning: Tuning) -> str:
    capacity = tuning.subject.capacity
    return str(capacity) + {
        "trace": " (from the trace)",
        "default": " (no capacity is known: --capacity says another)",
        "option": "",
    }.get(capacity.source, "")


def _basis(tuning: Tuning) -> str:
    refused = tuning.count("out_of_memory")
    rules = f", {tuning.recorded.rules}" if tuning.recorded.rules else ""
    return (
        f"{len(tuning.tried):,} settings replayed on a simulated device of {_capacity(tuning)}, "
        f"completion {tuning.options.completion}{rules}; {refused:,} of them ran out of memory. "
        f"Peak of live memory: {format_bytes(tuning.subject.peak_live)}."
    )


def _costs(tuning: Tuning) -> list[str]:
    """What the best settings cost, and what else was cheaper."""
    default, best = tuning.default, tuning.best
    found = []
    if best is not default and default.outcome.completed:
        more = best.outcome.device_calls / max(default.outcome.device_calls, 1)
        if more > 2:
            found.append(
                f"The best settings make {more:.1f} times as many device calls as the default; on "
                "a real device each takes time, which a replay does not price."
            )
    if tuning.cheaper_with_retries is not None:
        found.append(
            f"{tuning.cheaper_with_retries.settings} has less, but retries more often than the "
            "default: it waits for the device and releases everything cached each time."
        )
    if tuning.own is not None and best.value is not None and best is not tuning.own:
        value = tuning.own.value
        if value is not None and value <= best.value * (1 + ENOUGH):
            found.append("What the trace ran with is as good: there is nothing to change.")
    if tuning.verdict == "helps" and tuning.own is best:
        found.append("The trace ran with the best settings already: there is nothing to change.")
    if tuning.verdict == "helps" and tuning.needs_new_pytorch:
        keys = tuning.needs_new_pytorch
        found.append(
            f"PyTorch takes {' and '.join(keys)} since 2026 and stops at such a string before; for "
            f"an older one search again with {' '.join(f'--without {key}' for key in keys)}."
        )
    if tuning.recorded.rules:
        found.append(
            f"{tuning.recorded.rules} belongs to the replay of this trace and is no setting of "
            "PyTorch's."
        )
    return found


def follow_up(tuning: Tuning, trace: str) -> Sequence[str]:
    """The words of the next useful command."""
    best = [f"caching:{tuning.best.settings}"] if tuning.verdict == "helps" else []
    allocators = [word for one in ("caching", *best) for word in ("-a", one)]
    return ["wb", "fit", trace, *allocators]


def cell(text: str) -> str:
    """The same in a table, where it is no markup."""
    from rich.markup import escape

    return escape(masked(text))
