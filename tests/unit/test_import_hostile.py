"""Files made to break an importer: refused with one sentence and exit code 2, nothing written."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.common.errors import BrokenFileError, WorkbenchError
from workbench.importing import import_file
from workbench.recorders._native import check_pickle
from workbench.recorders.importers import Source, discover
from workbench.recorders.importers._pickle import load_plain

KINDS = sorted(discover())
RMM = b"Thread,Time,Action,Pointer,Size,Stream\n"
GOOD_ROW = b"1,00:00:00.1,allocate,0x10,64,0x0\n"


class Call:
    """Something that calls another thing when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = (function, arguments)

    def __reduce__(self) -> Any:
        return self.called


def nested_lists(depth: int) -> bytes:
    return b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."


def cycle() -> Any:
    whole: dict[str, Any] = {"segments": [], "device_traces": []}
    whole["device_traces"].append([whole])
    return whole


def profile(events: bytes, **header: Any) -> bytes:
    return b'{"schemaVersion":1,"traceEvents":[' + events + b"]}"


def memory(**changed: Any) -> bytes:
    arguments = {"Bytes": 8, "Addr": 1, "Device Type": 0, "Device Id": -1, "Ev Idx": 0}
    event = {"name": "[memory]", "ts": 1.0, "tid": 1, "pid": 1}
    event |= {key: changed.pop(key) for key in ("ts", "tid") if key in changed}
    return json.dumps({**event, "args": arguments | changed}).encode()


def rmm(row: str) -> bytes:
    return RMM + GOOD_ROW + row.encode() + b"\n" + GOOD_ROW


def plan(row: str) -> bytes:
    return b"id,lower,upper,size\n1,0,5,10\n" + row.encode() + b"\n2,1,2,3\n"


CASES: dict[str, bytes | Callable[[], bytes]] = {
    "empty": b"",
    "random bytes": lambda: random.Random(5).randbytes(200_000),
    "zeros": bytes(1_000_000),
    "a million quotes": b'"' * 1_000_000,
    "one endless line": b"a" * 3_000_000,
    # pickles
    "pickle that calls os.system": lambda: pickle.dumps(Call(os.system, "touch /tmp/attacked")),
    "pickle that calls eval": lambda: pickle.dumps({"segments": [Call(eval, "1/0")]}, 2),
    "pickle with getattr in a key": lambda: pickle.dumps({"a": {Call(getattr, 1, "real"): 1}}),
    "pickle that claims 10 GB": b"\x80\x04\x8e" + struct.pack("<Q", 10**10) + b"abc" * 300 + b".",
    "pickle frame that claims 10 GB": b"\x80\x04\x95" + struct.pack("<Q", 10**10) + b"N.",
    "pickle with a huge memo place": b"\x80\x02}r\xff\xff\xff\xff.",
    "pickle with a long number": lambda: pickle.dumps({"segments": [1 << 100_000]}),
    "pickle nested 100,000 deep": lambda: nested_lists(100_000),
    "tuple nested 100,000 deep": b"\x80\x04)" + b"\x85" * 100_000 + b".",
    "tuple as key nested 100,000 deep": b"\x80\x04})" + b"\x85" * 100_000 + b"Ns.",
    "pickle that holds itself": lambda: pickle.dumps(cycle()),
    "pickle cut short": lambda: pickle.dumps({"segments": [], "device_traces": [[]]})[:-8],
    "pickle with more after it": lambda: pickle.dumps({"segments": []}) + b"more",
    "pickle of text that is not UTF-8": b"\x80\x04}\x8c\x08segments\x8c\x01\xffs.",
    "pickle of a set": lambda: pickle.dumps({"segments": {1, 2}}),
    "pickle of a number": lambda: pickle.dumps(5),
    # gzip
    "gzip cut short": lambda: gzip.compress(RMM + GOOD_ROW * 5_000)[:-60],
    "gzip with a wrong checksum": lambda: gzip.compress(RMM + GOOD_ROW)[:-8] + bytes(8),
    "gzip of nothing": lambda: gzip.compress(b""),
    "gzip damaged": lambda: gzip.compress(random.Random(1).randbytes(9000))[:4000] + bytes(900),
    "gzip header only": b"\x1f\x8b",
    # JSON
    "JSON nested 100,000 deep": b'{"traceEvents":' + b"[" * 100_000,
    "JSON nested 100,000 deep in an event": lambda: profile(b'{"args":' + b'{"a":' * 100_000),
    "JSON nested in the header": b'{"schemaVersion":' + b"[" * 100_000,
    "JSON cut short": lambda: profile(memory())[:-30],
    "JSON without events": b'{"schemaVersion":1}',
    "JSON without memory events": lambda: profile(b'{"name":"x"}'),
    "JSON events that are no objects": lambda: profile(b"1,2,3"),
    "JSON NaN": lambda: profile(memory(ts=float("nan"))),
    "JSON infinite time": lambda: profile(memory(ts=float("inf"))),
    "JSON huge time": lambda: profile(memory(ts=1e300)),
    "JSON huge exponent": lambda: profile(memory().replace(b'"ts": 1.0', b'"ts": 1e999999')),
    "JSON text as time": lambda: profile(memory(ts="soon")),
    "JSON huge bytes": lambda: profile(memory(Bytes=2**63)),
    "JSON bytes with 5,000 digits": lambda: profile(
        memory().replace(b'"Bytes": 8', b'"Bytes": ' + b"9" * 5_000)
    ),
    "JSON bytes that are no number": lambda: profile(memory(Bytes="many")),
    "JSON bytes NaN": lambda: profile(memory(Bytes=float("nan"))),
    "JSON huge address": lambda: profile(memory(Addr=2**64)),
    "JSON address of words": lambda: profile(memory(Addr="here")),
    "JSON address with 5,000 digits": lambda: profile(memory(Addr="9" * 5_000)),
    "JSON huge device": lambda: profile(memory(**{"Device Id": 2**40})),
    "JSON without arguments": lambda: profile(b'{"name":"[memory]","ts":1}'),
    "JSON arguments that are a list": lambda: profile(b'{"name":"[memory]","ts":1,"args":[]}'),
    "JSON that is not UTF-8": lambda: profile(memory() + b',{"name":"\xff"}'),
    "JSON more live bytes than can be": lambda: profile(
        b",".join(memory(Bytes=2**61, Addr=n) for n in range(4))
    ),
    "JSON two lists of events": b'{"schemaVersion":1,"traceEvents":[],"traceEvents":[]}',
    # CSV
    "CSV with a million columns": b"id,lower,upper,size" + b",x" * 1_000_000 + b"\n",
    "CSV row with a million columns": lambda: rmm("1" + ",1" * 1_000_000),
    "CSV row of 20 MB": lambda: rmm("1" * 20_000_000),
    "RMM header alone": RMM,
    "RMM row with too few columns": lambda: rmm("1,00:00:00.2,allocate"),
    "RMM with an unknown action": lambda: rmm("1,00:00:00.2,explode,0x10,64,0x0"),
    "RMM with size NaN": lambda: rmm("1,00:00:00.2,allocate,0x10,NaN,0x0"),
    "RMM with a negative size": lambda: rmm("1,00:00:00.2,allocate,0x10,-64,0x0"),
    "RMM with a huge size": lambda: rmm("1,00:00:00.2,allocate,0x10,9223372036854775807,0x0"),
    "RMM with a size beyond 64 bits": lambda: rmm("1,0:00:00.2,allocate,0x1," + "9" * 19 + ",0"),
    "RMM with 1,000 digits": lambda: rmm("1,00:00:00.2,allocate,0x10," + "9" * 1000 + ",0x0"),
    "RMM with a wrong pointer": lambda: rmm("1,00:00:00.2,allocate,0xGG,64,0x0"),
    "RMM with a long pointer": lambda: rmm("1,00:00:00.2,allocate,0x" + "f" * 17 + ",64,0x0"),
    "RMM with a wrong time": lambda: rmm("1,noon,allocate,0x10,64,0x0"),
    "RMM with a wrong thread": lambda: rmm("main,00:00:00.2,allocate,0x10,64,0x0"),
    "RMM that is not UTF-8": lambda: rmm("1,00:00:00.2,allocate,0x10,64,0x0").replace(
        b"ll", b"\xff"
    ),
    "RMM with nul bytes": lambda: rmm("1,00:00:00.2,allocate,\0\0,64,0x0"),
    "MiniMalloc header alone": b"id,lower,upper,size\n",
    "MiniMalloc with NaN": lambda: plan("3,nan,5,10"),
    "MiniMalloc with a fraction": lambda: plan("3,0.5,5,10"),
    "MiniMalloc with a negative size": lambda: plan("3,0,5,-10"),
    "MiniMalloc with a huge size": lambda: plan("3,0,5,9223372036854775807"),
    "MiniMalloc with a huge time": lambda: plan("3,0,9223372036854775807,1"),
    "MiniMalloc backwards": lambda: plan("3,5,0,10"),
    "MiniMalloc with an empty cell": lambda: plan("3,,5,10"),
    "MiniMalloc with too few columns": lambda: plan("3,1"),
    "MiniMalloc with nothing in it": b"id,lower,upper,size\n1,0,0,5\n",
}


def refused(path: Path, kind: str | None = None) -> str:
    """The one sentence that a file is refused with."""
    with pytest.raises(WorkbenchError) as error:
        import_file(path, path.with_name("out.parquet"), kind=kind)
    said = str(error.value)
    assert error.value.exit_code == 2, said
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < 700
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    return said


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("name", CASES)
def test_hostile_files_are_refused(name: str, kind: str | None, tmp_path: Path) -> None:
    content = CASES[name]
    path = tmp_path / "file.csv"
    path.write_bytes(content() if callable(content) else content)
    refused(path, kind)


def bomb(head: bytes, megabytes: int = 150) -> bytes:
    """A gzip file that unpacks to `head` and megabytes of blanks."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(head)]
    parts += [packer.compress(b" " * 2**20) for _ in range(megabytes)]
    return b"".join([*parts, packer.flush()])


@pytest.mark.parametrize(
    "head", [b'{"traceEvents":[', b'{"schemaVersion":1, "a":"', RMM, b"\x80\x04\x95"]
)
def test_a_gzip_bomb_is_refused(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(bomb(head))
    refused(path)


def test_a_bomb_is_unpacked_no_further_than_64_mb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(bomb(b""))
    with pytest.raises(BrokenFileError, match="unpacks to more than 300 times its size"):
        Source(path).read_whole()


def test_folders_devices_and_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "is a folder" in refused(tmp_path / "folder")
    for path in ("/dev/zero", str(tmp_path / "gone"), "a\0b"):
        with pytest.raises(BrokenFileError):
            Source(Path(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(RMM)
    path.chmod(0)
    assert "Permission denied" in refused(path)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False)
    | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner)
    | st.dictionaries(st.text() | st.integers(-(2**70), 2**70), inner),
    max_leaves=30,
)  # fmt: skip


@given(PLAIN, st.integers(3, 5))  # the second protocol makes bytes by a call
def test_plain_data_is_unpickled_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, data: Any, protocol: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.pickle"
    path.write_bytes(pickle.dumps([data, data, {"again": data}], protocol))
    assert load_plain(Source(path)) == [data, data, {"again": data}]


@given(PLAIN, st.integers(2, 5), st.randoms(use_true_random=False))
def test_what_passes_the_check_python_can_unpickle(
    data: Any, protocol: int, chance: random.Random
) -> None:
    content = bytearray(pickle.dumps([data], protocol))
    for _ in range(chance.randint(1, 3)):
        content[chance.randrange(2, len(content))] = chance.randrange(256)
    try:
        check_pickle(bytes(content))
    except ValueError:
        return
    try:
        found = pickle.loads(bytes(content))
    except UnicodeDecodeError:
        return
    assert len(repr(found)) < 100_000


def test_a_pickle_is_refused_even_where_the_check_were_to_miss_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.recorders.importers import _pickle

    monkeypatch.setattr(_pickle, "check_pickle", lambda content: None)
    path = tmp_path / "attack.pickle"
    path.write_bytes(pickle.dumps(Call(os.system, "touch /tmp/attacked")))
    with pytest.raises(BrokenFileError, match=r"asks to call posix\.system"):
        load_plain(Source(path))
