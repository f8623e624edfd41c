"""The public Python face; each function mirrors a command."""

from __future__ import annotations
