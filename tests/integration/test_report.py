"""``wb report`` as a user meets it: exit codes and one sentence for whatever is wrong."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def wb_report(
    *arguments: str | Path, folder: Path, file_limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    return subprocess.run(
        [sys.executable, "-m", "workbench", "report", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )


def refused(run: subprocess.CompletedProcess[str], *told: str, code: int = 2) -> None:
    assert run.returncode == code, run.stderr
    message = run.stderr.strip()
    assert message.startswith("wb: ")
    assert "\n" not in message
    for part in told:
        assert part in message


def test_the_page_is_written_and_named(tmp_path: Path, synthetic_results: Path) -> None:
    run = wb_report(synthetic_results, "-o", "page.html", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("page.html: ")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "results"]


def test_a_page_is_replaced_but_nothing_else_is(tmp_path: Path, synthetic_results: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("not a page")
    refused(wb_report(synthetic_results, folder=tmp_path), "report.html", "--force")
    assert target.read_text() == "not a page"
    assert wb_report(synthetic_results, "--force", folder=tmp_path).returncode == 0
    assert wb_report(synthetic_results, folder=tmp_path).returncode == 0


def test_a_folder_that_is_missing_or_holds_no_result(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    refused(wb_report("nowhere", folder=tmp_path), "nowhere", "no such folder")
    refused(wb_report("empty", folder=tmp_path), "empty", "holds no result")
    refused(wb_report("file", folder=tmp_path), "file", "not a folder with results")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("[]", "format_version is missing"),
        ('{"format_version": 99}', "99"),
        ('{"format_version": 1}', "is missing"),
    ],
)
def test_a_broken_cell(
    tmp_path: Path, make_result: Callable[..., Path], content: str, told: str
) -> None:
    (make_result(tmp_path) / "cell.json").write_text(content)
    refused(wb_report("caching", folder=tmp_path), "cell.json", told)
    assert not (tmp_path / "report.html").exists()


def test_a_truncated_table(tmp_path: Path, make_result: Callable[..., Path]) -> None:
    table = make_result(tmp_path) / "timeline.parquet"
    table.write_bytes(table.read_bytes()[:100])
    refused(wb_report("caching", folder=tmp_path), "timeline.parquet", "not Parquet")


def test_a_place_that_cannot_be_written(tmp_path: Path, synthetic_results: Path) -> None:
    refused(wb_report(synthetic_results, "-o", "no/page.html", folder=tmp_path), "does not exist")
    refused(wb_report(synthetic_results, "-o", tmp_path, folder=tmp_path), "is a folder")
    # A file system that takes no new files, from root neither.
    refused(wb_report(synthetic_results, "-o", "/proc/page.html", folder=tmp_path), "cannot write")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(tmp_path: Path, synthetic_results: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    refused(wb_report(synthetic_results, "-o", "locked/page.html", folder=tmp_path), "locked")


def test_a_full_disk_leaves_the_old_page(tmp_path: Path, synthetic_results: Path) -> None:
    assert wb_report(synthetic_results, folder=tmp_path).returncode == 0
    before = (tmp_path / "report.html").read_bytes()
    # A limit on the size of files fails in the same place as a full disk does.
    run = wb_report(synthetic_results, folder=tmp_path, file_limit=1_000_000)
    refused(run, "cannot write report.html", "make room", code=1)
    assert (tmp_path / "report.html").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_no_result_named(tmp_path: Path) -> None:
    assert wb_report(folder=tmp_path).returncode == 2
