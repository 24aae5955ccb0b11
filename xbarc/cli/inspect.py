"""``xbarc inspect``."""

from typing import Annotated

import typer

from xbarc.cli.arguments import Json, ProgramPath
from xbarc.cli.output import emit_json, say


def inspect(
    program: ProgramPath,
    listing: Annotated[bool, typer.Option("--listing", help="Print the program as text.")] = False,
    json: Json = False,
) -> None:
    """Show what a program holds."""
    from xbarc.api import load
    from xbarc.cli.summary import print_summary, report_json

    loaded = load(program)
    if json:
        tables = loaded.tables.model_dump(mode="json")
        emit_json({**report_json(program, loaded), "tables": tables} if listing else report_json(program, loaded))
        return
    if listing:
        say(loaded.listing().rstrip())
        return
    print_summary(loaded)
    for kind, infos in (("input", loaded.tables.inputs), ("output", loaded.tables.outputs)):
        for info in infos:
            say(f"{kind:<7} {info.name}  {info.dtype} ({', '.join(map(str, info.shape))})")
    say(f"model   sha256 {loaded.tables.model_sha256}{'' if loaded.source else ' (not in the program)'}")
    say(f"seed    {loaded.tables.seed}, calibration: {loaded.tables.calibration}")
    say("passes  " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in loaded.report.seconds.items()))
