"""docs/trace-format.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from trace_maker import write_trace

from workbench.recorders.trace import EVENTS, PHASES, SCHEMA, TraceMetadata
from workbench.recorders.trace.checks import _ORDER_RULES

DOCS = Path(__file__).parents[2] / "docs" / "trace-format.md"
SOURCE = Path(__file__).parents[2] / "recorders" / "trace"


def test_names_of_columns_events_phases_and_metadata_are_there() -> None:
    text = DOCS.read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z_]+)`", text))
    assert {*SCHEMA.names, *EVENTS, *PHASES, *TraceMetadata()} <= documented


def test_every_rule_is_documented_and_no_other() -> None:
    text = DOCS.read_text(encoding="utf-8")
    rules = text[text.index("## Rules") : text.index("## Reading a trace without")]
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", rules, re.MULTILINE))
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCE.glob("*.py"))
    assert documented >= {rule for rule, _, _ in _ORDER_RULES}
    assert documented == {rule for rule in documented if f'"{rule}"' in code}
    raised = set(
        re.findall(r'(?:Error|error)\(\s*(?:self\.path|path),\s*"([a-z]+(?:-[a-z0-9]+)+)"', code)
    )
    assert raised <= documented


EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "run.parquet")
    exec(code, {})
