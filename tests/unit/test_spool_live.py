"""Spools worked on while their programs run: every row once, whoever dies where."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from spool_maker import Control, Segment, Spool, alloc, context, device, free

from workbench.common.errors import BrokenFileError
from workbench.recorders.spool import convert_process, live
from workbench.recorders.spool.progress import Progress
from workbench.recorders.trace import open_trace

SEGMENT = 50  # records
NEVER_ENDING = Control(last=(10**9, 10**9), clock_kind=1, steps_seen=1)


def rows_of(path: Path) -> list[dict[str, Any]]:
    (file,) = open_trace(path).files
    return [row for batch in file.batches() for row in batch.to_pylist()]


def program(seed: int, events: int = 1500) -> list[tuple[int, bytes]]:
    """What four threads record, with the thread; times leave no ties between threads."""
    choose = random.Random(seed)
    live_addresses: list[tuple[int, bool]] = []
    addresses = [64 * place for place in range(1, events + 1)]
    found = []
    for ticks in range(1, events + 1):
        thread = choose.randrange(4)
        what = choose.random()
        if what < 0.02:
            content = context(ticks, choose.randrange(5), ticks)
        elif what < 0.55 or not live_addresses:
            address, is_device = addresses.pop(), choose.random() < 0.5
            live_addresses.append((address, is_device))
            if is_device:
                content = device(ticks, "alloc", address=address, size=ticks, stream=thread)
            else:
                content = alloc(ticks, address, ticks, scope=choose.randrange(3))
        elif what < 0.6:
            address, is_device = choose.choice(live_addresses)
            content = device(ticks, "record_stream", address=address, stream=9)
        else:
            address, is_device = live_addresses.pop(choose.randrange(len(live_addresses)))
            addresses.append(address)
            content = device(ticks, "free", address=address) if is_device else free(ticks, address)
        found.append((thread, content))
    return found


def segments_at(records: list[tuple[int, bytes]]) -> list[Segment]:
    """The segments when these records are written; those that are full are closed."""
    done: list[Segment] = []
    current: dict[int, Segment] = {}
    pieces: dict[int, list[bytes]] = {}
    for thread, content in records:
        if len(pieces.get(thread, [])) == SEGMENT or thread not in pieces:
            if thread in current:
                current[thread].closed = True
            pieces[thread] = []
            current[thread] = Segment(thread, pieces[thread], 320, len(done))
            done.append(current[thread])
        pieces[thread].append(content)
    return done


def write(spool: Spool, records: list[tuple[int, bytes]]) -> None:
    """Segments as far as they are by now, without those that were taken away."""
    state = Progress.load(spool.folder) if spool.folder.exists() else Progress()
    before = {path.name for path in spool.folder.glob("events-*")} if state.state else None
    segments = segments_at(records)
    control = spool.folder / "control"
    page = control.read_bytes() if control.exists() else None
    known = getattr(spool, "known", set())
    gone = {number for number in known if before is not None and f"events-{number}" not in before}
    spool.write(segment for segment in segments if segment.sequence not in gone)
    spool.known = known | {segment.sequence for segment in segments}  # type: ignore[attr-defined]
    if page is not None:
        control.write_bytes(page)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "process-4321-0", NEVER_ENDING)


@pytest.fixture
def at_once(tmp_path: Path) -> Any:
    def convert(records: list[tuple[int, bytes]]) -> list[dict[str, Any]]:
        whole = Spool(tmp_path / "process-1-0", NEVER_ENDING)
        whole.write(segments_at(records))
        convert_process(whole.folder, tmp_path / "whole.parquet", metadata={})
        return rows_of(tmp_path / "whole.parquet")

    return convert


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The time of the test, which stands still."""
    now = {"ns": 0}
    monkeypatch.setattr(live, "read_clock", lambda: (now["ns"], now["ns"]))
    monkeypatch.setattr(live, "_MARGIN_NS", 20)
    monkeypatch.setattr(live, "_ROWS_AT_ONCE_IN_RING", 20)
    return now


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_parts_and_of_the_end_are_those_of_one_conversion(
    spool: Spool, at_once: Any, clock: dict[str, int], tmp_path: Path, seed: int
) -> None:
    records = program(seed)
    removed = 0
    for written in range(100, len(records), 137):
        write(spool, records[:written])
        clock["ns"] = written
        removed += live.step(spool.folder, None, set())
    write(spool, records)
    assert removed > 0
    assert Progress.load(spool.folder).parts > 2
    done = convert_process(spool.folder, tmp_path / "run.parquet", metadata={})
    assert rows_of(tmp_path / "run.parquet") == at_once(records)
    assert (done.complete, done.lost_reason, done.unmatched_frees) == (True, None, 0)
    assert live.read_control(spool.folder)["removed_bytes"] == removed


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["progress", "removal", "half a removal"])
@pytest.mark.parametrize("ring", [None, 4000])
def test_a_step_that_is_killed_is_taken_again(
    spool: Spool,
    at_once: Any,
    clock: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    ring: int | None,
) -> None:
    records = program(7)

    def die(*arguments: Any) -> None:
        if where == "half a removal":
            below, others = arguments[1].finished()
            number = next(n for n in arguments[2] if n < below or n in others)
            (spool.folder / f"events-{number}").unlink()
        raise Killed

    for written in range(300, len(records), 300):
        write(spool, records[:written])
        clock["ns"] = written
        with monkeypatch.context() as patched:
            if where == "progress":
                patched.setattr(Progress, "save", die)
            else:
                patched.setattr(live, "_remove_finished", die)
            with pytest.raises(Killed):
                live.step(spool.folder, ring, set())
        live.step(spool.folder, ring, set())
    write(spool, records)
    done = convert_process(spool.folder, tmp_path / "run.parquet", metadata={})
    assert done.complete
    if ring is None:
        assert rows_of(tmp_path / "run.parquet") == at_once(records)
    else:
        check_ring(rows_of(tmp_path / "run.parquet"), at_once(records), done.metadata)


def check_ring(
    kept: list[dict[str, Any]], whole: list[dict[str, Any]], about: dict[str, Any]
) -> None:
    """`kept` is the end of `whole`, behind what was live where it begins."""
    dropped = about["dropped_events"]
    live_rows = [row for row in kept if row["event"] == "live"]
    assert len(kept) - len(live_rows) == len(whole) - dropped
    blocks: dict[int, dict[str, Any]] = {}
    for row in whole[:dropped]:
        if row["event"] == "alloc":
            blocks[row["id"]] = row
        elif row["event"] == "free":
            del blocks[row["id"]]
    same = ("size", "device", "stream", "pool", "thread", "scope")
    assert [[row[name] for name in same] for row in live_rows] == [
        [row[name] for name in same] for row in blocks.values()
    ]
    new_ids = {old: new for new, old in enumerate(blocks)}
    for old, new in zip(whole[dropped:], kept[len(live_rows) :], strict=True):
        if old["event"] == "alloc":
            new_ids[old["id"]] = len(new_ids)
        if old["id"] in new_ids:
            assert {**old, "id": new_ids[old["id"]]} == new


@pytest.mark.parametrize("seed", range(6))
def test_a_ring_keeps_the_end_and_what_was_live_before(
    spool: Spool, at_once: Any, clock: dict[str, int], tmp_path: Path, seed: int
) -> None:
    records = program(seed)
    for written in range(100, len(records), 211):
        write(spool, records[:written])
        clock["ns"] = written
        live.step(spool.folder, 12_000, set())
    write(spool, records)
    done = convert_process(spool.folder, tmp_path / "run.parquet", metadata={})
    assert done.metadata["dropped_events"] > 100
    assert done.complete
    check_ring(rows_of(tmp_path / "run.parquet"), at_once(records), done.metadata)


def test_what_fits_into_the_ring_is_left_alone(spool: Spool, clock: dict[str, int]) -> None:
    write(spool, program(1))
    clock["ns"] = 10**9
    assert live.step(spool.folder, 10**9, set()) == 0
    assert not (spool.folder / "progress").exists()


def test_nothing_is_done_before_a_segment_is_closed(spool: Spool, clock: dict[str, int]) -> None:
    spool.write([Segment(0, [alloc(1, 1, 1)])])
    clock["ns"] = 10**9
    assert live.step(spool.folder, None, set()) == 0
    assert not (spool.folder / "progress").exists()


def test_a_damaged_segment_is_tried_once_and_counted_at_the_end(
    spool: Spool, clock: dict[str, int], tmp_path: Path
) -> None:
    spool.write(
        [
            Segment(0, [alloc(1, 1, 1), b"\xff" * 32, alloc(2, 2, 2)], closed=True),
            Segment(1, [alloc(3, 3, 3)], closed=True),
        ]
    )
    clock["ns"] = 10**6
    tried: set[int] = set()
    assert live.step(spool.folder, None, tried) > 0
    assert live.step(spool.folder, None, tried) == 0
    assert Progress.load(spool.folder).parts == 1
    done = convert_process(spool.folder, tmp_path / "run.parquet", metadata={})
    assert (done.rows, done.lost) == (2, 2)
    assert done.lost_reason == "2 records of the spool are unreadable"


@pytest.mark.parametrize("content", [b"", b"{}\n", b'{"parts": 1, "is_ring": false}\nxyz'])
def test_broken_progress_is_an_error(spool: Spool, tmp_path: Path, content: bytes) -> None:
    spool.write([Segment(0, [alloc(1, 1, 1)])])
    (spool.folder / "progress").write_bytes(content)
    with pytest.raises(BrokenFileError, match="progress"):
        convert_process(spool.folder, tmp_path / "run.parquet", metadata={})


def test_a_missing_part_is_an_error(spool: Spool, clock: dict[str, int], tmp_path: Path) -> None:
    spool.write([Segment(0, [alloc(1, 1, 1)], closed=True)])
    clock["ns"] = 10**6
    live.step(spool.folder, None, set())
    (spool.folder / "part-0.parquet").unlink()
    with pytest.raises(BrokenFileError, match=r"part-0\.parquet"):
        convert_process(spool.folder, tmp_path / "run.parquet", metadata={})


def test_a_late_free_that_a_step_took_ahead_of_its_place_is_taken_once(
    spool: Spool, clock: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_MARGIN_NS", 25)
    spool.write(
        [
            Segment(0, [alloc(10, 64, 8)]),
            Segment(1, [alloc(100, 64, 16)]),
            Segment(2, [free(120, 64), free(150, 64)]),
            Segment(3, [alloc(1, 128, 1)], closed=True),
        ]
    )
    for now in (125, 135):  # rows up to 100, which takes it, and up to 110, which does not reach it
        clock["ns"] = now
        live.step(spool.folder, None, set())
        spool.write([Segment(4, [alloc(now - 100, now, 1)], sequence=now, closed=True)])
    done = convert_process(spool.folder, tmp_path / "run.parquet", metadata={})
    rows = [row for row in rows_of(tmp_path / "run.parquet") if row["size"] in (8, 16)]
    assert [(row["event"], row["size"], row["time_ns"]) for row in rows] == [
        ("alloc", 8, 10),
        ("free", 8, 100),
        ("alloc", 16, 100),
        ("free", 16, 150),
    ]
    assert (done.unmatched_frees, done.reused_addresses) == (0, 0)
