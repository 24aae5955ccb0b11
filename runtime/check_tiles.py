"""Validation of tiles: within their arrays, on lines of their own, and gated off only where the hardware can."""

import numpy as np
import numpy.typing as npt

from hwspec.errors import ProgramError
from hwspec.failures import State
from hwspec.reach import isolation
from runtime.program import TileProgram, TileTensors
from runtime.quantize import is_off
from runtime.requirement import require
from runtime.tables import Tile


def check_tiles(program: TileProgram) -> None:
    """Raise `ProgramError` unless tiles and failed devices are sound; layers and the tensors' sizes were checked."""
    _check_faults(program)
    _check_segments(program)
    for tile in program.tables.tiles:
        _check_tile(program, tile, program.tile_tensors[tile.name])
        _check_gated(program, tile)
    _check_overlaps(program)
    _check_gated_lines(program)


def _check_faults(program: TileProgram) -> None:
    faults, array = program.faults, program.spec.array
    given = program.tables.mapped_for is not None
    require(given == (faults is not None), "program", "must hold failed devices and mapped_for, or neither", given)
    if faults is not None:
        arrays, rows, cols = faults.shape
        good = arrays >= program.tables.written and (rows, cols) == (array.rows, array.cols)
        size = f"{program.tables.written} arrays of {array.rows}x{array.cols}"
        require(good, "failed devices", f"must cover {size}", f"{arrays} of {rows}x{cols}")
    tables = program.tables
    raised = tables.robust and (given or not program.spec.failures.at_start)
    require(
        not raised, "program", "must not raise pairs where failures are known, or where there are none", tables.robust
    )
    require(
        given or not tables.mapping_steps, "program", "must be mapped for a chip to have steps", tables.mapping_steps
    )
    held = None if faults is None else faults.sha256
    good = held == program.tables.faults_sha256
    require(good, "failed devices", "must be those that the program was mapped around", held)


def _check_segments(program: TileProgram) -> None:
    """Segments are whole layers, one after another, and there are several; failed devices are the same in each."""
    tables, reload = program.tables, program.tables.reload
    if reload is None:
        return
    per_site = program.spec.array.arrays_per_site
    require(reload % per_site == 0, "reload", f"must be whole sites of {per_site} arrays", reload)
    require(tables.written > reload, "reload", f"must be fewer arrays than the {tables.written} of all layers", reload)
    used = sorted({tables.segment(tile.array) for tile in tables.tiles})
    good = used == list(range(len(used)))  # else a few tiles could ask for any number of arrays
    require(good, "segments", "must follow one another without a gap", used[:8])
    found: dict[str, set[int]] = {}
    for tile in tables.tiles:
        found.setdefault(tile.layer, set()).add(tables.segment(tile.array))
    last = 0
    for loop in tables.loops:
        segments = found.get(loop.layer, {last})
        good = len(segments) == 1 and min(segments) >= last
        subject = f"layer {loop.layer!r}"
        require(good, subject, "must lie in one segment, none before that of the last layer", sorted(segments))
        last = max(segments)
    if program.faults is not None:
        whole = program.met(program.faults)
        good = whole is not None and program.faults == whole.first(program.faults.shape[0])
        require(good, "failed devices", "must be the same in every segment", reload)


def _check_tile(program: TileProgram, tile: Tile, tensors: TileTensors) -> None:
    subject = f"tile {tile.name!r}"
    spec, layer = program.spec, program.layers[tile.layer]
    for kind, lines, count in (
        ("word", tensors.word_lines, spec.array.weight_rows),
        ("bit", tensors.bit_lines, spec.array.weight_cols),
    ):
        good = bool((np.diff(lines.astype(np.int64)) > 0).all())
        require(good, subject, f"must have rising {kind} lines", lines[:8].tolist())
        if lines[0] < 0 or lines[-1] >= count:
            size = f"{spec.array.weight_rows}x{spec.array.weight_cols}"
            raise ProgramError(subject, f"must lie within its site of {size} weights")
    require(tile.slice < spec.array.slices, subject, f"must hold one of {spec.array.slices} slices", tile.slice)
    require(tile.array % spec.array.arrays_per_site == 0, subject, "must start a site", tile.array)
    require(tile.copy_number < layer.copies, subject, f"must be of one of {layer.copies} copies", tile.copy_number)
    require(tile.replica < layer.replicas, subject, f"must be one of {layer.replicas} replicas", tile.replica)
    device = spec.device
    gates = isolation(spec.array, spec.failures) != "none"
    single = spec.array.pairing == "reference"
    if single:
        require(not tensors.minus.any(), subject, "must have no minus devices", float(tensors.minus.max()))
    for side, targets in (("plus", tensors.plus), ("minus", tensors.minus))[: 1 if single else 2]:
        off = is_off(device, targets)
        good = gates or not off.any()
        require(good, subject, f"must not gate {side} devices off where failures.isolation is none", int(off.sum()))
        if device.level_count is not None:
            good = bool(((targets < device.level_count) | off).all())
            require(good, subject, f"must have {side} level codes below {device.level_count}", int(targets.max()))
        else:
            slack = 1e-9 * device.span
            low, high = device.g_min - slack, device.g_max + slack
            good = bool(((targets >= low) & (targets <= high) | off).all())
            require(good, subject, f"must have {side} conductances within the device's range", float(targets.max()))
    good = np.array_equal(np.sort(tensors.row_map), np.arange(tile.rows))
    require(good, subject, "must drive each of its rows once", tensors.row_map[:8].tolist())
    good = len(np.unique(tensors.col_map)) == tile.cols and tensors.col_map.min() >= 0
    groups = np.unique(tensors.col_map // layer.cols)
    good = good and len(groups) == 1 and groups[0] < layer.groups
    require(bool(good), subject, "must have distinct columns of one group", tensors.col_map[:8].tolist())
    good = bool(np.isin(tensors.col_sign, (-1, 1)).all())
    require(good, subject, "must have column signs of +1 or -1", tensors.col_sign[:8].tolist())
    good = bool((np.isfinite(tensors.scale) & (tensors.scale > 0)).all())
    require(good, subject, "must have positive finite scales", tensors.scale[:8].tolist())
    good = bool((np.isfinite(tensors.gain) & (tensors.gain > 0)).all())
    require(good, subject, "must have positive finite gains", tensors.gain[:8].tolist())


def _check_overlaps(program: TileProgram) -> None:
    by_array: dict[int, list[Tile]] = {}
    for tile in program.tables.tiles:
        by_array.setdefault(tile.array, []).append(tile)
    for array, tiles in by_array.items():
        if len(tiles) == 1:
            continue
        used = np.zeros((program.spec.array.weight_rows, program.spec.array.weight_cols), dtype=bool)
        for tile in tiles:
            tensors = program.tile_tensors[tile.name]
            cells = np.ix_(tensors.word_lines, tensors.bit_lines)
            if used[cells].any():
                raise ProgramError(f"tile {tile.name!r}", f"must not overlap another tile on array {array}")
            used[cells] = True


def _check_gated(program: TileProgram, tile: Tile) -> None:
    """Failed devices that are gated off still have a gate."""
    if program.faults is None:
        return
    stubborn = [state for state, section in program.spec.failures.states() if not section.isolatable]
    for off, states in zip(program.gated(tile.name), program.failed_states(tile.name), strict=True):
        found = states[off & np.isin(states, stubborn)]
        if found.size:
            name = State(int(found[0])).name.lower()
            raise ProgramError(f"tile {tile.name!r}", f"must not gate off {name} devices, whose gate has failed")


def _check_gated_lines(program: TileProgram) -> None:
    """Where a gate belongs to a word line, it takes all devices along that tiles use there."""
    array = program.spec.array
    if isolation(array, program.spec.failures) != "line":
        return
    lines: dict[int, npt.NDArray[np.bool_]] = {}
    for tile in program.tables.tiles:
        for (number, rows, _), off in zip(program.places(tile.name).values(), program.gated(tile.name), strict=False):
            gated, driven = lines.setdefault(number, np.zeros((2, array.rows), bool))
            gated[rows] |= off.any(1)
            driven[rows] |= ~off.all(1)
    for number, (gated, driven) in lines.items():
        both = np.flatnonzero(gated & driven)
        good = not both.size
        require(good, f"array {number}", "must gate off all devices of a word line that tiles use, or none", both[:8])
