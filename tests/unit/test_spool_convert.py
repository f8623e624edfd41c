"""From spool to trace: order, ids, time, names, and spools that are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from spool_maker import Control, Segment, Spool, alloc, context, free, header, mark, record, thread

from workbench.common.errors import BrokenFileError, UsageError
from workbench.recorders.spool import ConvertedTrace, convert_process
from workbench.recorders.trace import open_trace

PROCESS = "process-4321-0"


def rows_of(path: Path) -> list[dict[str, Any]]:
    (file,) = open_trace(path).files
    return [row for batch in file.batches() for row in batch.to_pylist()]


def convert(spool: Spool, output: Path, **options: Any) -> ConvertedTrace:
    return convert_process(spool.folder, output, metadata={"recorded": ["cpu"]}, **options)


def shown(path: Path) -> list[tuple[str, int, int]]:
    return [(row["event"], row["id"], row["size"]) for row in rows_of(path)]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / PROCESS)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "run.parquet"


def test_addresses_become_ids_and_frees_carry_sizes(spool: Spool, output: Path) -> None:
    spool.write(
        [Segment(0, [alloc(10, 64, 100), alloc(20, 128, 7), free(30, 64), alloc(40, 64, 5)])]
    )
    done = convert(spool, output)
    assert shown(output) == [("alloc", 0, 100), ("alloc", 1, 7), ("free", 0, 100), ("alloc", 2, 5)]
    assert [row["time_ns"] for row in rows_of(output)] == [5, 10, 15, 20]
    assert (done.rows, done.lost, done.complete, done.unmatched_frees) == (4, 0, True, 0)


def test_threads_are_merged_by_time_and_ties_by_thread(spool: Spool, output: Path) -> None:
    spool.write(
        [
            Segment(1, [alloc(10, 1, 1), alloc(30, 3, 3)]),
            Segment(0, [alloc(10, 0, 10), alloc(20, 2, 2)]),
        ]
    )
    convert(spool, output)
    assert [(row["thread"], row["size"]) for row in rows_of(output)] == [
        (0, 10),
        (1, 1),
        (0, 2),
        (1, 3),
    ]
    assert open_trace(output).metadata["threads"] == {"0": 1000, "1": 1001}


def test_a_segment_may_be_handed_to_another_thread(spool: Spool, output: Path) -> None:
    spool.write([Segment(3, [alloc(10, 1, 1), thread(20, 5, 77), alloc(30, 2, 2)])])
    convert(spool, output)
    assert [row["thread"] for row in rows_of(output)] == [3, 5]
    assert open_trace(output).metadata["threads"] == {"3": 1003, "5": 77}


def test_context_holds_for_all_threads_from_its_time_on(spool: Spool, output: Path) -> None:
    spool.write(
        [
            Segment(0, [context(5, 1, 0), context(25, 2, 3), context(45, 0, -1)]),
            Segment(1, [alloc(1, 1, 1), alloc(10, 2, 1), alloc(30, 3, 1), alloc(50, 4, 1)]),
        ]
    )
    convert(spool, output)
    assert [(row["phase"], row["step"]) for row in rows_of(output)] == [
        ("other", 0),
        ("forward", 0),
        ("backward", 3),
        ("other", -1),
    ]


def test_without_any_step_seen_there_are_no_steps(spool: Spool, output: Path) -> None:
    spool.control = Control(steps_seen=0)
    spool.write([Segment(0, [alloc(1, 1, 1)])])
    convert(spool, output)
    assert rows_of(output)[0]["step"] == -1


def test_names_become_scopes_stacks_and_labels(spool: Spool, output: Path) -> None:
    module, both = 2 << 16, 2 << 16 | 9
    spool.write(
        [
            Segment(
                0,
                [
                    alloc(1, 1, 1, scope=9, stack=4),
                    alloc(2, 2, 1, scope=module, stack=3),
                    alloc(3, 3, 1, scope=both),
                    alloc(4, 4, 1, scope=77, stack=99),
                    alloc(5, 5, 1),
                    mark(6, 1),
                ],
            )
        ],
        [
            ("op", 9, "aten::bmm"),
            ("module", 2, "blocks.2"),
            ("stack", 3, "main;f"),
            ("stack", 4, "main;g"),
            ("label", 1, "epoch 2"),
        ],
    )
    done = convert(spool, output)
    rows = rows_of(output)
    assert [row["scope"] for row in rows] == [
        "aten::bmm",
        "blocks.2",
        "blocks.2/aten::bmm",
        "unknown",
        None,
        None,
    ]
    assert [row["stack_id"] for row in rows] == [1, 0, None, None, None, None]
    assert (rows[-1]["event"], rows[-1]["label"], rows[-1]["id"]) == ("mark", "epoch 2", -1)
    assert done.stacks_path == output.with_name("run.stacks.parquet")
    import pyarrow.parquet as pq

    assert pq.read_table(done.stacks_path).to_pydict() == {
        "stack_id": [0, 1],
        "stack": ["main;f", "main;g"],
    }
    assert len(open_trace(output.parent).files) == 1


def test_names_cut_in_mid_line_lose_only_that_name(spool: Spool, output: Path) -> None:
    spool.write(
        [Segment(0, [alloc(1, 1, 1, scope=1), alloc(2, 2, 1, scope=2)])],
        [("op", 1, "aten::add"), ("op", 2, "aten::mul")],
    )
    names = spool.folder / "names"
    names.write_bytes(b"[]\n7\n\xff\n" + names.read_bytes()[:-10])
    convert(spool, output)
    assert [row["scope"] for row in rows_of(output)] == ["aten::add", "unknown"]


def test_missing_names_are_no_error(spool: Spool, output: Path) -> None:
    spool.write([Segment(0, [alloc(1, 1, 1)])])
    (spool.folder / "names").unlink()
    assert convert(spool, output).complete


def test_the_end_clock_makes_the_line_longer(spool: Spool, output: Path) -> None:
    spool.control = Control(first=(100, 1000), last=(200, 1050))
    spool.write([Segment(0, [alloc(1100, 1, 1)])])
    convert(spool, output)
    assert rows_of(output)[0]["time_ns"] == 500
    convert(spool, output, end_clock=(1100, 5000))
    assert rows_of(output)[0]["time_ns"] == 4000


@pytest.mark.parametrize("clock_kind", [0, 1])
def test_without_a_second_reading_ticks_are_nanoseconds(
    spool: Spool, output: Path, clock_kind: int
) -> None:
    spool.control = Control(first=(100, 1000), last=(100, 1000), clock_kind=clock_kind)
    spool.write([Segment(0, [alloc(40, 1, 1), alloc(160, 2, 1)])])
    convert(spool, output)
    assert [row["time_ns"] for row in rows_of(output)] == [0, 60]


def test_time_never_goes_backwards(spool: Spool, output: Path) -> None:
    spool.write([Segment(0, [alloc(50, 1, 1), alloc(40, 2, 1), alloc(60, 3, 1)])])
    convert(spool, output)
    assert [row["time_ns"] for row in rows_of(output)] == [25, 25, 30]


def test_a_free_without_its_allocation_is_counted(spool: Spool, output: Path) -> None:
    spool.write([Segment(0, [free(1, 99), alloc(2, 1, 8), free(3, 1), free(4, 1)])])
    done = convert(spool, output)
    assert shown(output) == [("alloc", 0, 8), ("free", 0, 8)]
    assert done.unmatched_frees == 2
    assert done.complete


def test_a_free_stamped_late_by_another_thread_is_put_right(spool: Spool, output: Path) -> None:
    spool.write(
        [
            Segment(0, [alloc(10, 64, 8), alloc(21, 1, 1), alloc(90, 2, 1)]),
            Segment(1, [alloc(20, 64, 16), free(80, 64)]),
            Segment(2, [free(22, 64)]),
        ]
    )
    done = convert(spool, output)
    assert shown(output)[:3] == [("alloc", 0, 8), ("free", 0, 8), ("alloc", 1, 16)]
    assert ("free", 1, 16) in shown(output)
    assert (done.reused_addresses, done.unmatched_frees) == (0, 0)


def test_an_address_reused_with_its_free_unseen_is_counted(spool: Spool, output: Path) -> None:
    spool.write([Segment(0, [alloc(10, 64, 8), alloc(20, 64, 16), free(30, 64)])])
    done = convert(spool, output)
    assert shown(output) == [("alloc", 0, 8), ("alloc", 1, 16), ("free", 1, 16)]
    assert done.reused_addresses == 1


def test_another_threads_free_of_the_new_block_is_not_taken_for_a_late_one(
    spool: Spool, output: Path
) -> None:
    spool.write(
        [
            Segment(0, [alloc(10, 64, 8), alloc(20, 64, 16), alloc(40, 64, 32)]),
            Segment(1, [free(30, 64), free(50, 64)]),
        ]
    )
    done = convert(spool, output)
    assert shown(output)[-1] == ("free", 2, 32)
    assert done.reused_addresses == 1


def test_zero_events(spool: Spool, output: Path) -> None:
    spool.write([])
    assert convert(spool, output).rows == 0
    assert rows_of(output) == []


def test_segments_made_ahead_and_never_used_lose_nothing(spool: Spool, output: Path) -> None:
    spool.write([Segment(0, [alloc(1, 1, 1)])])
    unsigned = bytes(8) + header(2**32 - 1, 1)[8:]
    (spool.folder / "events-1").write_bytes(unsigned + bytes(4096))
    (spool.folder / "events-2").write_bytes(bytes(4096))
    (spool.folder / "events-3").write_bytes(b"")
    (spool.folder / "events-x").write_bytes(b"not one of ours")
    done = convert(spool, output)
    assert (done.rows, done.complete) == (1, True)


def test_a_torn_last_record_never_happened(spool: Spool, output: Path) -> None:
    spool.write([Segment(0, [alloc(1, 1, 1), alloc(2, 2, 2)[:20]], spare_bytes=0)])
    done = convert(spool, output)
    assert (done.rows, done.complete) == (1, True)


def test_a_record_of_unknown_kind_ends_its_segment_and_is_counted(
    spool: Spool, output: Path
) -> None:
    spool.write(
        [
            Segment(0, [alloc(1, 1, 1), record(2, 200), alloc(3, 3, 3)]),
            Segment(1, [alloc(4, 4, 4)]),
        ]
    )
    done = convert(spool, output)
    assert shown(output) == [("alloc", 0, 1), ("alloc", 1, 4)]
    assert (done.lost, done.complete) == (2, False)
    assert done.lost_reason == "2 records of the spool are unreadable"
    assert open_trace(output).metadata["lost_events"] == 2


def test_a_missing_and_a_broken_segment_are_counted(spool: Spool, output: Path) -> None:
    spool.write([Segment(0, [alloc(n, n, n)], sequence=n) for n in (1, 2, 3, 5)])
    (spool.folder / "events-2").write_bytes(b"garbage" * 100)
    (spool.folder / "events-3").write_bytes(header(0, 3)[:40])
    done = convert(spool, output)
    assert done.rows == 2
    assert done.lost_reason is not None
    assert "1 segment files of the spool are missing" in done.lost_reason
    assert "2 segment files of the spool are broken" in done.lost_reason


def test_what_the_hook_lost_is_passed_on(spool: Spool, output: Path) -> None:
    spool.control = Control(stop_reason=1, lost_events=12, zero_byte_allocs=3, forked_children=2)
    spool.write([Segment(0, [alloc(1, 1, 1)])])
    done = convert(spool, output)
    assert (done.lost, done.lost_reason) == (12, "the disk was full")
    metadata = open_trace(output).metadata
    assert (metadata["complete"], metadata["zero_byte_allocs"]) == (False, 3)
    assert metadata["forked_children"] == 2


def test_thousands_of_small_segments(spool: Spool, output: Path) -> None:
    spool.write(
        [Segment(n % 7, [alloc(n + 1, n, 1), free(n + 2, n)], spare_bytes=0) for n in range(3000)]
    )
    seen: list[tuple[int, int]] = []
    done = convert(spool, output, progress=lambda now, total: seen.append((now, total)))
    assert (done.rows, done.unmatched_frees, done.complete) == (6000, 0, True)
    assert seen[-1] == (6000, 6000)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        (b"", "cut short"),
        (b"WBSPOOL1", "cut short"),
        (bytes(4096), "does not begin as one"),
        (b"WBSPOOL1\x09".ljust(4096, b"\0"), "version 9"),
    ],
)
def test_a_broken_control_page_is_an_error(
    spool: Spool, output: Path, content: bytes | None, problem: str
) -> None:
    spool.write([Segment(0, [alloc(1, 1, 1)])])
    control = spool.folder / "control"
    control.unlink() if content is None else control.write_bytes(content)
    with pytest.raises(BrokenFileError, match=problem):
        convert(spool, output)
    assert not output.exists()


def test_an_output_folder_that_is_missing_is_wrong_use(spool: Spool, tmp_path: Path) -> None:
    spool.write([Segment(0, [alloc(1, 1, 1)])])
    with pytest.raises(UsageError, match="cannot be created"):
        convert(spool, tmp_path / "nowhere" / "run.parquet")
