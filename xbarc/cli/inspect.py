"""``xbarc inspect``."""

from typing import TYPE_CHECKING, Annotated

import typer

from hwspec.errors import DataError
from xbarc.cli.arguments import Json, ProgramPath, output_path
from xbarc.cli.output import emit_json, say

if TYPE_CHECKING:
    from runtime.program import TileProgram


def inspect(
    program: ProgramPath,
    listing: Annotated[bool, typer.Option("--listing", help="Print the program as text.")] = False,
    tile: Annotated[str | None, typer.Option(metavar="NAME", help="Show one tile, as it lies on its array.")] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --tile: where to draw it (.png, .svg or .pdf).")
    ] = None,
    json: Json = False,
) -> None:
    """Show what a program holds, or one of its tiles."""
    from xbarc.api import load
    from xbarc.cli.summary import print_summary, report_json

    if picture is not None and tile is None:
        raise DataError("--picture", "must be given with --tile", hint="which tile? --listing names them")
    loaded = load(program)
    if tile is not None:
        _show_tile(loaded, tile, program, picture, json=json)
        return
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


def _show_tile(loaded: "TileProgram", name: str, program: str, picture: str | None, *, json: bool) -> None:
    from xbarc.cli.tile import print_tile, tile_json
    from xbarc.tile_view import view_tile

    path = None if picture is None else output_path(picture, keep=program)
    view = view_tile(loaded, name)
    if path is not None:
        from xbarc.tile_plot import plot_tile

        plot_tile(view, path)
    if json:
        emit_json({"program": program, "picture": picture, **tile_json(view)})
        return
    print_tile(view)
    if path is not None:
        say(f"picture     written to {picture}")
