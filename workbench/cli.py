"""The ``wb`` command: finds the commands in ``workbench/commands`` and reports errors.

A command is one file there, named like the command, with a function ``command`` in Typer's manner
(its docstring is the help text) and, where the command needs it, ``CONTEXT_SETTINGS`` for click.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated

import typer

from workbench import commands
from workbench.common.errors import WorkbenchError
from workbench.common.version import __version__

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


def main() -> None:
    """Run ``wb`` and end the process with its exit code (docs: 0 done, 1 failed, 2 wrong use)."""
    _add_commands()
    # As Ctrl-C, so that what a command began is removed; `wb record` hands both to the program.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup: stays so
            signal.signal(number, _terminated)
    try:
        app()
    except WorkbenchError as error:
        if os.environ.get("WORKBENCH_DEBUG"):
            traceback.print_exc()
        print(f"wb: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("wb: interrupted", file=sys.stderr)
        sys.exit(130)
    except Terminated as end:
        print("wb: terminated", file=sys.stderr)
        sys.exit(128 + int(end.args[0]))
    except BrokenPipeError:
        # The reader of our output went away (`wb info … | head`): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if os.environ.get("WORKBENCH_DEBUG"):
            traceback.print_exc()
        # Files of ours are reported where they are written: what is left is our output's end.
        print(f"wb: cannot write the output ({error.strerror}); make room for it", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
