"""The command ``wb``; also ``python -m workbench``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``wb``; what it consists of is loaded here, where Ctrl-C is answered already."""
    try:
        from workbench import cli

        cli.main()
    except KeyboardInterrupt:
        print("wb: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
