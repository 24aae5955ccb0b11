"""Validation of a program: every name resolves, every index and shape is in range, nothing overlaps.

Hashes stop accidents, not forgery; after this check the engines trust the tables.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from hwspec.errors import ProgramError
from runtime.program import TILE_TENSORS, TileProgram, TileTensors, tile_tensor_size
from runtime.tables import (
    Acc,
    Buffer,
    Gather,
    Host,
    Layer,
    Load,
    Loop,
    Mvm,
    Row,
    Scatter,
    Store,
    Tile,
    input_phases,
)


def check_program(program: TileProgram) -> None:
    """Raise `ProgramError`, naming the entry, unless `program` is sound."""
    tables = program.tables
    for kind, rows in (
        ("layer", tables.layers),
        ("gather", tables.gathers),
        ("scatter", tables.scatters),
        ("tile", tables.tiles),
        ("buffer", tables.buffers),
    ):
        _unique(kind, [row.name for row in rows])
    for gather in tables.gathers:
        _check_windows(f"gather {gather.name!r}", gather, image=gather.kind == "patches")
    for scatter in tables.scatters:
        _check_windows(f"scatter {scatter.name!r}", scatter, image=scatter.kind == "fold")
    layers = {layer.name: layer for layer in tables.layers}
    for layer in tables.layers:
        _check_layer(program, layer)
    for tile in tables.tiles:
        if tile.layer not in layers:
            raise ProgramError(f"tile {tile.name!r}", "must belong to a layer of the program", got=tile.layer)
        _check_tile(program, tile, program.tile_tensors[tile.name])
    _check_overlaps(program)
    _check_instructions(program)


def _unique(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ProgramError(f"{kind} {twice!r}", "must be defined once")


def _require(condition: bool, subject: str, requirement: str, got: object) -> None:
    if not condition:
        raise ProgramError(subject, requirement, got=got)


def _check_windows(subject: str, row: Gather | Scatter, *, image: bool) -> None:
    rank = len(row.kernel)
    if row.channels % row.groups:
        raise ProgramError(subject, "must divide its channels evenly among its groups", got=(row.channels, row.groups))
    if not image:
        _require(rank == 0, subject, "must have no kernel", row.kernel)
        return
    _require(rank >= 1, subject, "must have a kernel", row.kernel)
    for name in ("strides", "dilations"):
        _require(len(getattr(row, name)) == rank, subject, f"must have {rank} {name}", getattr(row, name))
    if row.auto_pad == "none" and not (isinstance(row, Scatter) and row.output_shape):
        _require(len(row.pads) == 2 * rank, subject, f"must have {2 * rank} pads", row.pads)
    if isinstance(row, Scatter):
        _require(len(row.output_padding) == rank, subject, f"must have {rank} output paddings", row.output_padding)
        _require(len(row.output_shape) in (0, rank), subject, f"must have {rank} output sizes", row.output_shape)


def _check_layer(program: TileProgram, layer: Layer) -> None:
    subject = f"layer {layer.name!r}"
    shape = (layer.groups, layer.rows, layer.cols)
    weight = program.weights.get(layer.name)
    if weight is None or weight.shape != shape or weight.dtype.kind != "f":
        raise ProgramError(subject, f"must have float weights of shape {shape}")
    _require(bool(np.isfinite(weight).all()), subject, "must have finite weights", "NaN or infinity")
    tiles = [tile for tile in program.tables.tiles if tile.layer == layer.name]
    for key in TILE_TENSORS:
        tensor = program.tensors.get(f"{layer.name}/{key}")
        size = sum(tile_tensor_size(key, tile) for tile in tiles)
        if tensor is None or tensor.ndim != 1 or len(tensor) != size:
            raise ProgramError(f"tensor {layer.name}/{key}", f"must hold {size} elements")
        _require(tensor.dtype.kind in _KINDS[key], f"tensor {layer.name}/{key}", "must have another type", tensor.dtype)
    bias = program.tensors.get(f"{layer.name}/bias")
    if bias is None or bias.ndim != 1 or bias.dtype != np.float64 or not np.isfinite(bias).all():
        raise ProgramError(f"tensor {layer.name}/bias", "must be a vector of finite float64")
    loops = [loop for loop in program.tables.loops if loop.layer == layer.name]
    _require(len(loops) == 1, subject, "must be computed by one loop", len(loops))


_KINDS = {"plus": "uf", "minus": "uf", "row_map": "i", "col_map": "i", "col_sign": "i", "scale": "f"}


def _check_tile(program: TileProgram, tile: Tile, tensors: TileTensors) -> None:
    subject = f"tile {tile.name!r}"
    spec, layer = program.spec, program.layers[tile.layer]
    if tile.row + tile.rows > spec.array.rows or tile.col + tile.cols > spec.array.weight_cols:
        size = f"{spec.array.rows}x{spec.array.weight_cols}"
        raise ProgramError(subject, f"must lie within its site of {size} signed weights")
    _require(tile.array % spec.array.arrays_per_site == 0, subject, "must start a site", tile.array)
    device = spec.device
    for side, targets in (("plus", tensors.plus), ("minus", tensors.minus)):
        if device.levels is not None:
            good = targets.dtype.kind == "u" and bool((targets < device.levels).all())
            _require(good, subject, f"must have {side} level codes below {device.levels}", int(targets.max()))
        else:
            slack = 1e-9 * device.span
            low, high = device.g_min - slack, device.g_max + slack
            good = targets.dtype == np.float64 and bool(((targets >= low) & (targets <= high)).all())
            _require(good, subject, f"must have {side} conductances within the device's range", float(targets.max()))
    good = np.array_equal(np.sort(tensors.row_map), np.arange(tile.rows))
    _require(good, subject, "must drive each of its rows once", tensors.row_map[:8].tolist())
    good = len(np.unique(tensors.col_map)) == tile.cols and tensors.col_map.min() >= 0
    groups = np.unique(tensors.col_map // layer.cols)
    good = good and len(groups) == 1 and groups[0] < layer.groups
    _require(bool(good), subject, "must have distinct columns of one group", tensors.col_map[:8].tolist())
    good = bool(np.isin(tensors.col_sign, (-1, 1)).all())
    _require(good, subject, "must have column signs of +1 or -1", tensors.col_sign[:8].tolist())
    good = bool((np.isfinite(tensors.scale) & (tensors.scale > 0)).all())
    _require(good, subject, "must have positive finite scales", tensors.scale[:8].tolist())


def _check_overlaps(program: TileProgram) -> None:
    by_array: dict[int, list[Tile]] = {}
    for tile in program.tables.tiles:
        by_array.setdefault(tile.array, []).append(tile)
    for array, tiles in by_array.items():
        if len(tiles) == 1:
            continue
        used = np.zeros((program.spec.array.rows, program.spec.array.weight_cols), dtype=bool)
        for tile in tiles:
            cells = used[tile.row : tile.row + tile.rows, tile.col : tile.col + tile.cols]
            if cells.any():
                raise ProgramError(f"tile {tile.name!r}", f"must not overlap another tile on array {array}")
            cells[:] = True


def _check_instructions(program: TileProgram) -> None:
    tables = program.tables
    buffers = {buffer.name: buffer for buffer in tables.buffers}
    known = {info.name for info in tables.inputs}
    for instruction in tables.instructions:
        if isinstance(instruction, Host):
            subject = f"segment {instruction.segment!r}"
            _require(instruction.segment in program.segments, subject, "must be in the program", instruction.segment)
            _all_known(subject, instruction.inputs, known)
            known.update(instruction.outputs)
        else:
            _check_loop(program, instruction, buffers, known)
    _all_known("program outputs", (info.name for info in tables.outputs), known)


def _all_known(subject: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ProgramError(subject, "must read buffers that earlier instructions wrote", got=name)


def _check_loop(program: TileProgram, loop: Loop, buffers: dict[str, Buffer], known: set[str]) -> None:
    subject = f"loop {loop.layer!r}"
    _require(loop.layer in program.layers, subject, "must compute a layer of the program", loop.layer)
    tables, layer = program.tables, program.layers[loop.layer]
    gathers = {row.name: row for row in tables.gathers}
    scatters = {row.name: row for row in tables.scatters}
    loads: dict[str, Load] = {}
    mvms: dict[str, Mvm] = {}
    sums: set[str] = set()
    stored: set[str] = set()
    sources = {(step.buffer, step.gather) for step in loop.body if isinstance(step, Load)}
    _require(len(sources) == 1, subject, "must load from one buffer through one gather", sorted(sources))

    def resolve(found: Row | None, requirement: str, got: str) -> None:
        if found is None:
            raise ProgramError(subject, requirement, got=got)

    for step in loop.body:
        if isinstance(step, Load):
            _all_known(subject, [step.buffer], known)
            gather = gathers.get(step.gather)
            resolve(gather, "must load through a gather of the program", step.gather)
            assert gather is not None
            good = step.start < step.stop <= gather.length == layer.groups * layer.rows
            good = good and step.start // layer.rows == (step.stop - 1) // layer.rows
            _require(good, subject, "must load rows of one group within the vector", (step.start, step.stop))
            loads[step.into] = step
            mvms.pop(step.into, None)
        elif isinstance(step, Mvm):
            tile, load = program.tiles.get(step.tile), loads.get(step.source)
            resolve(tile, "must drive a tile of the program", step.tile)
            resolve(load, "must drive a register that was loaded", step.source)
            assert tile is not None
            assert load is not None
            _require(tile.layer == loop.layer, subject, "must drive its own tiles", tile.name)
            rows = load.stop - load.start
            _require(tile.rows == rows, f"tile {tile.name!r}", f"must have the {rows} rows loaded", tile.rows)
            group = int(program.tile_tensors[tile.name].col_map[0]) // layer.cols
            _require(load.start // layer.rows == group, f"tile {tile.name!r}", "must see rows of its own group", group)
            phases = input_phases(program.spec, layer.signed)
            _require(step.phase in phases, subject, f"must use the phases {phases}", step.phase)
            if program.spec.periphery.adc_bits is not None:
                good = len(tile.adc_range) == len(phases)
                _require(good, f"tile {tile.name!r}", f"must have {len(phases)} ADC ranges", tile.adc_range)
            mvms[step.into] = step
            loads.pop(step.into, None)
        elif isinstance(step, Acc):
            mvm = mvms.get(step.source)
            resolve(mvm, "must accumulate a register that an mvm wrote", step.source)
            assert mvm is not None
            _require(mvm.tile == step.tile, subject, f"must accumulate {mvm.tile!r} through its own map", step.tile)
            sums.add(step.into)
        else:
            _check_store(program, layer, step, scatters.get(step.scatter), sums)
            _require(step.buffer not in stored, subject, "must store into a buffer once", step.buffer)
            stored.add(step.buffer)
            buffer = buffers.get(step.buffer)
            good = buffer is not None and buffer.dtype in ("float16", "float32", "float64")
            _require(good, subject, "must store into a float buffer of the program", step.buffer)
    _require(bool(stored), subject, "must store its result", "nothing")
    known |= stored


def _check_store(program: TileProgram, layer: Layer, step: Store, scatter: Scatter | None, sums: set[str]) -> None:
    subject = f"loop {layer.name!r}"
    if scatter is None:
        raise ProgramError(subject, "must store through a scatter of the program", got=step.scatter)
    _require(step.source in sums, subject, "must store a register that was accumulated", step.source)
    length = layer.groups * layer.cols
    _require(scatter.length == length, f"scatter {scatter.name!r}", f"must write {length} elements", scatter.length)
    size = len(program.bias(layer.name))
    _require(size == scatter.channels, f"tensor {layer.name}/bias", f"must hold {scatter.channels} elements", size)
