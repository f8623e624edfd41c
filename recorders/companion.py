"""Keeps the process running that works on a spool while its program runs (spool/live.py)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator

from workbench.recorders.recording import Spool

_RESTART_SECONDS = 1.0


@contextlib.contextmanager
def companion(spool: Spool) -> Iterator[None]:
    """A companion of the recording while the block runs, where its options ask for one.

    One that dies is replaced: without it a ring would grow until the disk is full.
    """
    ring = spool.options.ring
    if ring is None and not spool.options.converts_live:
        yield
        return
    over = threading.Event()
    command = [sys.executable, "-P", "-m", "workbench.recorders.spool.live", str(spool.folder)]
    if ring is not None:
        command.append(str(ring))

    def start() -> subprocess.Popen[bytes]:
        # The lock goes with it: nobody recovers the spool while a last step is under way.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[spool.lock.fileno()],
            start_new_session=True,
        )

    def keep() -> None:
        process = start()
        while not over.wait(0.05):
            if process.poll() is not None and not over.wait(_RESTART_SECONDS):
                process = start()
        process.terminate()
        process.wait()

    keeper = threading.Thread(target=keep, name="wb-companion")
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
