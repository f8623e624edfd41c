"""The errors a user can meet.

::

    WorkbenchError           anything we report in one sentence           exit code 1
    ├── UsageError           a wrong option, name or value                exit code 2
    ├── BrokenFileError      a file that is missing, broken or not ours   exit code 2
    │   └── TraceError       a trace that breaks a rule of its format     exit code 2
    ├── MissingPartError     torch, a compiler, headers, a driver         exit code 1
    └── RunError             a run failed or a limit was broken           exit code 1

A message is one sentence that says what is wrong, where, and what to do about it. The commands
print it without a traceback; ``wb --debug`` shows the traceback too.
"""

from __future__ import annotations

from pathlib import Path


class WorkbenchError(Exception):
    """Base of every error that is reported in one sentence."""

    exit_code = 1


class UsageError(WorkbenchError):
    """A wrong option, name or value; the message names it and says what is accepted."""

    exit_code = 2


class BrokenFileError(WorkbenchError):
    """A file that is missing, unreadable, truncated, of another kind or of another version.

    Args:
        path: the file.
        problem: what is wrong and where, without the file's name.
        remedy: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, path: str | Path, problem: str, remedy: str) -> None:
        self.path = str(path)
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{path}: {problem}; {remedy}")


class TraceError(BrokenFileError):
    """A trace that breaks a rule of the trace format.

    Args:
        path: the file.
        rule: the broken rule's name, as listed in docs/trace-format.md.
        problem: what is wrong, naming row and column.
        remedy: what the user can do about it.
    """

    def __init__(self, path: str | Path, rule: str, problem: str, remedy: str) -> None:
        self.rule = rule
        super().__init__(path, f"{problem} [{rule}]", remedy)


class MissingPartError(WorkbenchError):
    """Something the machine lacks: torch, a compiler, headers, a driver."""


class RunError(WorkbenchError):
    """A run failed, or a limit the user set was broken."""
