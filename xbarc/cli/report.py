"""``xbarc report``."""

from typing import Annotated

import typer

from xbarc.cli.arguments import Json
from xbarc.cli.output import emit_json


def report(
    programs: Annotated[
        list[str], typer.Argument(metavar="PROGRAM [PROGRAM]", help="One program (.xbar), or two to compare.")
    ],
    json: Json = False,
) -> None:
    """Show what a program takes on its hardware: time, energy, area, and what sets them."""
    from hwspec.errors import DataError
    from runtime.costing import cost
    from xbarc.api import load
    from xbarc.cli.costs import print_comparison, print_cost

    if len(programs) > 2:
        raise DataError("programs", "must be one, or two to compare", got=len(programs))
    reports = [cost(load(path)) for path in programs]
    if json:
        dumped = [{"program": path, **one.model_dump(mode="json")} for path, one in zip(programs, reports, strict=True)]
        emit_json(dumped[0] if len(dumped) == 1 else {"programs": dumped})
        return
    if len(reports) == 1:
        print_cost(reports[0])
    else:
        print_comparison(reports, programs)
