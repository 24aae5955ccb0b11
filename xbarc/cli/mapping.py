"""Which chip a program is mapped for or runs on, and by which steps."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from hwspec.errors import DataError
from xbarc.cli.arguments import parse_names
from xbarc.cli.output import note

if TYPE_CHECKING:
    from compiler.mapping import Mapping
    from compiler.packing import Share
    from compiler.passes.duplicate import Copies
    from hwspec.chip import Chip
    from hwspec.spec import HardwareSpec
    from runtime.program import TileProgram


def parse_steps(steps: str | None, without: str | None) -> frozenset[str]:
    """The steps that ``--steps`` and ``--without-steps`` leave.

    Raises
    ------
    DataError
        If a name is no step.
    """
    from compiler.steps import chosen_steps

    names = parse_names(steps)
    if names == ["all"]:
        names = None
    elif names == ["none"]:
        names = []
    elif names and {"all", "none"} & set(names):
        raise DataError("--steps", "must be all or none alone, or the names of some steps", got=steps)
    return chosen_steps(names, parse_names(without) or [])


def parse_copies(given: list[str]) -> "Copies":
    """Copies of matrices, of ``--copies``: one number, ``balance``, or numbers by layer.

    Raises
    ------
    DataError
        If it is none of these.
    """
    if not given:
        return 1
    if len(given) == 1 and "=" not in given[0]:
        (text,) = given
        if text == "balance":
            return "balance"
        if text.isdecimal():
            return int(text)
        raise DataError("--copies", "must be a number, LAYER=NUMBER, or balance", got=text)
    found: dict[str, int] = {}
    for text in given:
        name, equals, count = text.rpartition("=")
        if not (equals and name and count.isdecimal()):
            raise DataError("--copies", "must be LAYER=NUMBER where it is given more than once", got=text)
        if name in found:
            raise DataError("--copies", "must name each layer once", got=name)
        found[name] = int(count)
    return found


def parse_share(share: str | None, share_arrays: bool | None) -> "Share":
    """Which tiles share arrays, of ``--share``, or of ``--share-arrays`` and ``--no-share-arrays``.

    Raises
    ------
    DataError
        If both are given, or there is no such choice.
    """
    from compiler.packing import chosen_share

    if share is None:
        return chosen_share(share_arrays is None or share_arrays)
    if share_arrays is not None:
        given = "--share-arrays" if share_arrays else "--no-share-arrays"
        raise DataError(f"--share and {given}", "must not be given together")
    return chosen_share(share)


def chip_to_map_for(
    path: str | None, seed: int | None, spare: int, spec: "HardwareSpec", needed: Callable[[], int]
) -> "Chip | None":
    """The chip of ``--chip``, or that of ``--chip-seed`` with so many arrays to spare; None is any chip.

    Parameters
    ----------
    path, seed, spare
        As the options were given.
    spec
        Of the technology.
    needed
        Gives the number of arrays that the program takes.

    Raises
    ------
    DataError
        If options exclude each other.
    ChipError
        If the file is no map of such a chip.
    """
    from hwspec.chip import Chip

    if path is not None and seed is not None:
        raise DataError("--chip and --chip-seed", "must not be given together", hint="which chip is it?")
    if spare and seed is None:
        hint = "a chip from a file has the arrays that it has"
        raise DataError("--spare-arrays", "must be given with --chip-seed", hint=hint)
    if path is not None:
        return Chip.load(path, spec)
    return None if seed is None else Chip.sample(spec, needed() + spare, seed)


def arrays_needed(mapping: "Mapping", share: "Share") -> int:
    """Physical arrays that a mapping will take, once the pass `partition` has run."""
    from compiler.packing import pack_grids, sites_of

    array = mapping.spec.array
    grids = {layer.name: mapping.grids[layer.name] for layer in mapping.layers}
    return sites_of(pack_grids(grids, array, share=share, spares=False)) * array.arrays_per_site


def replicas_of(program: "TileProgram") -> int:
    """Replicas that a program has of the blocks of its matrices."""
    return max(layer.replicas for layer in program.tables.layers)


def note_whole_chip(chip: "Chip | None", program: "TileProgram") -> None:
    """Say so where a program was to be mapped around the failed devices of a chip that has none."""
    if chip is not None and program.faults is None:
        note("the chip's map has no failed devices: the program is mapped as for any chip")


def chip_to_run_on(path: str | None, chips: int, spec: "HardwareSpec") -> "Chip | None":
    """The chip of ``--chip``; None leaves the choice to ``--chips``.

    Raises
    ------
    DataError
        If both options are given.
    ChipError
        If the file is no map of such a chip.
    """
    from hwspec.chip import Chip

    if path is None:
        return None
    if chips != 1:
        raise DataError("--chip and --chips", "must not be given together", hint="--chip is one chip")
    chip = Chip.load(path, spec)
    if chip.seed is None:
        note("the chip has no seed, so it has no random effects; `xbarc chip import --seed` gives it one")
    return chip


def note_other_chip(program: "TileProgram", chip: "Chip | None", chips: int, seed: int) -> None:
    """Say so where a program that was mapped for one chip runs on others.

    Parameters
    ----------
    program
        What runs.
    chip
        Where, or None for sampled ones.
    chips, seed
        How many of these, and the seed of the first.
    """
    from hwspec.chip import Chip

    mapped_for = program.tested_faults
    if mapped_for is None or (chip is None and chips == 0):
        return
    if chip is None and chips == 1:
        chip = Chip.sample(program.spec, program.arrays, seed)
    known = None if chip is None else chip.as_tested(program.spec).fault_map.first(mapped_for.shape[0])
    if known == mapped_for:
        return
    others = "other chips" if chip is None else "another one"
    note(
        f"the program was mapped around the failed devices of chip {(program.tables.mapped_for or '')[:12]}, and runs "
        f"on {others}; `xbarc map --chip` maps it again"
    )
