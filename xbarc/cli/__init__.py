"""The command line: one file a verb."""

from xbarc.cli.main import main

__all__ = ["main"]
