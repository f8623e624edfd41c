"""Files that commands write: never one that is read, never a device, and what a link points to."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from workbench.common.errors import UsageError
from workbench.common.files import replaced_file, replaced_folder
from workbench.common.outputs import check_output, output_file, stacks_beside


@pytest.mark.parametrize("how", ["same", "dotted", "symbolic", "hard"])
def test_an_input_is_never_replaced(tmp_path: Path, how: str) -> None:
    (tmp_path / "folder").mkdir()
    source = tmp_path / "run.parquet"
    source.write_text("content")
    output = tmp_path / "other.parquet"
    if how == "same":
        output = source
    elif how == "dotted":
        output = tmp_path / "folder" / ".." / "run.parquet"
    elif how == "symbolic":
        output.symlink_to(source)
    else:
        output.hardlink_to(source)
    with pytest.raises(UsageError, match=r"is read by this command .* with --html"):
        check_output(output, force=True, inputs=["s3://bucket/x", str(source)], option="--html")


def test_stacks_belong_to_the_trace_that_is_read_or_written(tmp_path: Path) -> None:
    stacks = tmp_path / "run.stacks.parquet"
    stacks.write_text("content")
    with pytest.raises(UsageError, match=r"run.stacks.parquet is read by this command"):
        check_output(stacks, force=True, inputs=[tmp_path / "run.parquet"])
    with pytest.raises(UsageError, match=r"run.stacks.parquet is read by this command"):
        check_output(tmp_path / "run.parquet", force=False, inputs=[stacks], is_trace=True)
    check_output(tmp_path / "run.parquet", force=False, inputs=[stacks])
    # Those of an earlier import of the same file are no part of that file.
    check_output(
        tmp_path / "run.parquet", force=False, inputs=[tmp_path / "run.pickle"], is_trace=True
    )


def test_what_lies_in_a_folder_that_is_read_is_not_replaced(tmp_path: Path) -> None:
    cell = tmp_path / "results" / "cell"
    cell.mkdir(parents=True)
    for name in ("cell.json", "counts.parquet", "report.html"):
        (cell / name).write_text("content")
    for name in ("cell.json", "counts.parquet"):
        with pytest.raises(UsageError, match="is read by this command"):
            check_output(cell / name, force=True, inputs=[tmp_path / "results"])
    check_output(cell / "report.html", force=True, inputs=[tmp_path / "results"])


@pytest.mark.parametrize("what", ["device", "pipe", "socket", "folder", "link to a pipe"])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, what: str) -> None:
    target = Path("/dev/null") if what == "device" else tmp_path / "it"
    if what == "folder":
        target.mkdir()
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(target))
    elif what == "pipe":
        os.mkfifo(target)
    elif what == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        target.symlink_to("pipe")
    before = target.lstat()
    word = "is a folder" if what == "folder" else "is a device, pipe or socket"
    with pytest.raises(UsageError, match=word):
        check_output(target, force=True)
    with pytest.raises(UsageError, match=word), replaced_file(target) as part:
        part.write_text("new")
    if what != "folder":
        with pytest.raises(UsageError, match=word), replaced_folder(target):
            pass
    assert target.lstat() == before
    assert not list(tmp_path.glob(".*"))


def test_what_became_a_pipe_while_the_file_was_written_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "it"

    def replace_what_changes() -> None:
        with replaced_file(target) as part:
            part.write_text("new")
            os.mkfifo(target)

    with pytest.raises(UsageError, match="pipe"):
        replace_what_changes()
    assert target.is_fifo()
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "run.parquet"
    link.symlink_to("folder/real.parquet")
    for text in ("new", "newer"):
        check_output(link, force=True)
        with output_file(link) as part:
            part.write_text(text)
        assert link.is_symlink()
        assert (tmp_path / "folder" / "real.parquet").read_text() == text
    assert stacks_beside(link) == tmp_path / "folder" / "real.stacks.parquet"
    around = tmp_path / "around"
    around.symlink_to("around")
    with pytest.raises(UsageError, match="leads nowhere"):
        check_output(around, force=True)


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not UTF-8"):
        check_output(tmp_path / "b\udcff.parquet", force=True)
    check_output(tmp_path / "fine", force=False, inputs=["x" * 5000, "a\0b", ""])
    with pytest.raises(UsageError, match="cannot write"), output_file(tmp_path / ("x" * 300)):
        (tmp_path / ("x" * 300)).write_text("")
