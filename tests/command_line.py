"""The command line in this process: what it prints and how it ends."""

import contextlib
import io
import sys
from typing import NamedTuple

import pytest

from xbarc.cli import main


class Ended(NamedTuple):
    """How a verb ended."""

    code: int
    stdout: str
    stderr: str


def run_xbarc(*arguments: object) -> Ended:
    """Run ``xbarc`` with these arguments."""
    given, sys.argv = sys.argv, ["xbarc", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = given
    assert isinstance(stop.value.code, int)
    return Ended(stop.value.code, out.getvalue(), err.getvalue())
