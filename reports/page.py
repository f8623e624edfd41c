"""The comparison page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import PurePath
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from workbench.common.version import __version__
from workbench.replay.results import CellResult
from workbench.reports import formats, tables
from workbench.reports.answer import answer
from workbench.reports.cells import Cell, by_trace, name_cells
from workbench.reports.charts import discover

# Says, near the beginning of the file, that a page is ours and may be replaced by a newer one.
GENERATOR = '<meta name="generator" content="Allocator Workbench">'


def page(results: Sequence[CellResult]) -> str:
    """The page that compares `results`, as HTML; the same for the same results.

    Scripts run only if their hash is in the page's security policy, and nothing may be loaded from
    anywhere, so that no text from a file can do harm even if it were not escaped.

    Args:
        results: at least one.

    Raises:
        BrokenFileError: a result lacks something the page needs.
    """
    cells = name_cells(results)
    groups = by_trace(cells)
    figures, sections = _charts(cells)
    scripts = [get_plotlyjs(), _asset("page.js")]
    written_by = __version__
    title = f"Allocators compared: {', '.join(groups)}"
    body = [
        "<header><p class='kicker'>Allocator Workbench</p>",
        f"<h1>{formats.markup(_heading(groups))}</h1></header>",
        "<main>",
        *(_group(trace, members, len(groups) > 1) for trace, members in groups.items()),
        tables.legend(cells),
        tables.warnings(cells),
        *sections,
        _what_was_run(groups),
        "</main>",
        f"<footer>Written by Allocator Workbench {formats.markup(written_by)}.</footer>",
    ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            GENERATOR,
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">',
            f"<title>{formats.markup(title, 120)}</title>",
            f"<style>\n{_asset('page.css')}</style>\n</head>\n<body>",
            *body,
            f'<script type="application/json" id="figures">{_json(figures)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def _heading(groups: dict[str, list[Cell]]) -> str:
    """The program's name where there is one trace, else how many."""
    if len(groups) > 1:
        return f"Allocators compared on {len(groups)} traces"
    (trace, members), *_ = groups.items()
    program = members[0].info["trace"]["program"]
    return f"Allocators compared on {PurePath(str(program[0])).name if program else trace}"


def _group(trace: str, cells: Sequence[Cell], several: bool) -> str:
    info = cells[0].info["trace"]
    facts = [
        f"{formats.count(info['events'])} events on {formats.markup(info['device'])}",
        f"{formats.duration(info['duration_ns'])} recorded",
        f"{formats.count(info['step_count'])} steps",
        f"live memory peaks at {formats.size(info['peak_live_bytes'])}",
    ]
    sentences, remarks = answer(cells)
    heading = f"<h2>{formats.markup(trace)}</h2>" if several else ""
    return (
        f'<section class="answer">{heading}<p class="facts">{" · ".join(facts)}</p>'
        f'<p class="lead">{" ".join(sentences)}</p>'
        f"{_items(remarks, 'remarks')}"
        f"{tables.memory(cells)}{tables.time(cells)}{tables.threads(cells)}</section>"
    )


def _items(sentences: Sequence[str], style: str) -> str:
    told = "".join(f"<li>{sentence}</li>" for sentence in sentences)
    return f'<ul class="{style}">{told}</ul>' if told else ""


def _charts(cells: Sequence[Cell]) -> tuple[dict[str, Any], list[str]]:
    """The figures by name, and the sections of the page they are drawn in."""
    figures: dict[str, Any] = {}
    sections = []
    for chart in discover():
        name = chart.__name__.rpartition(".")[2].replace("_", "-")
        heading = f'<h2 id="{name}-title">{formats.markup(chart.TITLE)}</h2>'
        left_out = chart.needs(cells)
        if left_out:
            sections.append(
                f'<section class="chart">{heading}'
                f'<p class="left-out">Left out: {formats.markup(left_out)}</p></section>'
            )
            continue
        drawing = chart.figure(cells)
        figures[name] = drawing.figure
        sections.append(
            f'<section class="chart">{heading}<p class="key">{formats.markup(drawing.key)}</p>'
            f"{_choices(name, drawing.choices)}"
            f'<figure aria-labelledby="{name}-title" aria-describedby="{name}-words">'
            f'<div class="plot" id="{name}" style="height:{drawing.height}px">'
            "<noscript>The chart needs JavaScript; the words below say what it shows.</noscript>"
            f'</div><figcaption id="{name}-words"><details><summary>In words</summary>'
            f"<p>{formats.markup(drawing.words, 20_000)}</p></details></figcaption>"
            "</figure></section>"
        )
    return figures, sections


def _choices(name: str, choices: Sequence[str]) -> str:
    """Buttons to choose what the chart `name` shows; none where there is nothing to choose."""
    if len(choices) < 2:
        return ""
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{formats.markup(choice)}"'
        f"{' checked' if choice == choices[0] else ''}>{formats.markup(choice)}</label>"
        for choice in choices
    )
    return f'<fieldset class="choices"><legend>State</legend>{buttons}</fieldset>'


def _what_was_run(groups: dict[str, list[Cell]]) -> str:
    parts = ['<section class="run"><h2>What was run on what</h2>']
    for trace, cells in groups.items():
        parts.append(f"<h3>Trace {formats.markup(trace)}</h3>{tables.what_was_replayed(cells)}")
        parts += [tables.what_was_run(cell) for cell in cells]
    everything = [cell for cells in groups.values() for cell in cells]
    parts.append(f"<h3>Machine and versions</h3>{tables.machines(everything)}</section>")
    return "".join(parts)


def _asset(name: str) -> str:
    return resources.files("workbench.reports").joinpath("assets", name).read_text("utf-8")


def _policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    # Plotly writes its style sheet itself, and saves pictures through data and blob addresses.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever text it holds."""
    text = json.dumps(value, default=_array, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _array(value: Any) -> dict[str, str]:
    """A numpy array as Plotly's typed array: exact, and a third shorter than digits."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a figure holds a {type(value).__name__}, which is not JSON")
    exact = np.ascontiguousarray(value, np.dtype("<f8"))
    return {"dtype": "f8", "bdata": base64.b64encode(exact.tobytes()).decode()}
