"""Snapshots of random programs, held against the self-check for as long as one likes.

    python tests/fuzz/self_check.py --seconds 300

Each program is run under random settings, its snapshot cut at random starts; each of them must be
found exact. The first that are not are printed with the seed that makes them again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from snapshot_cases import random_case, random_cuts, verdicts

_SHOWN = 10


def check_seed(seed: int, cuts: int, kinds: Counter[str]) -> list[str]:
    """What is not exact of the program of `seed`."""
    rng = random.Random(seed)
    case = random_case(rng)
    problems = []
    for snapshot in random_cuts(rng, case.snapshot(), cuts):
        entries = sum(map(len, snapshot["device_traces"]))
        for verdict in verdicts(snapshot):
            kinds[verdict.kind] += 1
            kinds["with facts"] += bool(verdict.facts)
            if verdict.kind != "exact" and entries:
                problems.append(f"seed {seed}: {case}: last {entries} entries: {verdict}")
    return problems


def main() -> int:
    """Run until the time is over; 1 where something was not exact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1, help="the first; the others follow")
    parser.add_argument("--cuts", type=int, default=6, help="random starts of each history")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    kinds: Counter[str] = Counter()
    problems: list[str] = []
    seed = options.seed
    while time.monotonic() < end:
        found = check_seed(seed, options.cuts, kinds)
        for problem in found[: max(_SHOWN - len(problems), 0)]:
            print(problem, flush=True)
        problems += found
        seed += 1
    print(f"seeds {options.seed} to {seed - 1}: {dict(kinds)}; {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
