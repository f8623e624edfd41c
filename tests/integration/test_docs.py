"""Every command the documentation shows works, in order, in a folder of its own.

The blocks marked ``sh`` of a page run in one shell each page. A block may be left out only by a
comment right above it that begins with ``<!-- not run by the tests:`` and says why.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/*.md")])
BLOCK = re.compile(r"(?P<above>[^\n]*)\n+```(?:sh|console)\n(?P<commands>.*?)^```$", re.S | re.M)
LEFT_OUT = re.compile(r"<!-- not run by the tests: .+ -->$")


def commands(page: Path) -> list[str]:
    """The blocks of `page` that are to be run, in order."""
    return [
        block["commands"]
        for block in BLOCK.finditer(page.read_text(encoding="utf-8"))
        if not LEFT_OUT.match(block["above"])
    ]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_a_block_is_left_out_only_with_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Run\n\n```sh\none\n```\n\n<!-- not run by the tests: too slow -->\n```sh\ntwo\n```\n"
        "<!-- not run by the tests: -->\n```console\nthree\n```\n```python\nfour\n```\n"
    )
    assert commands(page) == ["one\n", "three\n"]


@pytest.mark.torch
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=named)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the commands record, which needs PyTorch")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(commands(page))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / unquote(target)).exists(), f"{target} does not exist"
