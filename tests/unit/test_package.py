"""What the package offers, and how the command line speaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import workbench


def wb(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``wb`` as a user would, in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "workbench", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONSAFEPATH": "1", "COLUMNS": "120", "NO_COLOR": "1"},
        timeout=120,
        check=False,
    )


def test_the_public_names_are_these() -> None:
    functions = ["fit", "import_file", "include_folder"]
    functions += ["mark_step", "record", "replay", "tune", "why"]
    assert workbench.__all__ == ["WorkbenchError", "__version__", *functions]
    for name in workbench.__all__:
        assert getattr(workbench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'recrod'"):
        workbench.recrod  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, workbench; print([m for m in ('numpy','pyarrow','torch') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"


def test_help_names_every_command_and_each_has_help_with_an_example() -> None:
    overview = wb("--help")
    assert overview.returncode == 0
    commands = [path.stem for path in Path(workbench.__path__[0], "commands").glob("[a-z]*.py")]
    assert {"fit", "record", "replay", "report", "tune"} <= set(commands)
    for command in commands:
        assert command in overview.stdout
        help_text = wb(command, "--help")
        assert help_text.returncode == 0
        assert f"wb {command}" in help_text.stdout


def test_the_version_is_printed() -> None:
    assert wb("--version").stdout == f"wb {workbench.__version__}\n"


def test_an_unknown_command_is_wrong_use() -> None:
    result = wb("repaly")
    assert result.returncode == 2
    assert "repaly" in result.stderr


def test_an_error_is_one_sentence_and_a_traceback_only_with_debug(tmp_path: Path) -> None:
    plain = wb("info", "missing.parquet", folder=tmp_path)
    assert plain.returncode == 2
    assert plain.stderr.count("\n") == 1
    assert "missing.parquet" in plain.stderr
    debug = wb("--debug", "info", "missing.parquet", folder=tmp_path)
    assert debug.returncode == 2
    assert "Traceback" in debug.stderr


def test_the_folder_of_sources_says_what_it_is(tmp_path: Path) -> None:
    sources = tmp_path / "workbench"
    installed = Path(workbench.__path__[0])
    (sources / "common").mkdir(parents=True)
    for name in ("__init__.py", "common/__init__.py", "common/version.py"):
        (sources / name).write_bytes((installed / name).read_bytes())
    shown = subprocess.run(
        [sys.executable, "-c", "import workbench"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={name: text for name, text in os.environ.items() if name != "PYTHONSAFEPATH"},
        check=False,
    )
    assert shown.returncode == 1
    assert "not the installed package; run Python in another folder" in shown.stderr
