"""Many memory passes in one process: ``python -m workbench.replay.search_worker``.

The first line on standard input says where each traffic's columns lie, in JSON; every later line is
one candidate, and is answered by one line on standard output. The process ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from workbench.replay import _engine
from workbench.replay.results import device_calls
from workbench.replay.worker import die_with_parent, load_events


def measure(events: Any, task: dict[str, Any]) -> dict[str, Any]:
    """The fields of `workbench.replay.search.Outcome` for `task`, arguments of the engine's Replay.

    Settings or values that the engine refuses, and faults of an allocator, are outcomes too.
    """
    try:
        replay = _engine.Replay(events, **task)
        found = replay.memory(1)
    except ValueError as error:
        return {"status": "refused", "reason": str(error)}
    except (RuntimeError, MemoryError) as error:
        return {
            "status": "crashed",
            "reason": f"the engine stopped: {type(error).__name__}: {error}",
        }
    mismatch = found["mismatch"]
    if mismatch is not None:
        return {
            "status": "refused",
            "reason": f"plan mismatch: of id {mismatch['id']} the plan expects "
            f"{mismatch['expected']}, and the trace has {mismatch['got']}",
        }
    calls = found["driver_calls"]
    return {
        "status": found["outcome"],
        "peaks": {name: peak["bytes"] for name, peak in found["peaks"].items()},
        "finals": found["finals"],
        "waterfall": found["waterfall"],
        "retries": found["counters"]["retries"],
        "device_calls": device_calls(calls) or 0,
        "refused_calls": calls["refused"],
        "oom": found["oom"],
        "warnings": found["warnings"],
    }


def main() -> None:
    """Answer candidates until there are no more."""
    die_with_parent()
    # Answers go where nothing else that prints can: a library may write to standard output.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    traffics = json.loads(sys.stdin.readline())
    loaded: dict[str, Any] = {}
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        name = task.pop("traffic")
        if name not in loaded:
            folder, slot_count = traffics[name]
            loaded[name] = load_events(Path(folder), slot_count)[0]
        print(json.dumps(measure(loaded[name], task)), file=answers, flush=True)


if __name__ == "__main__":
    main()
