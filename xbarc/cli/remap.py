"""``xbarc map``."""

from typing import Annotated

import typer

from xbarc.cli.arguments import (
    ChipSeed,
    Json,
    MappedChip,
    Predistort,
    ProgramPath,
    Robust,
    ShareArrays,
    ShareWith,
    SpareArrays,
    Steps,
    WithoutSteps,
    output_path,
)
from xbarc.cli.mapping import arrays_needed, chip_to_map_for, note_whole_chip, parse_share, parse_steps, replicas_of
from xbarc.cli.output import emit_json, progress_bar, say


def map_(
    program: ProgramPath,
    output: Annotated[str, typer.Option("-o", "--output", help="Where to write the remapped program.")],
    share: ShareWith = None,
    share_arrays: ShareArrays = None,
    predistort: Predistort = True,
    chip: MappedChip = None,
    chip_seed: ChipSeed = None,
    spare_arrays: SpareArrays = 0,
    steps: Steps = None,
    without_steps: WithoutSteps = None,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, max=16, help="Tiles that hold each block of a matrix; by default as in the program."),
    ] = None,
    robust: Robust = True,
    json: Json = False,
) -> None:
    """Place tiles, assign conductances and set converter ranges again, for any chip or around one's failed devices.

    The model is not compiled anew: a program is compiled once and mapped for each chip.
    """
    from compiler.compile import mapping_of
    from xbarc.api import load, remap
    from xbarc.cli.summary import print_summary, report_json

    path = output_path(output)
    chosen, shared = parse_steps(steps, without_steps), parse_share(share, share_arrays)
    loaded = load(program)
    count = replicas or replicas_of(loaded)
    found = chip_to_map_for(
        chip, chip_seed, spare_arrays, loaded.spec, lambda: arrays_needed(mapping_of(loaded, count), shared)
    )
    with progress_bar("remapping", quiet=json) as advance:
        remapped = remap(
            loaded,
            found,
            share_arrays=shared,
            predistort=predistort,
            steps=chosen,
            robust=robust,
            replicas=count,
            progress=advance,
        )
    remapped.save(path)
    if json:
        emit_json(report_json(output, remapped))
        return
    print_summary(remapped)
    say(f"written to {output}")
    note_whole_chip(found, remapped)
