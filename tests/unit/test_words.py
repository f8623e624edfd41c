"""Names and sentences as they are printed."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.common.words import printable, shell_line, shell_word, some


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 名", "plain é 名"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines", "two\\nlines"),
        (os.fsdecode(b"bad\xff"), "bad\\xff"),
        ("turned \u202e", "turned \\u202e"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_cannot_be_printed_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_words_for_a_shell_are_quoted_only_where_needed() -> None:
    assert shell_line(["wb", "info", "run.parquet"]) == "wb info run.parquet"
    assert shell_word("a b") == "'a b'"
    assert shell_word("it's\n\x1b") == "$'it\\'s\\x0a\\x1b'"


@given(st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name))
def test_any_name_is_a_printable_word(name: bytes) -> None:
    assert shell_word(os.fsdecode(name)).isprintable()


def test_a_shell_reads_the_same_name() -> None:
    names = [b"bad\xff", b"a\nb", "é\u202e1".encode(), b"it's\x1b0\\", bytes(range(1, 256))]
    line = shell_line(map(os.fsdecode, names))
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    assert said.stdout.split(b"\0")[:-1] == names


def test_one_thing_is_not_several() -> None:
    assert [some(count, "row") for count in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]
