"""``xbarc chip``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwspec.errors import DataError
from xbarc.cli.arguments import Json, Seed, output_path, parse_fields
from xbarc.cli.output import emit_json, say, table

if TYPE_CHECKING:
    from hwspec.chip import Chip
    from hwspec.fault_statistics import FaultStatistics
    from hwspec.spec import HardwareSpec

app = typer.Typer(help="Draw, import, show and count the failed devices of chips.", no_args_is_help=True)

Map = Annotated[str, typer.Argument(metavar="MAP", help="Fault map (.npz), as sample and import write it.")]
ArrayNumber = Annotated[int, typer.Option("--array", min=0, help="Index of the array.")]
SetFields = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the spec.")
]
MapOutput = Annotated[str, typer.Option("-o", "--output", help="Where to write the fault map (.npz).")]

_WIDTH, _HEIGHT = 128, 64


@app.command()
def sample(
    output: MapOutput,
    spec: Annotated[str | None, typer.Option(help="Preset or spec file; by default that of --for.")] = None,
    set_: SetFields = None,
    arrays: Annotated[int | None, typer.Option(min=1, help="Number of arrays.")] = None,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="PROGRAM", help="Take spec and number of arrays from this program.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Draw a chip as it comes from the line, and write its fault map."""
    from hwspec.chip import Chip
    from hwspec.spec import HardwareSpec

    path = _map_path(output, keep=for_)
    if (arrays is None) == (for_ is None):
        raise DataError("--arrays or --for", "must be given, and not both", hint="how many arrays has the chip?")
    if for_ is not None:
        from xbarc.api import load

        program = load(for_)
        arrays, found = program.arrays, program.spec if spec is None else HardwareSpec.resolve(spec)
    elif spec is None:
        raise DataError("--spec", "must be given with --arrays", hint="xbarc spec list shows the presets")
    else:
        found = HardwareSpec.resolve(spec)
    assert arrays is not None
    found = found.with_fields(parse_fields(set_ or []))
    chip = Chip.sample(found, arrays, seed)
    chip.save(path)
    _report(chip, found, output, json=json)


@app.command("import")
def import_(
    measured: Annotated[str, typer.Argument(metavar="MEASURED", help="Measured map (.npz or .csv).")],
    output: MapOutput,
    spec: Annotated[str, typer.Option(help="Preset or spec file of the technology that was measured.")],
    set_: SetFields = None,
    arrays: Annotated[
        int | None, typer.Option(min=1, help="Arrays of the chip; those after the last measured one are good.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Seed of what is not measured (spread, offsets); by default none."),
    ] = None,
    json: Json = False,
) -> None:
    """Read a measured map, states or conductances, and write it as a fault map.

    A .npz holds states (codes), conductance (siemens) or both; a .csv is a table with the columns array, row, col and
    state or conductance, or a plain matrix of the conductances of one array.
    """
    from dataclasses import replace

    from hwspec.chip import Chip
    from hwspec.spec import HardwareSpec

    path = _map_path(output, keep=measured)
    found = HardwareSpec.resolve(spec).with_fields(parse_fields(set_ or []))
    chip = Chip.load(measured, found, arrays=arrays)
    chip = chip if seed is None else replace(chip, seed=seed)
    chip.save(path)
    _report(chip, found, output, json=json)


@app.command()
def show(map_: Map, array: ArrayNumber = 0, json: Json = False) -> None:
    """Print one array: a character for each device, or for each block of devices in large arrays."""
    from hwspec.chip import Chip
    from xbarc.chip_plot import LETTERS, array_states, name_of, text_picture

    chip = Chip.load(map_)
    states = array_states(chip, array)
    if json:
        emit_json(
            {"array": array, "arrays": chip.arrays, "rows": chip.rows, "cols": chip.cols, "states": states.tolist()}
        )
        return
    lines, block = text_picture(states, _WIDTH, _HEIGHT)
    say(f"array {array} of {chip.arrays}, {chip.rows} word lines x {chip.cols} bit lines")
    if block != (1, 1):
        say(f"a character stands for {block[0]}x{block[1]} devices: . all good, else the most frequent failure")
    say("\n".join(lines))
    say("  ".join(f"{letter} {name_of(state)} {(states == state).sum()}" for state, letter in LETTERS.items()))


@app.command()
def stats(
    map_: Map,
    spec: Annotated[
        str | None, typer.Option(help="Preset or spec file: its pairing says which two devices are a pair.")
    ] = None,
    json: Json = False,
) -> None:
    """Count the failed devices of a fault map, by device and by pair, by state and by array."""
    from hwspec.chip import Chip
    from hwspec.spec import HardwareSpec

    found = None if spec is None else HardwareSpec.resolve(spec)
    _report(Chip.load(map_, found), found, None, json=json)


@app.command()
def plot(
    map_: Map,
    output: Annotated[str, typer.Option("-o", "--output", help="Where to write the figure (.png, .svg or .pdf).")],
    array: ArrayNumber = 0,
    json: Json = False,
) -> None:
    """Draw one array by the states of its devices, and what the failed devices of the chip conduct."""
    from hwspec.chip import Chip
    from xbarc.chip_plot import plot_array

    path = output_path(output, keep=map_)
    plot_array(Chip.load(map_), path, array)
    if json:
        emit_json({"figure": output, "array": array})
    else:
        say(f"written to {output}")


def _map_path(output: str, *, keep: str | None) -> Path:
    path = output_path(output, keep=keep)
    if path.suffix.lower() != ".npz":
        raise DataError(f"output {output}", "must end in .npz", got=path.suffix or path.name)
    return path


def _report(chip: "Chip", spec: "HardwareSpec | None", written: str | None, *, json: bool) -> None:
    from hwspec.fault_statistics import count_states

    found = count_states(chip.fault_map, None if spec is None else spec.array.pairing)
    if json:
        emit_json(({} if written is None else {"map": written}) | _record(chip, found))
        return
    say(f"{chip.arrays} arrays of {chip.rows}x{chip.cols}, seed {'none' if chip.seed is None else chip.seed}")
    rows = [[name, f"{count}", f"{found.shares[name]:.2%}"] for name, count in found.counts.items()]
    rows.append(["failed devices", f"{found.failed}", f"{found.failed_share:.2%}"])
    if found.failed_pair_share is not None:
        rows.append(["failed pairs", f"{found.failed_pairs}", f"{found.failed_pair_share:.2%}"])
    table(["", "number", "share"], rows)
    if found.worst:
        say("worst arrays  " + ", ".join(f"{number} ({share:.2%})" for number, share in found.worst))
    if spec is None:
        say("--spec says which devices are pairs, and counts these too")
    if written is not None:
        say(f"written to {written}")


def _record(chip: "Chip", found: "FaultStatistics") -> dict[str, Any]:
    return {
        "sha256": chip.sha256,
        "arrays": chip.arrays,
        "rows": chip.rows,
        "cols": chip.cols,
        "seed": chip.seed,
        "devices": found.devices,
        "failed": found.failed,
        "failed_share": found.failed_share,
        "states": {name: {"number": count, "share": found.shares[name]} for name, count in found.counts.items()},
        "pairs": found.pairs,
        "failed_pairs": found.failed_pairs,
        "failed_pair_share": found.failed_pair_share,
        "worst_arrays": [{"array": number, "failed_share": share} for number, share in found.worst],
    }
