"""`caching` and a second, slow writing of its rules do the same under all settings."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from caching_model import Model
from caching_settings import MIB, Conf, random_settings
from engine_events import LANE, Operation, golden_operation, make_events
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_operations import random_pool_operations
from random_operations import commands, operations_of, random_operations

from workbench.common.units import parse_size
from workbench.replay import _engine

GOLDEN = Path(__file__).parents[1] / "data" / "caching_golden"
RUNS = {
    Path(run["file"]).stem: run
    for run in json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))
}
CAPACITIES = [24 * MIB, 45 * MIB, 64 * MIB + 4321, 101 * MIB, 160 * MIB, 250 * MIB]
COMPLETIONS = ["recorded", "recorded", "immediate", "never", "delay:0", "delay:3", "delay:40"]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("fragment-3GiB-max_split_20_round_64", 5000),
        ("streams-3GiB-gc_0.3_fraction_0.5_split_64", 1200),
        ("streams-3GiB-expandable_all", 1200),
        ("train-3GiB-expandable_split_100", 1500),
        ("random-80GiB-roundup_list", 600),
    ],
)
def test_the_model_does_what_pytorch_did(name: str, count: int) -> None:
    run = RUNS[name]
    with (GOLDEN / "traces" / f"{run['trace']}.csv").open(encoding="utf-8", newline="") as file:
        operations = [golden_operation(row) for row in islice(csv.DictReader(file), count)]
    rows = Model(Conf.read(run["settings"]), parse_size(run["capacity"], "")).run(operations)
    golden = pq.read_table(GOLDEN / run["file"]).slice(0, count)
    for column in golden.column_names:
        if column != "event":
            assert golden.column(column).to_pylist() == [row[column] for row in rows], column


def compare(
    operations: list[Operation], text: str, capacity: int, completion: str
) -> tuple[Model, list[dict[str, int]]]:
    """Runs both, holds every number of the one against the other, and returns the model."""
    model = Model(Conf.read(text), capacity, completion)
    rows = model.run(operations)
    made = _engine.Replay(
        make_events(operations),
        "caching",
        text,
        backend="simulated",
        capacity=capacity,
        completion=completion,
        after_oom="continue",
    )
    if not operations:
        return model, rows
    memory = made.memory(full=True, blocks_at=len(operations) - 1)
    columns = memory["timeline"]
    assert columns.keys() == rows[0].keys()
    for name, column in columns.items():
        expected = np.array([row[name] for row in rows], dtype=np.int64)
        different = np.flatnonzero(column.astype(np.int64) != expected)
        assert not different.size, (
            f"{name} differs from event {different[0]} on: {column[different[0]]}, "
            f"{expected[different[0]]} by the rules"
        )
    assert places_of(memory["blocks"]) == [
        (
            block.segment.number,
            block.segment.stream % LANE,
            block.segment.pool,
            block.segment.private,
            block.offset,
            block.size,
            block.requested,
            {"allocated": "active_allocated", "pending": "active_pending_free"}.get(
                block.state, "inactive"
            ),
        )
        for block in model.blocks()
    ]
    assert memory["torch_statistics"] == model.torch_statistics()
    return model, rows


def places_of(state: dict[str, dict[str, np.ndarray]]) -> list[tuple[object, ...]]:
    """Segment number, its stream and pools, offset, size, requested and state of each block."""
    segments, blocks = state["segments"], state["blocks"]
    of = {
        number: lane
        for number, *lane in zip(
            *(segments[name].tolist() for name in ("number", "stream", "pool", "private_pool")),
            strict=True,
        )
    }
    names = ("segment", "offset", "size", "requested", "state")
    return [
        (segment, *of[segment], *rest)
        for segment, *rest in zip(*(blocks[name].tolist() for name in names), strict=True)
    ]


@settings(max_examples=300, deadline=None)
@given(
    drawn=commands(10, 80),
    text=st.builds(random_settings, st.randoms(use_true_random=False)),
    capacity=st.sampled_from(CAPACITIES),
    completion=st.sampled_from(COMPLETIONS),
)
def test_every_number_and_every_place_follow_from_the_rules(
    drawn: list[tuple[str, int, int, int]], text: str, capacity: int, completion: str
) -> None:
    compare(operations_of(drawn), text, capacity, completion)


def test_the_same_in_long_runs_that_meet_every_rule() -> None:
    met = Counter[str]()
    for seed in range(200):
        rng = random.Random(seed)
        text = random_settings(rng)
        operations = random_operations(rng, 250)
        try:
            model, _ = compare(operations, text, rng.choice(CAPACITIES), rng.choice(COMPLETIONS))
        except AssertionError as error:
            error.add_note(f"seed {seed}, settings {text}")
            raise
        met += model.counts
        met["settings"] += 1
    # The rarer rules are not met by accident in a test or two.
    rare = {name for name in met if met[name] < 10}
    assert not rare, met
    assert {
        *("retries", "retries that helped", "ooms", "rejections", "collected", "fit refused"),
        *("stepped to less room", "released available", "released downward", "waiting frees"),
        *("events taken", "events waited for", "growth stopped halfway", "grew in place"),
        *("unmapped behind a rest", "ranges given back", "rounded up by divisions"),
        *("refused by the fraction",),
    } <= met.keys(), met


def test_the_same_with_private_pools_and_captures() -> None:
    met = Counter[str]()
    for seed in range(200):
        rng = random.Random(seed)
        text = random_settings(rng)
        if "reuse" not in text and seed % 2 == 0:
            text = ",".join(filter(None, [text, "graph_capture_record_stream_reuse:True"]))
        operations = random_pool_operations(rng, 250)
        try:
            model, _ = compare(operations, text, rng.choice(CAPACITIES), rng.choice(COMPLETIONS))
        except AssertionError as error:
            error.add_note(f"seed {seed}, settings {text}")
            raise
        met += model.counts
    assert (
        min(
            met[name]
            for name in (
                *("deferred frees", "deferred frees that wait", "deferred frees that end early"),
                *("given back with a pool", "ooms"),
                *("retries that helped", "collected", "released downward", "grew in place"),
            )
        )
        > 9
    ), met


def test_a_completed_free_of_what_was_refused_completes_nothing() -> None:
    operations: list[Operation] = [
        ("alloc", 0, 1000, 0),
        ("record_stream", 0, 0, 1),
        ("free", 0, 0, 0),  # pending for good
        ("alloc", 1, 100 * MIB, 0),  # rejected, in the slot of the first
        ("record_stream", 1, 0, 1),
        ("free", 1, 0, 0),
        ("free_completed", 1, 0, 0),
        ("alloc", 2, 1000, 0),
    ]
    model, rows = compare(operations, "throw_on_cudamalloc_oom:True", 64 * MIB, "recorded")
    assert model.counts["rejections"] == 1
    assert rows[-1]["n_active"] == 2
