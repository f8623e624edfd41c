"""Runs ``wb`` as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT = {**os.environ, "PYTHONSAFEPATH": "1", "NO_COLOR": "1"}


def wb(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``wb`` in `folder`, with `environment` besides `ENVIRONMENT`."""
    return subprocess.run(
        [sys.executable, "-m", "workbench", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**ENVIRONMENT, **(environment or {})},
        timeout=120,
        check=False,
    )
