"""The command line: one file a verb."""

import sys

_INTERRUPTED = 130

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code; ctrl-C gives the same code at any moment, also while loading."""
    try:
        from xbarc.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # also the command-line library's word for ctrl-C
        # Where ctrl-C strikes inside `exec` of a string, as libraries load, CPython notes that it shall end by the
        # signal whatever its code. The next `exec` that ends well takes that back.
        exec("")
        print("interrupted", file=sys.stderr)
    sys.exit(code)
