"""Errors, sizes and files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.common import errors, units
from workbench.common.files import replaced_file, replaced_folder


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("8GiB", 8 * 2**30), ("1.5 MiB", 3 * 2**19), ("2kB", 2000), (" 7 B ", 7)],
)
def test_a_size_is_read_with_its_unit(text: str, size: int) -> None:
    assert units.parse_size(text, "--capacity") == size


@pytest.mark.parametrize("text", ["0", "0GiB", "8Gb", "-1", "", "GiB", "1e9", "8 GiB!"])
def test_what_is_not_a_size_is_refused_with_the_option_and_an_example(text: str) -> None:
    with pytest.raises(errors.UsageError, match=r"--capacity .* is not a size above zero; write"):
        units.parse_size(text, "--capacity")


@pytest.mark.parametrize("text", ["9" * 30, "99999999999TiB", str(2**62)])
def test_a_size_too_large_is_refused_as_that(text: str) -> None:
    with pytest.raises(errors.UsageError, match=r"--capacity .* is too large; it must be below"):
        units.parse_size(text, "--capacity")
    assert units.parse_size(str(2**62 - 1), "--capacity") == 2**62 - 1


@given(st.integers(1, 2**61))
def test_plain_bytes_are_read_exactly(size: int) -> None:
    assert units.parse_size(str(size), "x") == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (5 * 2**30, "5.00 GiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_bytes_are_shown_in_the_largest_binary_unit(size: int, text: str) -> None:
    assert units.format_bytes(size) == text


@pytest.mark.parametrize(("ns", "text"), [(12, "12 ns"), (3.5e6, "3.50 ms"), (2e9, "2.00 s")])
def test_durations_are_shown_in_a_fitting_unit(ns: float, text: str) -> None:
    assert units.format_duration(ns) == text


def test_every_error_says_its_exit_code() -> None:
    assert errors.WorkbenchError("x").exit_code == 1
    assert errors.RunError("x").exit_code == 1
    assert errors.MissingPartError("x").exit_code == 1
    assert errors.UsageError("x").exit_code == 2
    broken = errors.TraceError("a.parquet", "some-rule", "row 3, column id: bad", "record it again")
    assert broken.exit_code == 2
    assert str(broken) == "a.parquet: row 3, column id: bad [some-rule]; record it again"


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")

    def fail_half_way() -> None:
        with replaced_file(target) as part:
            part.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    assert target.read_text() == "old"
    with replaced_file(target) as part:
        part.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "cell.with.dots"
    target.mkdir()
    (target / "old").touch()

    def fail_half_way() -> None:
        with replaced_folder(target) as part:
            (part / "half").touch()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    assert [file.name for file in target.iterdir()] == ["old"]
    with replaced_folder(target) as part:
        (part / "new").touch()
    assert [file.name for file in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
