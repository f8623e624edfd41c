"""Cells: names of allocators, defaults, names of folders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.common.errors import UsageError
from workbench.replay.cell import (
    DEFAULT_DEVICE_CAPACITY,
    AllocatorSpec,
    Capacity,
    Cell,
    check_completion,
    choose_backend,
    choose_capacity,
    choose_device,
    parse_allocator,
    slug,
    trace_name,
)
from workbench.replay.last_words import sizes_told

KNOWN = ["caching", "cpu-caching", "direct"]
HOST = {"name": "host", "available": True}
SIMULATED = {"name": "simulated", "available": True}
CUDA = {"name": "cuda", "available": True}


def cell(**changed: object) -> Cell:
    fields = {
        "trace": "run.parquet",
        "device": "cpu",
        "allocator": AllocatorSpec("caching"),
        "kind": "device",
        "backend": "simulated",
        "capacity": Capacity(8 * 2**30, "option"),
    }
    return Cell(**{**fields, **changed})  # type: ignore[arg-type]


def test_a_name_alone_is_an_allocator_with_its_defaults() -> None:
    spec = parse_allocator("caching", KNOWN)
    assert (spec.name, spec.settings, spec.label) == ("caching", "", "caching")


def test_settings_follow_the_name_in_any_order() -> None:
    one = parse_allocator("caching:b:2, a:1", KNOWN)
    assert one == parse_allocator("caching:a:1,b:2", KNOWN)
    assert one.settings_by_key() == {"a": "1", "b": "2"}
    assert one.label == "caching (a:1,b:2)"


def test_a_value_in_double_quotes_is_taken_as_it_is() -> None:
    spec = parse_allocator('plan:file:"my plan, v:2.parquet", planner:greedy', ["plan"])
    assert spec.settings == 'file:"my plan, v:2.parquet",planner:greedy'
    assert spec.settings_by_key() == {"file": "my plan, v:2.parquet", "planner": "greedy"}
    # Quotes that nothing needs make no other cell.
    assert parse_allocator('plan:file:"a.parquet"', ["plan"]) == AllocatorSpec(
        "plan", "file:a.parquet"
    )
    assert parse_allocator('caching:a:x"y', KNOWN).settings_by_key() == {"a": 'x"y'}


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("pluggable:LIB.so", "library:LIB.so"),
        ("pluggable:library:LIB.so", "library:LIB.so"),
        ("pluggable:/a/b.so,abi:malloc", "abi:malloc,library:/a/b.so"),
        ('pluggable:"my lib.so",config:x', 'config:x,library:"my lib.so"'),
        ('pluggable:config:"a:1,b:2",library:b.so', 'config:"a:1,b:2",library:b.so'),
    ],
)
def test_a_library_is_named_by_its_file(text: str, settings: str) -> None:
    assert parse_allocator(text, ["pluggable"]) == AllocatorSpec("pluggable", settings)


def test_a_list_in_brackets_is_one_value() -> None:
    spec = parse_allocator("caching:roundup:[256:1,512:2],expandable:True", KNOWN)
    assert spec.settings_by_key() == {"roundup": "[256:1,512:2]", "expandable": "True"}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("cachin", "did you mean 'caching'"),
        ("cpu_caching:x:1", "did you mean 'cpu-caching'"),
        ("zzz", "known are caching, cpu-caching, direct, all"),
        ("", "known are"),
    ],
)
def test_an_unknown_allocator_gets_the_nearest_one_suggested(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        parse_allocator(text, KNOWN)


@given(st.text(max_size=30))
def test_any_text_is_an_allocator_or_a_usage_error(text: str) -> None:
    try:
        assert parse_allocator(text, KNOWN).name in KNOWN
    except UsageError:
        assert text.partition(":")[0].strip() not in KNOWN


@pytest.mark.parametrize("text", ["recorded", "immediate", "never", "delay:0", "delay:12"])
def test_completions_that_exist_are_taken(text: str) -> None:
    assert check_completion(text) == text


@pytest.mark.parametrize("text", ["", "delay", "delay:", "delay:-1", "delay:x", "Recorded"])
def test_other_completions_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="recorded, immediate, never or delay:N"):
        check_completion(text)


@pytest.mark.parametrize(
    ("kind", "devices", "chosen"),
    [
        ("cpu", {"cpu": 1, "cuda:0": 9}, "cpu"),
        ("pinned", {"cpu": 1, "pinned": 2, "cuda:0": 9}, "pinned"),
        ("device", {"cpu": 9, "cuda:0": 1, "cuda:1": 2}, "cuda:1"),
        ("device", {"cuda:1": 2, "cuda:0": 2}, "cuda:0"),
        ("device", {"cpu": 5, "pinned": 9}, "pinned"),
        ("cpu", {"cuda:0": 5, "cuda:1": 9}, "cuda:1"),
        ("device", {}, "cuda:0"),
        ("cpu", {}, "cpu"),
    ],
)
def test_the_device_is_of_the_allocators_kind_else_the_busiest(
    kind: str, devices: dict[str, int], chosen: str
) -> None:
    assert choose_device(kind, devices, None) == chosen


def test_a_device_asked_for_is_taken_or_refused_with_what_there_is() -> None:
    assert choose_device("device", {"cpu": 1, "cuda:0": 2}, "cpu") == "cpu"
    with pytest.raises(UsageError, match="'cuda:7' is not in the trace; it has cpu, cuda:0"):
        choose_device("device", {"cpu": 1, "cuda:0": 2}, "cuda:7")


def test_cpu_memory_is_real_and_device_memory_too_where_there_is_a_device() -> None:
    assert choose_backend("cpu", [HOST, SIMULATED, CUDA], None) is HOST
    assert choose_backend("pinned", [HOST, SIMULATED], None) is HOST
    assert choose_backend("device", [HOST, SIMULATED], None) is SIMULATED
    assert choose_backend("device", [HOST, SIMULATED, {**CUDA, "available": False}], None) is (
        SIMULATED
    )
    assert choose_backend("device", [HOST, SIMULATED, CUDA], None) is CUDA
    assert choose_backend("cpu", [HOST, SIMULATED], "simulated") is SIMULATED
    with pytest.raises(UsageError, match="did you mean 'host'"):
        choose_backend("cpu", [HOST, SIMULATED], "hots")


def test_capacity_is_what_the_recording_left_else_a_default() -> None:
    left = {"capacity": 100, "held_by_others": 30}
    assert choose_capacity("device", "cuda:0", left, None) == Capacity(70, "trace")
    assert choose_capacity("device", "cuda:0", left, 5) == Capacity(5, "option")
    assert choose_capacity("device", "cuda:0", {"capacity": None}, None) == Capacity(
        DEFAULT_DEVICE_CAPACITY, "default"
    )
    assert choose_capacity("cpu", "cpu", None, None) == Capacity(None, "unlimited")
    assert choose_capacity("cpu", "cpu", {"capacity": 9}, None) == Capacity(9, "trace")


@pytest.mark.parametrize(("capacity", "held"), [(100, 100), (100, 150), (0, None)])
def test_memory_that_others_held_whole_is_never_unlimited(capacity: int, held: int | None) -> None:
    info = {"capacity": capacity, "held_by_others": held}
    for kind, device in (("cpu", "cpu"), ("device", "cuda:0")):
        with pytest.raises(UsageError, match=f"'{device}' had {capacity} bytes.*--capacity"):
            choose_capacity(kind, device, info, None)
        assert choose_capacity(kind, device, info, 5) == Capacity(5, "option")
    assert choose_capacity("cpu", "cuda:0", info, None).source == "unlimited"


def test_the_capacity_of_another_kind_of_memory_is_not_taken() -> None:
    main_memory = {"capacity": 2**34, "held_by_others": None}
    assert choose_capacity("device", "cpu", main_memory, None).source == "default"
    assert choose_capacity("cpu", "cuda:0", main_memory, None).source == "unlimited"


@pytest.mark.parametrize(
    ("device", "kind", "as_if"),
    [
        ("cpu", "cpu", False),
        ("cpu", "device", True),
        ("cuda:3", "device", False),
        ("cuda:3", "cpu", True),
        ("pinned", "pinned", False),
        ("pinned", "cpu", True),
    ],
)
def test_a_replay_through_another_kind_of_memory_is_as_if(
    device: str, kind: str, as_if: bool
) -> None:
    assert cell(device=device, kind=kind).as_if is as_if


def test_a_cells_folder_says_what_it_is() -> None:
    assert cell().name("run") == "run.cpu.caching.simulated.8GiB"
    settings = AllocatorSpec("caching", "a:1,b:2")
    named = cell(allocator=settings, capacity=Capacity(None, "unlimited"), completion="delay:5")
    assert named.name("run") == "run.cpu.caching-a-1-b-2.simulated.unlimited.delay-5"
    assert cell(after_oom="continue").name("run").endswith(".after-oom-continue")


@pytest.mark.parametrize(
    ("size", "text"), [(2**30, "1GiB"), (3 * 2**20, "3MiB"), (2**30 + 1, "1073741825B")]
)
def test_different_capacities_have_different_names(size: int, text: str) -> None:
    assert str(Capacity(size, "option")) == text


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4))
def test_a_folders_name_is_safe_whatever_it_is_made_of(parts: list[str]) -> None:
    name = slug(parts)
    assert "/" not in name
    assert "\0" not in name
    assert not name.startswith(".")
    assert len(name.encode()) < 200


def test_odd_names_stay_apart() -> None:
    assert slug(["a/b", "x"]) != slug(["a|b", "x"])
    assert slug(["x" * 200, "1"]) != slug(["x" * 200, "2"])


def test_a_trace_is_named_by_its_file_and_a_rank_by_its_folder_too() -> None:
    assert trace_name("traces/run.parquet") == "run"
    assert trace_name("s3://bucket/run.parquet") == "run"
    assert trace_name("job/rank=3.parquet") == "job-rank=3"


def test_every_part_of_the_cell_is_in_its_key() -> None:
    base = cell().key("f")
    others = [
        cell(device="cuda:0").key("f"),
        cell(allocator=AllocatorSpec("caching", "a:1")).key("f"),
        cell(allocator=AllocatorSpec("direct")).key("f"),
        cell(backend="host").key("f"),
        cell(capacity=Capacity(1, "option")).key("f"),
        cell(completion="never").key("f"),
        cell(after_oom="continue").key("f"),
        cell().key("g"),
    ]
    assert all(other != base for other in others)
    # Where a capacity came from does not make another cell.
    assert cell(capacity=Capacity(8 * 2**30, "trace")).key("f") == base


def test_settings_of_the_environment_are_read_where_pytorch_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
    for variable in (old, new):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UsageError, match=f"neither {new} nor {old} is set"):
        parse_allocator("caching:env", KNOWN)
    monkeypatch.setenv(old, "b:2,a:1")
    assert parse_allocator("caching:env", KNOWN) == AllocatorSpec("caching", "a:1,b:2")
    # Set and empty counts as set: PyTorch does not look further.
    monkeypatch.setenv(new, "")
    assert parse_allocator("caching: env", KNOWN) == AllocatorSpec("caching")
    # Only as the whole text, and only for the allocator whose settings these are.
    assert parse_allocator("caching:env,a:1", KNOWN).settings == "a:1,env"
    assert parse_allocator("direct:env", KNOWN).settings == "env"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("caching:roundup_power2_divisions:[256:1,512:2", "a bracket that is not closed"),
        ("pluggable:h.so,config:[a", "a bracket that is not closed"),
        ('pluggable:"h.so', "a quote that does not end"),
    ],
)
def test_a_quote_or_bracket_without_its_other_end_is_refused(text: str, problem: str) -> None:
    # Unread, it would swallow the settings behind it.
    with pytest.raises(UsageError, match=problem) as error:
        parse_allocator(text, [*KNOWN, "pluggable"])
    assert f"--allocator {text!r}" in str(error.value)


def test_what_is_left_is_told_as_a_size() -> None:
    said = "its first request, 100 bytes at event 0, with 25276502016 bytes left"
    assert sizes_told(said) == "its first request, 100 bytes at event 0, with 23.54 GiB left"
