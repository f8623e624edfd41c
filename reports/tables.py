"""The tables of the page, as HTML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from workbench.replay.results import (
    driver_ns,
    driver_time_is_model,
    rounding_bytes,
    rounding_share,
    takes_memory_itself,
)
from workbench.reports import formats
from workbench.reports.cells import AS_IF, MODEL, REFERENCE, Cell

_MARK_MEANING = {
    AS_IF: "as-if replay: recorded on another kind of device; shown, never recommended from",
    MODEL: "the memory came from a model, of a device or of the driver's pool of memory",
    REFERENCE: "PyTorch's own code, compiled against the installed torch; for comparison",
}
_RACE_MEANING = (
    "the recorded threads raced: what was live at once is this run's alone, and its memory is not "
    "compared with others"
)
_SOURCE_MEANING = {
    "ours": "latency of the workbench's own implementation, not of PyTorch's",
    "reference": "latency of PyTorch's own code",
    "hardware": "latency of the hardware",
    "library": "latency of the library's own code",
    "not priced": "calls of the driver take no time in this model",
}
_QUANTILES = (("p50_ns", "p50"), ("p99_ns", "p99"), ("max_ns", "max"))
_KINDS = ("alloc", "free")
STATES = ("cold", "steady")


def badge(word: str, meaning: str, kind: str = "mark") -> str:
    """A small label whose meaning shows on hover and is read aloud."""
    shown = formats.markup(word)
    return f'<span class="badge {kind}" title="{formats.markup(meaning)}">{shown}</span>'


def _marks(cell: Cell) -> list[tuple[str, str]]:
    """The cell's marks, each with its meaning."""
    return [(mark, _MARK_MEANING.get(mark, _RACE_MEANING)) for mark in cell.marks]


def badges(cell: Cell) -> str:
    """The cell's marks as small labels."""
    return "".join(f" {badge(mark, meaning)}" for mark, meaning in _marks(cell))


def memory(cells: Sequence[Cell]) -> str:
    """Peaks and outcomes of the cells of one trace, at least one."""
    heads = (
        *("live requested", "allocated", "reserved", "over live", "unused share", "rounding"),
        "device calls",
    )
    return _table("Peak memory of a cold run", heads, "".join(_memory_row(cell) for cell in cells))


def time(cells: Sequence[Cell]) -> str:
    """Latency and throughput of the cells of one trace, cold and steady; empty if untimed."""
    rows = "".join(_time_row(cell, state) for cell in cells for state in STATES)
    if not rows:
        return ""
    heads = (f"{kind} {title}" for kind in _KINDS for _, title in _QUANTILES)
    return _table("Time of one call", (*heads, "events per second"), rows) + _first_touch(cells)


def _first_touch(cells: Sequence[Cell]) -> str:
    """Whose cold calls leave memory untouched; empty where all or none do."""
    host = [c for c in cells if c.info["backend"]["name"] == "host" and c.latencies("cold")]
    without = [cell for cell in host if takes_memory_itself(cell.info["memory"])]
    if not without or len(without) == len(host):
        return ""
    names = ", ".join(formats.markup(cell.label) for cell in without)
    return (
        '<p class="key">Cold latencies differ in what is in them: memory of the backend host is '
        f"touched within the call that takes it, and {names} may leave that to the program's first "
        "use of it. Compare the steady ones.</p>"
    )


# So many threads are shown of a cell; cell.json has more.
_SHOWN_THREADS = 8


def threads(cells: Sequence[Cell]) -> str:
    """Steady latency by recorded thread; empty where none was told apart."""
    rows = "".join(row for cell in cells for row in _thread_rows(cell))
    if not rows:
        return ""
    heads = (f"{kind} {title}" for kind in _KINDS for _, title in _QUANTILES)
    waits = ("calls that waited for a lock", "their time")
    return _table("Time of one call by recorded thread, steady", (*heads, *waits), rows)


def _thread_rows(cell: Cell) -> Iterable[str]:
    found = cell.threads("steady")

    def calls(number: str) -> float:
        return float(sum(found[number].get(kind, {}).get("count", 0) for kind in _KINDS))

    for number in sorted(found, key=calls, reverse=True)[:_SHOWN_THREADS]:
        thread = found[number]
        numbers = [
            _spread(thread.get(kind, {}).get(quantile), formats.duration)
            for kind in _KINDS
            for quantile, _ in _QUANTILES
        ]
        wait = thread["lock_wait"]
        numbers += [formats.median_count(wait["count"]), formats.duration(wait["total_ns"])]
        yield _row(cell, f" <small>thread {formats.markup(number)}</small>", numbers)


def _table(title: str, heads: Iterable[str], rows: str) -> str:
    numbers = "".join(f'<th scope="col" class="number">{head}</th>' for head in heads)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table>'
        f"<caption>{title}</caption>"
        f'<thead><tr><th scope="col">allocator</th>{numbers}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(cell: Cell, after_name: str, numbers: Iterable[str]) -> str:
    body = "".join(f'<td class="number">{number}</td>' for number in numbers)
    name = f"{_swatch(cell)}{formats.markup(cell.label)}{after_name}"
    return f'<tr><th scope="row">{name}</th>{body}</tr>'


def _swatch(cell: Cell) -> str:
    return f'<span class="swatch {cell.shape}" style="--c:{cell.colour}"></span>'


def _memory_row(cell: Cell) -> str:
    numbers = _memory_numbers(cell)
    ended = _ended(cell)
    below = f'<tr class="ended"><td colspan="{1 + len(numbers)}"><div>{ended}</div></td></tr>'
    return _row(cell, badges(cell), numbers) + (below if ended else "")


def _memory_numbers(cell: Cell) -> tuple[str, ...]:
    if not cell.was_measured:
        return (formats.NOT_MEASURED,) * 7
    memory, reserved = cell.info["memory"], cell.peak("reserved")
    unused = formats.NOT_MEASURED if reserved == 0 else formats.share(memory.get("unused_share"))
    return (
        formats.size(cell.peak("live_requested")),
        formats.size(cell.peak("allocated")),
        f"<strong>{formats.size(reserved)}</strong>{_growth(cell)}",
        formats.above(reserved, cell.live_peak),
        unused,
        _rounding(memory),
        formats.count(cell.driver_calls) + _driver_time_below(cell),
    )


def _driver_time_below(cell: Cell) -> str:
    """What a device's driver took for the calls; nothing where there is no device."""
    memory = cell.info.get("memory") or {}
    took = driver_ns(memory)
    if took is not None:
        text = f"driver {formats.duration(took)}"
        text += ", a model" if driver_time_is_model(memory) else ""
    elif cell.info["backend"]["is_model"]:
        text = "not priced"
    else:
        return ""
    return f'<span class="spread">{text}</span>'


def _rounding(memory: dict[str, Any]) -> str:
    """The share of allocated bytes that nobody asked for, and below it the bytes."""
    share, bytes_ = rounding_share(memory), rounding_bytes(memory)
    if not share:
        return formats.share(share)
    return f'{formats.share(share)}<span class="spread">{formats.size(bytes_)}</span>'


def _growth(cell: Cell) -> str:
    """Where the allocator does not tell what it holds: by how much the process grew."""
    grown = (cell.info.get("memory") or {}).get("rss_growth_bytes")
    if cell.peak("reserved") is not None or grown is None:
        return ""
    return f'<span class="spread">resident growth {formats.size(grown)}, from outside</span>'


def _time_row(cell: Cell, state: str) -> str:
    latencies, throughput = cell.latencies(state), cell.throughput(state)
    if not latencies and not throughput:
        return ""
    numbers = [
        _spread(latencies.get(kind, {}).get(quantile), formats.duration)
        for kind in _KINDS
        for quantile, _ in _QUANTILES
    ]
    numbers.append(_spread(throughput.get("events_per_s"), formats.rate))
    source = cell.latency_source
    meaning = _SOURCE_MEANING.get(source or "")
    whose = f" {badge(f'latency: {source}', meaning)}" if meaning else ""
    return _row(cell, f" <small>{state}</small>{badges(cell)}{whose}", numbers)


def _spread(interval: dict[str, Any] | None, text: Any) -> str:
    """The median, and below it the interval over processes where there is one."""
    if not interval:
        return "not measured"
    median, low, high = (str(text(interval[part])) for part in ("median", "low", "high"))
    if len(interval.get("samples") or ()) < 2 or low == high:
        return median
    number, _, unit = low.rpartition(" ")
    return f'{median}<span class="spread">{number if high.endswith(unit) else low} to {high}</span>'


def _ended(cell: Cell) -> str:
    """How a cell that did not get through ended, as a sentence; empty for one that did."""
    outcome = cell.info["outcome"]
    reason = formats.markup(outcome.get("reason") or "")
    oom = outcome.get("oom")
    if cell.status == "ok":
        return ""
    if cell.status != "out_of_memory" or not oom:
        return f"{badge(cell.status.replace('_', ' '), 'the outcome', 'bad')} {reason}"
    facts = [
        f"reserved {formats.size(oom.get('reserved'))}",
        f"allocated {formats.size(oom.get('allocated'))}",
        f"live {formats.size(oom.get('live_requested'))}",
        f"largest free block {formats.size(oom.get('largest_free'))}",
        f"free on the device {formats.size(oom.get('device_free'))}",
    ]
    return (
        f"{badge('out of memory', 'the outcome', 'bad')} at event "
        f"{formats.count(oom.get('event'))}, asking for {formats.size(oom.get('requested'))}: "
        f"{', '.join(facts)}. The numbers above are of the part before it."
    )


def legend(cells: Sequence[Cell]) -> str:
    """What the marks in the table mean, only those that occur."""
    marks = [mark for cell in cells for mark in _marks(cell)]
    for cell in cells:
        source = cell.latency_source
        if source in _SOURCE_MEANING:
            marks.append((f"latency: {source}", _SOURCE_MEANING[source]))
    told = "".join(
        f"<li>{badge(mark, meaning)} {meaning}</li>" for mark, meaning in dict.fromkeys(marks)
    )
    return f'<ul class="legend">{told}</ul>' if told else ""


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values; the values are HTML already."""
    told = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f"<dl>{told}</dl>"


def what_was_replayed(cells: Sequence[Cell]) -> str:
    """The trace that `cells`, at least one, share."""
    trace = cells[0].info["trace"]
    program = " ".join(str(word) for word in trace["program"])
    lost = f"{formats.count(trace['lost_events'])} events lost"
    return definitions(
        [
            ("trace", f"<code>{formats.markup(trace['path'])}</code>"),
            ("program", f"<code>{formats.markup(program)}</code>"),
            ("device", formats.markup(trace["device"])),
            ("events", formats.count(trace["events"])),
            ("recorded for", formats.duration(trace["duration_ns"])),
            ("steps", formats.count(trace["step_count"])),
            ("peak of live memory", formats.size(trace["peak_live_bytes"])),
            ("complete", "yes" if trace["complete"] else f"no, {lost}"),
            ("fingerprint", f"<code>{formats.markup(trace['fingerprint'], 16)}</code>"),
        ]
    )


def _driver_time(found: dict[str, Any] | None) -> str:
    """How long the driver's calls took, by kind, or would have taken."""
    if found is None:
        return "not priced"
    if found["source"] == "model":
        of = f"a model: calls counted, times their price in profile {found['profile']}"
        return f"{formats.markup(of)}; {_priced(found['kinds'])}"
    return ", ".join(
        f"{formats.markup(kind)} {formats.duration(time['total_ns'])} "
        f"(p50 {formats.duration(time.get('p50_ns'))}, p99 {formats.duration(time.get('p99_ns'))})"
        for kind, time in found["kinds"].items()
    )


def _priced(kinds: dict[str, dict[str, int]]) -> str:
    return ", ".join(
        f"{formats.count(time['count'])} {formats.markup(kind)} "
        f"{formats.duration(time['total_ns'])}"
        for kind, time in kinds.items()
    )


def what_was_run(cell: Cell) -> str:
    """Everything that makes the cell what it is, and the command that runs it again."""
    info = cell.info
    memory, capacity = info.get("memory") or {}, info["capacity"]
    size = "unlimited" if capacity["bytes"] is None else formats.size(capacity["bytes"])
    if capacity["source"] == "device":
        size = "what was free, less a margin"
    harness = info.get("harness") or {}
    pairs = [
        (
            "settings",
            f"<code>{formats.markup(formats.settings(info['allocator']['settings']))}</code>",
        )
        if info["allocator"]["settings"]
        else ("settings", "defaults"),
        ("backend", formats.markup(info["backend"]["name"])),
        ("capacity", f"{size} ({formats.markup(capacity['source'])})"),
        ("completion", formats.markup(info["completion"])),
        ("order of threads", formats.markup(cell.order)),
        ("processes", formats.count(info["processes"])),
    ]
    if memory.get("reserved_meaning"):
        pairs.append(("reserved means", formats.markup(memory["reserved_meaning"])))
    for title, name in (("driver calls", "driver_calls"), ("counters", "counters")):
        if memory.get(name):
            pairs.append((title, _counts(memory[name])))
    if memory.get("driver_calls"):
        pairs.append(("driver time", _driver_time(memory.get("driver_time"))))
    if memory.get("rss_growth_bytes") is not None:
        pairs.append(("growth of resident memory", formats.size(memory["rss_growth_bytes"])))
        faults = f"{formats.count(memory.get('minor_faults'))} minor, "
        pairs.append(("page faults", faults + f"{formats.count(memory.get('major_faults'))} major"))
    if harness:
        clock, event = harness.get("clock_cost_ns"), harness.get("ns_per_event")
        cost = f"{formats.duration(event)} per event, {formats.duration(clock)} per clock reading"
        pairs.append(("cost of measuring", cost))
    pairs.append(("written", formats.markup(info["created"])))
    command = f"<pre><code>{formats.markup(info['command'], 4000)}</code></pre>"
    return (
        f"<details><summary>{_swatch(cell)}"
        f"{formats.markup(cell.label)}{badges(cell)}</summary>{definitions(pairs)}{command}</details>"
    )


def machines(cells: Sequence[Cell]) -> str:
    """The machines and versions, each once, with the cells that ran there if there are several."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        # The load differs from cell to cell; it does not make another machine.
        machine = {k: v for k, v in cell.info["machine"].items() if k != "load_average"}
        key = json.dumps([machine, cell.info["versions"]], sort_keys=True)
        found.setdefault(key, []).append(cell)
    told = []
    for key, members in found.items():
        machine, versions = json.loads(key)
        pairs = [
            (formats.markup(name.removesuffix("_bytes")).replace("_", " "), _value(name, value))
            for name, value in machine.items()
        ]
        pairs += [(formats.markup(k), _value(k, v)) for k, v in versions.items()]
        where = ", ".join(formats.markup(cell.label) for cell in members)
        told.append((f"<p>{where}</p>" if len(found) > 1 else "") + definitions(pairs))
    return "".join(told)


def warnings(cells: Sequence[Cell]) -> str:
    """The warnings of all cells, each once, naming the cells it is of."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        for warning in cell.info["warnings"]:
            found.setdefault(str(warning), []).append(cell.label)
    if not found:
        return ""
    told = "".join(
        f"<li>{formats.markup(warning)}"
        + (
            ""
            if len(labels) == len(cells)
            else f" <small>({formats.markup(', '.join(dict.fromkeys(labels)))})</small>"
        )
        + "</li>"
        for warning, labels in found.items()
    )
    return f'<ul class="warnings" aria-label="Warnings">{told}</ul>'


def _value(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return formats.size(value)
    if value is None:
        return "unknown"
    if isinstance(value, list | dict):
        return formats.markup(json.dumps(value))
    return formats.markup(value)


def _counts(counts: dict[str, Any]) -> str:
    if all(value is None for value in counts.values()):
        return formats.NOT_REPORTED
    told = (
        f"{formats.markup(name).replace('_', ' ')} {formats.count(value)}"
        for name, value in counts.items()
        if value
    )
    return ", ".join(told) or "none"
