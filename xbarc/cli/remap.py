"""``xbarc map``."""

from typing import Annotated

import typer

from xbarc.cli.arguments import Json, ProgramPath, output_path
from xbarc.cli.output import emit_json, progress_bar, say


def map_(
    program: ProgramPath,
    output: Annotated[str, typer.Option("-o", "--output", help="Where to write the remapped program.")],
    share_arrays: Annotated[bool, typer.Option(help="Let small tiles of a layer share arrays.")] = True,
    predistort: Annotated[bool, typer.Option(help="Let targets undo the resistance of wires.")] = True,
    json: Json = False,
) -> None:
    """Place tiles, assign conductances and set converter ranges again; the model is not compiled anew."""
    from xbarc.api import load, remap
    from xbarc.cli.summary import print_summary, report_json

    path = output_path(output)
    with progress_bar("remapping", quiet=json):
        remapped = remap(load(program), share_arrays=share_arrays, predistort=predistort)
    remapped.save(path)
    if json:
        emit_json(report_json(output, remapped))
        return
    print_summary(remapped)
    say(f"written to {output}")
