"""From the spool that the hook writes to a trace."""

from __future__ import annotations

from workbench.recorders.spool.convert import ConvertedTrace, convert_process

__all__ = ["ConvertedTrace", "convert_process"]
