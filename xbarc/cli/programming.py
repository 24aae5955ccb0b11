"""What verbs print of the programming of a chip."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xbarc.cli.output import say

if TYPE_CHECKING:
    from runtime.programming import ProgrammingReport


def print_programming(report: "ProgrammingReport") -> None:
    """Print what programming took and left."""
    failed = f", {report.failed:,} failed to be programmed" if report.failed else ""
    astray = f", {report.unconverged:,} outside their tolerance" if report.unconverged else ""
    stuck = f"; {report.stuck:,} had failed before" if report.stuck else ""
    say(f"{report.devices:,} devices programmed with {report.pulses:,} pulses{failed}{astray}{stuck}")
    print_trim(report.trim)


def print_trim(trim: Mapping[str, tuple[float, float]] | None) -> None:
    """Print what the controller's trim gained, layer by layer."""
    for layer, (before, after) in (trim or {}).items():
        say(f"  trim of {layer}: error on known vectors {before:.2%} before, {after:.2%} after")
