"""The settings of `caching`: what is read, refused and warned about, and PyTorch's own parser."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
from caching_settings import random_settings
from engine_events import make_events

from workbench.replay import _engine

ONE = make_events([("alloc", 0, 1, 0)])
SPLIT, LARGE = "max_split_size_mb", "large_segment_size_mb"
ROUNDING, THRESHOLD = "max_non_split_rounding_mb", "garbage_collection_threshold"
FRACTION, DIVISIONS = "per_process_memory_fraction", "roundup_power2_divisions"


def replay(text: str) -> _engine.Replay:
    return _engine.Replay(ONE, "caching", text, backend="simulated", capacity=2**30)


def accepts(text: str) -> bool:
    try:
        replay(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{SPLIT}:20",
        f" {SPLIT} : 128 , expandable_segments : False , ",
        f"{SPLIT}:25,{LARGE}:25",
        f"{SPLIT}:9223372036854775807",
        f"{LARGE}:11,{SPLIT}:11,{ROUNDING}:11",
        f"{ROUNDING}:64,{SPLIT}:64",
        f"{THRESHOLD}:.5,{FRACTION}:5e-1",
        f"{FRACTION}:0",
        f"{FRACTION}:1",
        *(f"{DIVISIONS}:{value}" for value in ("1", "4", "16384", "[]", "[1:2,]", "[>:2]")),
        *(f"{DIVISIONS}:{value}" for value in ("[ 1 : 2 , > : 0 ]", "[64:8,1:2]", "[65536:4]")),
        "throw_on_cudamalloc_oom:True,release_lock_on_cudamalloc:False,backend:native",
        "graph_capture_record_stream_reuse:True",
    ],
)
def test_right_settings_are_accepted(text: str) -> None:
    assert replay(text).memory()["outcome"] in ("ok", "out_of_memory")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("max_split_size:128", ["unknown setting 'max_split_size'", SPLIT, "expandable_segments"]),
        ("Expandable_segments:True", ["unknown setting 'Expandable_segments'"]),
        ("expandable_segments", ["'expandable_segments'", "no colon", "key:value"]),
        ("expandable_segments=True", ["'expandable_segments=True'", "no colon"]),
        (":True", ["':True'", "no colon"]),
        (",expandable_segments:True", ["empty", "key:value,key:value"]),
        ("expandable_segments:True,,", ["empty"]),
        ("expandable_segments:True\n", ["control character", "position 24"]),
        (f"{SPLIT}:30,{SPLIT}:40", [f"'{SPLIT}'", "twice"]),
        *((f"expandable_segments:{v}", [f"is '{v}'", "True or False"]) for v in ("true", "1", "")),
        *((f"throw_on_cudamalloc_oom:{v}", [f"is '{v}'", "True or False"]) for v in ("yes", "0")),
        ("release_lock_on_cudamalloc:x", ["True or False"]),
        ("graph_capture_record_stream_reuse:x", ["True or False"]),
        *((f"{LARGE}:{v}", [f"'{LARGE}'", f"'{v}'", "at least 11"]) for v in ("10", "-1", "12.5")),
        *((f"{SPLIT}:{v}", [f"is '{v}'", "at least 20"]) for v in ("19", "-1", "128.5", "1e3", "")),
        *((f"{SPLIT}:{v}", [f"is '{v}'", "whole number"]) for v in ("0x20", "+30", "30x", ":30")),
        (f"{SPLIT}:24,{LARGE}:25", ["is '24'", "at least 25"]),
        (f"{SPLIT}:99999999999999999999", ["whole number"]),
        (f"{ROUNDING}:19", [f"'{ROUNDING}'", "is '19'", "at least 20"]),
        (f"{ROUNDING}:30,{LARGE}:31", ["at least 31"]),
        *((f"{THRESHOLD}:{v}", [f"is '{v}'", "between 0 and 1"]) for v in ("0", "1", "-0.1", "2")),
        *(
            (f"{THRESHOLD}:{v}", [f"is '{v}'", "a number"])
            for v in ("nan", "inf", "0.5x", "1e-320")
        ),
        *((f"{FRACTION}:{v}", [f"is '{v}'", "from 0 to 1"]) for v in ("1.01", "-0.5")),
        *((f"{FRACTION}:{v}", [f"is '{v}'", "a number"]) for v in ("half", "nan", "")),
        *(
            (f"{DIVISIONS}:{v}", [f"is '{v}'", "power of two"])
            for v in ("3", "0", "[1:3]", "[3:2]")
        ),
        *((f"{DIVISIONS}:{v}", [f"is '{v}'", "no ]"]) for v in ("[1:2", "[1:2]x")),
        *((f"{DIVISIONS}:{v}", [f"is '{v}'", "no colon"]) for v in ("[1]", "[,1:2]", "[1:2,,]")),
        *((f"{DIVISIONS}:{v}", ["not a whole number"]) for v in ("", "[1:-2]", "[1:2:3]", "[:2]")),
        ("backend:cudaMallocAsync", ["'backend'", "allocator async"]),
        ("backend:cuda", ["'backend'", "native"]),
        ("pinned_use_background_threads:on", ["True or False"]),
        ("pinned_max_cached_size_mb:many", ["whole number"]),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence_that_names_them(
    text: str, parts: list[str]
) -> None:
    with pytest.raises(ValueError, match="caching") as raised:
        replay(text)
    message = str(raised.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (f"{THRESHOLD}:0.5", f"without {FRACTION}"),
        (f"{THRESHOLD}:0.5,{FRACTION}:1", f"without {FRACTION}"),
        (f"expandable_segments:True,{SPLIT}:128", "grow"),
        ("expandable_segments:True,large_segment_size_mb:31", "odd"),
        (f"throw_on_cudamalloc_oom:True,{FRACTION}:0.9", f"with {FRACTION} below 1"),
        (f"{ROUNDING}:64", f"without {SPLIT}"),
        ("pinned_use_cuda_host_register:True", "pinned_use_cuda_host_register"),
        ("pinned_num_register_threads:4", "pinned_num_register_threads"),
        ("pinned_use_background_threads:False", "pinned_use_background_threads"),
        ("pinned_reserve_segment_size_mb:4", "pinned_reserve_segment_size_mb"),
        ("pinned_max_round_threshold_mb:4", "pinned_max_round_threshold_mb"),
        ("pinned_max_cached_size_mb:4", "pinned_max_cached_size_mb"),
    ],
)
def test_settings_that_do_nothing_or_hurt_are_warned_about(text: str, part: str) -> None:
    warnings = replay(text).warnings
    assert len(warnings) == 1
    assert part in warnings[0]


@pytest.mark.parametrize(
    "text",
    ["", f"{THRESHOLD}:0.5,{FRACTION}:0.9", "expandable_segments:True", f"{SPLIT}:128"],
)
def test_no_warning_without_a_reason(text: str) -> None:
    assert replay(text).warnings == []


TORCH_PROGRAM = """
import json, sys, torch
read = torch._C._accelerator_setAllocatorSettings
answers = []
for text in json.load(sys.stdin):
    read("large_segment_size_mb:20")  # it remembers: the others are held against it
    try:
        read(text)
    except (ValueError, IndexError, RuntimeError):
        answers.append(False)
    else:
        answers.append(True)
json.dump(answers, sys.stdout)
"""
SLOPPY = [
    # PyTorch reads a number at the front of a text and ignores what follows, and a sign before it.
    *(f"{SPLIT}:{value}" for value in ("128.5", "-1", "+30", "30x", "30:")),
    *(f"{THRESHOLD}:0.5x", f"{DIVISIONS}:[1:2]x", f"{DIVISIONS}:[1:1.5]"),
    # It ignores unknown keys and takes the last of a key given twice.
    *("a:1", f"{SPLIT}:30,{SPLIT}:40"),
    # Those that only a build for CUDA reads.
    *(f"{FRACTION}:2", f"{FRACTION}:-1", f"{FRACTION}:x", "throw_on_cudamalloc_oom:yes"),
    *("release_lock_on_cudamalloc:x", "graph_capture_record_stream_reuse:x", "backend:x"),
    *("backend:cudaMallocAsync", "pinned_use_cuda_host_register:x"),
]
"""What we refuse and PyTorch's build for the CPU does not."""


def torch_accepts(texts: list[str]) -> list[bool]:
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", TORCH_PROGRAM],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    return [bool(answer) for answer in json.loads(done.stdout)]


def damaged(rng: random.Random, text: str) -> str:
    """`text` with a few letters lost, doubled or replaced."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(text) + 1)
        text = (
            text[:at]
            + rng.choice(["", ",", ":", "[", "]", ">", "0", "3", " ", "True"])
            + (text[at + rng.randrange(3) :])
        )
    return text


def plain(rng: random.Random) -> str:
    """Settings with every value well written, inside and outside of what is allowed."""

    def divisions() -> str:
        return rng.choice(["1", "2", "3", "4", "8", "12", "64"])

    def entries() -> str:
        sizes = rng.sample(["1", "2", "5", "64", "256", "100000", ">"], rng.randrange(4))
        return ",".join(f"{size}:{rng.choice([divisions(), '0'])}" for size in sizes)

    settings = {
        LARGE: str(rng.choice([5, 10, 11, 20, 21, 25])),
        SPLIT: str(rng.choice([0, 10, 11, 19, 20, 21, 25, 128])),
        ROUNDING: str(rng.choice([0, 10, 11, 19, 20, 21, 25, 128])),
        THRESHOLD: rng.choice(["0", "0.0", "0.01", ".5", "0.999", "1", "1.0", "2", "-0.5"]),
        DIVISIONS: rng.choice([divisions(), divisions(), f"[{entries()}]"]),
        "expandable_segments": rng.choice(["True", "False", "true", "0"]),
    }
    keys = rng.sample(list(settings), rng.randrange(1, 4))
    return ",".join(f"{key}:{settings[key]}" for key in keys) + rng.choice(["", "", ","])


@pytest.mark.torch
def test_what_pytorch_refuses_is_refused_and_well_written_settings_are_judged_the_same() -> None:
    rng = random.Random(7)
    right = [random_settings(rng) for _ in range(300)]
    written = [plain(rng) for _ in range(1500)]
    broken = [damaged(rng, rng.choice(right)) for _ in range(2500)]
    texts = [*right, *written, *broken, *SLOPPY]
    theirs = dict(zip(texts, torch_accepts(texts), strict=True))
    assert [text for text in texts if accepts(text) and not theirs[text]] == []
    assert [text for text in right + written if theirs[text] != accepts(text)] == []
    # Stricter on purpose.
    assert [text for text in SLOPPY if accepts(text) or not theirs[text]] == []
    # Enough of each to mean something.
    assert sum(map(accepts, written)) > 100
    assert sum(not accepts(text) for text in written) > 100
    assert sum(map(accepts, broken)) > 50
