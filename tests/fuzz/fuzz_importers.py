"""Looks for files on which an importer does anything but import or refuse in one sentence.

    python tests/fuzz/fuzz_importers.py --importer rmm --seconds 600

Inputs are mutations of small good files: of their structure (cells, keys, values, kept well-formed)
and of their bytes. Where atheris is installed it drives them by coverage; else chance does. A
failure leaves its input in fuzz-failure; `--run FILE` runs one again.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import io
import json
import pickle
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOWEST_S = 10.0
MOST_MEMORY_MB = 2048
ODD: list[Any] = [
    None, True, 0, 1, -1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**25, 0.5, -0.0, 1e300,
    float("nan"), float("inf"), "", "x", "0", "-1", "1e9", "\ud800", "\0", "9" * 50, [], {}, [[]],
    {"": 0}, b"",
]  # fmt: skip


def seeds(kind: str) -> list[bytes]:
    """Good files of a kind."""
    if kind == "rmm":
        return [
            b"Thread,Time,Action,Pointer,Size,Stream\n1,00:00:00.1,allocate,0x10,64,0x0\n"
            b"2,00:00:00.2,allocate failure,(nil),640,0x5\n1,00:00:00.3,free,0x10,64,0x0\n",
            b"Thread,Time,Action,Pointer,Size,Stream\n1,1700000000.5,allocate,0x10,64,0\n"
            b"1,1700000001.5,deallocate,0x10,64,0\n",
        ]
    if kind == "minimalloc":
        return [
            b"id,lower,upper,size\n1,0,4,10\n2,4,6,20\n",
            b"buffer,start,end,size,alignment,hint,gaps,offset\n1,0,4,10,8,-1,1-2 3-4,0\n",
        ]
    if kind == "torch-profiler":
        arguments = {"Bytes": 64, "Addr": 4096, "Device Type": 1, "Device Id": 0, "Ev Idx": 3}
        event = {"ph": "i", "name": "[memory]", "pid": 1, "tid": 2, "ts": 5.5, "args": arguments}
        around = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 2, "ts": 5.0,
                  "dur": 2.0, "args": {"a": [1]}}  # fmt: skip
        freed = {**event, "ts": 6.5, "args": {**arguments, "Bytes": -64}}
        whole = {"schemaVersion": 1, "baseTimeNanoseconds": 1790857026000000000,
                 "traceEvents": [around, event, freed], "traceName": "t"}  # fmt: skip
        return [json.dumps(whole).encode()]
    return [pickle.dumps(snapshot, 4) for snapshot in _snapshots()]


def _snapshots() -> list[Any]:
    frames = [{"filename": "train.py", "line": 3, "name": "step"}]
    block = {"address": 4096, "size": 512, "requested_size": 500, "state": "active_allocated",
             "frames": frames}  # fmt: skip
    free = {"address": 4608, "size": 2**21 - 512, "requested_size": 0, "state": "inactive",
            "frames": []}  # fmt: skip
    segment = {"device": 0, "address": 4096, "total_size": 2**21, "allocated_size": 512,
               "active_size": 512, "requested_size": 500, "stream": 0, "segment_type": "small",
               "segment_pool_id": (0, 0), "is_expandable": False, "frames": frames,
               "blocks": [block, free]}  # fmt: skip
    entries = [
        {"action": action, "addr": address, "size": size, "stream": 0, "time_us": time_us,
         "frames": frames}
        for time_us, (action, address, size) in enumerate([
            ("segment_alloc", 4096, 2**21), ("alloc", 4096, 100), ("alloc", 4608, 500),
            ("free_requested", 4608, 500), ("free_completed", 4608, 500),
            ("free_requested", 4096, 100), ("free_completed", 4096, 100), ("alloc", 4096, 500),
        ])
    ]  # fmt: skip
    entries.append({"action": "oom", "size": 2**40, "stream": 0, "device_free": 5, "frames": []})
    whole = {
        "segments": [segment],
        "device_traces": [entries],
        "allocator_settings": {"max_split_size": -1, "expandable_segments": False,
                               "roundup_power2_divisions": {"1": 0, "2": 0}},
        "external_annotations": [{"device": 0, "time_us": 2, "name": "forward", "stage": "START"}],
    }  # fmt: skip
    return [whole, [segment]]


class Codec:
    """A kind of file as plain Python data, and back."""

    def __init__(self, seed: bytes) -> None:
        if seed.startswith(b"\x80"):
            self.load: Callable[[bytes], Any] = pickle.loads
            self.dump: Callable[[Any], bytes] = lambda data: pickle.dumps(data, 4)
        elif seed.startswith(b"{"):
            self.load = json.loads
            self.dump = lambda data: json.dumps(data, default=str).encode("utf-8", "replace")
        else:
            self.load = lambda content: [line.split(",") for line in content.decode().split("\n")]
            self.dump = _csv


def _csv(data: Any) -> bytes:
    text = io.StringIO()
    rows = [row if isinstance(row, list) else [row] for row in data or []]
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_MINIMAL).writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _places(data: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every (container, key) in plain data."""
    if depth > 12:
        return []
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    found = [(data, key) for key in keys]
    return found + [place for key in keys for place in _places(data[key], depth + 1)]


def _change(data: Any, chance: random.Random) -> None:
    places = _places(data)
    if not places:
        return
    container, key = chance.choice(places)
    what = chance.randrange(6)
    if what == 0:
        del container[key]
    elif what == 1:
        container[key] = chance.choice(ODD)
    elif what == 2:
        other, place = chance.choice(places)
        with contextlib.suppress(KeyError, IndexError):
            container[key] = json.loads(json.dumps(other[place], default=str))
    elif what == 3 and isinstance(container[key], int):
        container[key] += chance.choice([-1, 1, 512, -512, 2**20, 2**32])
    elif what == 4 and isinstance(container, list):
        container.insert(key, container[chance.randrange(len(container))])
    elif isinstance(container, list) and len(container) > 1:
        other_key = chance.randrange(len(container))
        container[key], container[other_key] = container[other_key], container[key]
    else:
        container[key] = str(container[key])


def mutate(seed: bytes, chance: random.Random) -> bytes:
    """A file somewhat unlike `seed`."""
    content = seed
    codec = Codec(seed)
    if chance.random() < 0.8:
        with contextlib.suppress(Exception):  # what cannot be read or written back stays as it is
            data = codec.load(seed)
            for _ in range(chance.randint(1, 6)):
                _change(data, chance)
            content = codec.dump(data)
    if chance.random() < 0.3:
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(changed) + 1)
            changed[place : place + chance.choice([0, 1, 1, 1, 8])] = chance.randbytes(
                chance.choice([0, 1, 1, 4])
            )
        content = bytes(changed)
    if chance.random() < 0.05:
        packed = gzip.compress(content, 1)
        content = packed[: chance.randint(1, len(packed))] if chance.random() < 0.5 else packed
    return content


class Target:
    """Runs inputs; raises over whatever is neither an import nor a refusal."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.path = folder / "input.dev0.csv"
        self.output = folder / "run.parquet"
        self.runs = self.imported = 0

    def __call__(self, content: bytes) -> None:
        from workbench.common.errors import WorkbenchError
        from workbench.importing import import_file

        self.path.write_bytes(content)
        self.runs += 1
        begin = time.monotonic()
        kind = self.kind if self.runs % 2 else None
        refusal: WorkbenchError | None = None
        try:
            import_file(self.path, self.output, kind=kind, force=True)
            self.imported += 1
        except WorkbenchError as error:
            refusal = error
        if refusal is not None:
            said = str(refusal)
            assert refusal.exit_code == 2, said  # 1 would be out of memory, or ours
            assert "\n" not in said, said
            assert len(said) < 1000, said
        assert time.monotonic() - begin < SLOWEST_S, "too slow"


def fuzz_by_chance(target: Target, found: list[bytes], seconds: float, seed: int) -> None:
    """Mutations of the seeds and of what was imported last, for so long."""
    chance = random.Random(seed)
    kept: list[bytes] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        content = mutate(chance.choice([*found, *kept]), chance)
        before = target.imported
        _run(target, content)
        if target.imported > before and len(content) < 20_000:
            kept = [*kept[-50:], content]


def _run(target: Target, content: bytes) -> None:
    try:
        target(content)
    except BaseException:
        Path("fuzz-failure").write_bytes(content)
        raise


def fuzz_by_coverage(
    target: Target, found: list[bytes], seconds: float, seed: int, folder: Path
) -> None:
    """The same under atheris, which keeps what reaches new code."""
    import atheris

    def custom(content: bytes, most: int, chance: int) -> bytes:
        if chance % 3 == 0:
            return bytes(atheris.Mutate(content, most))
        return mutate(bytes(content) or found[0], random.Random(chance))[:most]

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(found):
        (corpus / str(number)).write_bytes(content)
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed}", "-max_len=8192",
               f"-rss_limit_mb={2 * MOST_MEMORY_MB}", f"-timeout={int(SLOWEST_S)}",
               "-artifact_prefix=fuzz-failure-", "-verbosity=0",
               "-print_final_stats=1"]  # fmt: skip
    atheris.Setup(
        [sys.argv[0], *options, str(corpus)],
        lambda content: _run(target, content),
        custom_mutator=custom,
    )
    atheris.Fuzz()


def main() -> None:
    """Fuzz one importer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--importer", required=True, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-coverage", action="store_true", help="do without atheris")
    parser.add_argument("--run", type=Path, metavar="FILE", help="run one input again")
    options = parser.parse_args()
    with_atheris = False
    if not options.no_coverage and options.run is None:
        with contextlib.suppress(ImportError):
            import atheris

            with atheris.instrument_imports(include=["workbench"]):
                from workbench.recorders.importers import discover

                discover()
            with_atheris = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = Target(options.importer, folder)
        if options.run is not None:
            target(options.run.read_bytes())
            print(f"{options.run}: no failure")
            return
        found = seeds(options.importer)
        for content in found:
            _run(target, content)
        assert target.imported == len(found), "a seed is not imported"
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = mapped + MOST_MEMORY_MB * 2**20
        resource.setrlimit(
            resource.RLIMIT_AS, (limit, limit)
        )  # beyond: a MemoryError, so exit code 1
        if with_atheris:
            fuzz_by_coverage(target, found, options.seconds, options.seed, folder)
        else:
            fuzz_by_chance(target, found, options.seconds, options.seed)
            print(
                f"{target.kind}: {target.runs:,} inputs, {target.imported:,} imported, no failure"
            )


if __name__ == "__main__":
    main()
