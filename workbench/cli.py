"""The ``wb`` command: finds the commands in ``workbench/commands`` and reports errors.

A command is one file there, named like the command, with a function ``command`` in Typer's manner
(its docstring is the help text) and, where the command needs it, ``CONTEXT_SETTINGS`` for click.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from types import FrameType
from typing import Annotated

import typer

from workbench import commands
from workbench.common.errors import WorkbenchError
from workbench.common.version import __version__
from workbench.common.words import printable

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Record every allocation of a PyTorch program, replay it, compare allocators.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wb {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Options that go before the command."""
    if debug:
        os.environ["WORKBENCH_DEBUG"] = "1"


def _add_commands() -> None:
    for module_info in sorted(iter_modules(commands.__path__), key=lambda found: found.name):
        if module_info.name.startswith("_"):
            continue
        module = import_module(f"{commands.__name__}.{module_info.name}")
        settings = getattr(module, "CONTEXT_SETTINGS", None)
        app.command(module_info.name, context_settings=settings)(module.command)


class Terminated(BaseException):
    """A signal arrived that ends the command; its argument is the signal's number."""


def _terminated(number: int, _: object) -> None:
    raise Terminated(number)


def _again(number: int) -> None:
    """Raise a signal's exception once more, in a moment."""

    def on_alarm(_: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(number)

    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in a destructor or a weak reference's callback.

    There is one after every import of a module: what a signal raised there must not be lost.
    """
    if isinstance(lost.exc_value, Terminated):
        _again(int(lost.exc_value.args[0]))
    elif isinstance(lost.exc_value, KeyboardInterrupt):
        _again(signal.SIGINT)
    else:
        sys.__unraisablehook__(lost)


def _reasons(error: BaseException) -> Iterator[BaseException]:
    """What was being handled when `error` was raised, and before."""
    reason: BaseException | None = error
    while reason is not None:
        yield reason
        reason = reason.__cause__ or reason.__context__


def main() -> None:
    """Run ``wb`` and end the process with its exit code (docs: 0 done, 1 failed, 2 wrong use)."""
    # As Ctrl-C, so that what a command began is removed; `wb record` hands both to the program.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup: stays so
            signal.signal(number, _terminated)
    sys.unraisablehook = _unraisable
    try:
        _run()
    except WorkbenchError as error:
        if os.environ.get("WORKBENCH_DEBUG"):
            traceback.print_exc()
        print(f"wb: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("wb: interrupted", file=sys.stderr)
        sys.exit(130)
    except Terminated as end:
        print("wb: terminated", file=sys.stderr)
        sys.exit(128 + int(end.args[0]))
    except BrokenPipeError:
        # The reader of our output went away (`wb info … | head`): nothing is wrong.
        _let_go_of_output()
        sys.exit(0)
    except OSError as error:
        if os.environ.get("WORKBENCH_DEBUG"):
            traceback.print_exc()
        # Files of ours are reported where they are written: what is left is our output's end.
        print(f"wb: cannot write the output ({error.strerror}); make room for it", file=sys.stderr)
        _let_go_of_output()
        sys.exit(1)


def _run() -> None:
    """Run the command; what typer and rich end the process for, as the exception it was."""
    _add_commands()
    try:
        app()
    except SystemExit as end:
        for reason in _reasons(end):
            if isinstance(reason, (BrokenPipeError, KeyboardInterrupt)):
                raise reason from None
        # What is still held back is written here, where the reader's absence can be told.
        if sys.stdout is not None:
            sys.stdout.flush()
        raise


def _let_go_of_output() -> None:
    """So that Python does not try again to write the rest when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
