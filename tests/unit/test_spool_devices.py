"""Events of devices, from spool to trace: two records each, and what the hook says beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from spool_maker import (
    CUDA,
    PINNED,
    Segment,
    Spool,
    alloc,
    detail,
    device,
    free,
    record,
)

from workbench.recorders.spool import ConvertedTrace, convert_process
from workbench.recorders.trace import open_trace

COLUMNS = ("event", "id", "size", "device", "stream", "pool", "duration_ns", "value")


def convert(spool: Spool, output: Path) -> ConvertedTrace:
    return convert_process(spool.folder, output, metadata={})


def rows_of(path: Path) -> list[dict[str, Any]]:
    (file,) = open_trace(path).files
    return [row for batch in file.batches() for row in batch.to_pylist()]


def shown(path: Path, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in columns or COLUMNS) for row in rows_of(path)]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "process-4321-0")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "run.parquet"


def test_an_event_has_device_stream_pool_duration_and_value(spool: Spool, output: Path) -> None:
    spool.write(
        [
            Segment(
                0,
                [
                    device(10, "alloc", address=64, size=100, stream=3, pool=2, duration=20),
                    device(40, "oom", CUDA + 1, size=7, stream=1, value=0, duration=2),
                    device(50, "free", address=64, duration=4),
                    device(60, "synchronize", stream=-1, duration=8),
                    device(70, "set_fraction", value=500_000),
                ],
            )
        ]
    )
    done = convert(spool, output)
    assert shown(output) == [
        ("alloc", 0, 100, "cuda:0", 3, 2, 10, None),
        ("oom", -1, 7, "cuda:1", 1, 0, 1, 0),
        ("free", 0, 100, "cuda:0", 3, 2, 2, None),
        ("synchronize", -1, 0, "cuda:0", -1, 0, 4, None),
        ("set_fraction", -1, 0, "cuda:0", 0, 0, None, 500_000),
    ]
    assert done.metadata["recorded"] == ["cuda:0", "cuda:1"]


def test_addresses_are_of_the_cpu_or_pinned_or_of_cuda(spool: Spool, output: Path) -> None:
    spool.write(
        [
            Segment(
                0,
                [
                    alloc(1, 64, 1),
                    device(2, "alloc", PINNED, address=64, size=2),
                    device(3, "alloc", CUDA, address=64, size=3),
                    device(4, "alloc", CUDA + 1, address=128, size=4),
                    device(5, "free", CUDA, address=64),
                    free(6, 64),
                    device(7, "free", PINNED, address=64),
                    device(8, "free", CUDA, address=128),
                ],
            )
        ]
    )
    done = convert(spool, output)
    assert shown(output, "event", "id", "size", "device") == [
        ("alloc", 0, 1, "cpu"),
        ("alloc", 1, 2, "pinned"),
        ("alloc", 2, 3, "cuda:0"),
        ("alloc", 3, 4, "cuda:1"),
        ("free", 2, 3, "cuda:0"),
        ("free", 0, 1, "cpu"),
        ("free", 1, 2, "pinned"),
        ("free", 3, 4, "cuda:1"),
    ]
    assert (done.unmatched_frees, done.reused_addresses) == (0, 0)


def test_a_late_free_is_looked_for_on_its_own_device(spool: Spool, output: Path) -> None:
    spool.write(
        [
            Segment(0, [device(10, "alloc", address=64, size=8), alloc(11, 64, 5)]),
            Segment(1, [device(20, "alloc", address=64, size=16), device(90, "free", address=64)]),
            Segment(2, [free(21, 64), device(22, "free", address=64)]),
        ]
    )
    done = convert(spool, output)
    assert shown(output, "event", "id", "device") == [
        ("alloc", 0, "cuda:0"),
        ("alloc", 1, "cpu"),
        ("free", 0, "cuda:0"),
        ("alloc", 2, "cuda:0"),
        ("free", 1, "cpu"),
        ("free", 2, "cuda:0"),
    ]
    assert (done.reused_addresses, done.unmatched_frees) == (0, 0)


def test_completions_are_of_blocks_that_other_streams_used(spool: Spool, output: Path) -> None:
    spool.write(
        [
            Segment(
                0,
                [
                    device(1, "alloc", address=64, size=8, stream=1),
                    device(2, "alloc", address=128, size=9, stream=1),
                    device(3, "record_stream", address=64, stream=2),
                    device(4, "record_stream", address=128, stream=1),
                    device(5, "record_stream", address=999, stream=2),
                    device(6, "free", address=64),
                    device(7, "free", address=128),
                    device(8, "free_completed", address=128),
                    device(9, "free_completed", address=64),
                    device(10, "alloc", address=64, size=10),
                    device(11, "free_completed", address=64),
                ],
            )
        ]
    )
    convert(spool, output)
    assert shown(output, "event", "id", "size", "stream") == [
        ("alloc", 0, 8, 1),
        ("alloc", 1, 9, 1),
        ("record_stream", 0, 8, 2),
        ("record_stream", 1, 9, 1),
        ("free", 0, 8, 1),
        ("free", 1, 9, 1),
        ("free_completed", 0, 8, 1),
        ("alloc", 2, 10, 0),
    ]


def test_a_writer_killed_between_the_two_records_loses_that_event_only(
    spool: Spool, output: Path
) -> None:
    spool.write(
        [
            Segment(0, [device(1, "alloc", address=64, size=8), detail(1, CUDA)]),
            Segment(1, [device(2, "alloc", address=128, size=8)[:-1]], spare_bytes=0),
        ]
    )
    done = convert(spool, output)
    assert (done.rows, done.lost, done.complete) == (1, 0, True)


@pytest.mark.parametrize(
    "broken",
    [
        record(2, 7, 64, 8),  # no detail
        detail(0, 0) + record(2, 7, 64, 8),  # the CPU has records of its own
        detail(0, 999) + record(2, 7, 64, 8),
        detail(24, CUDA) + record(2, 7, 64, 8),
        detail(0, CUDA, stream=-2) + record(2, 7, 64, 8),
        detail(0, CUDA, pool=2**31) + record(2, 7, 64, 8),
        detail(0, CUDA) + record(2, 7, 2**64 - 1, 8),
    ],
)
def test_a_record_of_a_device_that_is_none_is_counted(
    spool: Spool, output: Path, broken: bytes
) -> None:
    spool.write([Segment(0, [alloc(1, 1, 1), broken])])
    done = convert(spool, output)
    assert (done.rows, done.complete) == (1, False)
    assert done.lost_reason is not None
    assert "unreadable" in done.lost_reason


def test_samples_and_stacks_have_names(spool: Spool, output: Path) -> None:
    spool.write(
        [
            Segment(
                0,
                [
                    device(1, "sample", address=1, value=70),
                    device(2, "alloc", address=64, size=1, stack=1),
                ],
            )
        ],
        [("label", 1, "free bytes"), ("stack", 1, "main;f")],
    )
    convert(spool, output)
    assert shown(output, "event", "label", "value", "stack_id") == [
        ("sample", "free bytes", 70, None),
        ("alloc", None, None, 0),
    ]


def test_what_the_hook_says_of_devices_is_in_the_metadata(spool: Spool, output: Path) -> None:
    facts: list[tuple[str, dict[str, Any]]] = [
        ("device", {"device": 0, "name": "stub", "capacity": 100, "held_by_others": 3}),
        ("stream", {"device": 0, "number": 1, "priority": -1, "external": False}),
        ("stream", {"device": 1, "number": 1, "priority": 0, "external": True}),
        ("pool", {"device": 0, "number": 1, "id": [0, 1], "kind": "user"}),
        ("allocator", {"backend": "native", "settings": ""}),
        ("peaks", {"device": 0, "requested": 8, "allocated": 512, "active": 512, "reserved": -1}),
        ("note", {"text": "the allocator was changed"}),
        ("device", {"device": "x"}),
    ]
    names = [(kind, number, json.dumps(fact)) for number, (kind, fact) in enumerate(facts)]
    spool.write([Segment(0, [alloc(1, 1, 1)])], [*names, ("peaks", 9, "[")])
    convert(spool, output)
    about = open_trace(output).metadata
    assert about["devices"] == {"cuda:0": {"name": "stub", "capacity": 100, "held_by_others": 3}}
    assert about["streams"]["cuda:1"] == {"1": {"priority": 0, "external": True}}
    assert about["pools"] == {"cuda:0": {"1": {"id": [0, 1], "kind": "user"}}}
    assert about["allocator"] == {"backend": "native", "settings": ""}
    assert about["reported_peaks"]["cuda:0"]["requested"] == 8
    assert about["reported_peaks"]["cuda:0"]["reserved"] is None
    assert about["not_recorded"] == ["the allocator was changed"]
