"""The rule of PyTorch's greedy planner in plain Python, and traffic that the original survives.

The original keys free ranges by size alone: it is lost where two are of one size. And it sorts
events by time alone, with `std::sort`, which leaves those of one time in any order once there are
more than 16 events.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

UNMANAGED = -1
Request = tuple[int, int]
"""(bytes, number of allocations made before its free, or `UNMANAGED`)"""
Order = Callable[[list[int]], list[int]]
"""From the times of events to their places in the order they are taken."""

STABLE = 8
"""So many managed allocations are sorted in order: 16 events."""


def in_order(times: list[int]) -> list[int]:
    """By time; those of one time as they come."""
    return sorted(range(len(times)), key=times.__getitem__)


def plan(requests: Sequence[Request], order: Order = in_order) -> tuple[list[int], bool]:
    """Offsets by id, -1 of unmanaged ones, and whether two free ranges were ever of one size."""
    # As the original lists them, so that frees come before allocations where `order` is stable: a
    # free's id is below those of the allocations of its time.
    events = [
        (time, number, is_free)
        for number, (_, end) in enumerate(requests)
        if end != UNMANAGED
        for time, is_free in ((number, False), (end, True))
    ]
    offsets = [UNMANAGED] * len(requests)
    free: list[Request] = []  # (size, offset)
    height, clash = 0, False
    for place in order([time for time, _, _ in events]):
        _, number, is_free = events[place]
        size = requests[number][0]
        if is_free:
            offset = offsets[number]
            for other in [one for one in free if offset in (sum(one), one[1] - size)]:
                free.remove(other)
                size, offset = size + other[0], min(offset, other[1])
            free.append((size, offset))
        elif (fitting := min((one for one in free if one[0] >= size), default=None)) is None:
            offsets[number], height = height, height + size
        else:
            free.remove(fitting)
            offsets[number] = fitting[1]
            if fitting[0] > size:
                free.append((fitting[0] - size, fitting[1] + size))
        clash |= len({size for size, _ in free}) < len(free)
    return offsets, clash


def random_requests(
    rng: random.Random, managed: int, sizes: Sequence[int], *, apart: bool
) -> list[Request]:
    """`managed` allocations and some unmanaged ones, of `sizes`.

    Args:
        apart: no free at the time of a managed allocation, nor two at one time: an unmanaged
            allocation follows each.
    """
    requests: list[list[int]] = []
    live: list[int] = []
    left = managed
    while left or live:
        if left and (not live or rng.random() < 0.55):
            live.append(len(requests))
            requests.append([rng.choice(sizes), UNMANAGED])
            left -= 1
        else:
            requests[live.pop(rng.randrange(len(live)))][1] = len(requests)
            if apart:
                requests.append([rng.choice(sizes), UNMANAGED])
        if rng.random() < 0.05:
            requests.append([rng.choice(sizes), UNMANAGED])
    return [(size, end) for size, end in requests]


def surviving_requests(
    rng: random.Random,
    managed: int,
    sizes: Sequence[int],
    *,
    apart: bool = False,
    order: Order = in_order,
) -> list[Request]:
    """Of `random_requests` the first in which no two free ranges are ever of one size."""
    while True:
        requests = random_requests(rng, managed, sizes, apart=apart)
        if not plan(requests, order)[1]:
            return requests
