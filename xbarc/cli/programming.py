"""What verbs print of the programming of a chip."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xbarc.cli.output import say

if TYPE_CHECKING:
    from runtime.programming import ProgrammingReport

TRIM = "trim of {}: error on known vectors"
REESTIMATED = "columns of {} re-estimated: error of the results"


def print_programming(report: "ProgrammingReport") -> None:
    """Print what programming took and left."""
    failed = f", {report.failed:,} failed to be programmed" if report.failed else ""
    astray = f", {report.unconverged:,} outside their tolerance" if report.unconverged else ""
    stuck = f"; {report.stuck:,} had failed before" if report.stuck else ""
    say(f"{report.devices:,} devices programmed with {report.pulses:,} pulses{failed}{astray}{stuck}")
    print_errors(TRIM, report.trim)


def print_errors(told: str, errors: Mapping[str, tuple[float, float]] | None) -> None:
    """Print what a correction gained, layer by layer; `told` has a place for the layer."""
    for layer, (before, after) in (errors or {}).items():
        say(f"  {told.format(layer)} {before:.2%} before, {after:.2%} after")
