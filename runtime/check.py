"""Validation of a program: every name resolves, every index and shape is in range, nothing overlaps.

Hashes stop accidents, not forgery; after this check the engines trust the tables.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from hwspec.errors import ProgramError
from runtime.program import TILE_TENSORS, TileProgram, TileTensors, tile_tensor_size
from runtime.tables import (
    Acc,
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
    good = tables.spec_sha256 == tables.spec.sha256
    _require(good, "spec", f"must have the hash {tables.spec_sha256}", tables.spec.sha256)
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
    tiles: dict[str, list[Tile]] = {layer.name: [] for layer in tables.layers}
    for tile in tables.tiles:
        if tile.layer not in tiles:
            raise ProgramError(f"tile {tile.name!r}", "must belong to a layer of the program", got=tile.layer)
        tiles[tile.layer].append(tile)
    loops = Counter(loop.layer for loop in tables.loops)
    for layer in tables.layers:
        _check_layer(program, layer, tiles[layer.name], loops[layer.name])
    _check_names(program)
    for tile in tables.tiles:
        _check_tile(program, tile, program.tile_tensors[tile.name])
    _check_overlaps(program)
    _check_instructions(program)


def _unique(kind: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ProgramError(f"{kind} {name!r}", "must be defined once")


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


def _check_layer(program: TileProgram, layer: Layer, tiles: Sequence[Tile], loops: int) -> None:
    subject = f"layer {layer.name!r}"
    shape = (layer.groups, layer.rows, layer.cols)
    weight = program.weights.get(layer.name)
    if weight is None or weight.shape != shape or weight.dtype.kind != "f":
        raise ProgramError(subject, f"must have float weights of shape {shape}")
    _require(bool(np.isfinite(weight).all()), subject, "must have finite weights", "NaN or infinity")
    for key in TILE_TENSORS:
        tensor = program.tensors.get(f"{layer.name}/{key}")
        size = sum(tile_tensor_size(key, tile) for tile in tiles)
        if tensor is None or tensor.ndim != 1 or len(tensor) != size:
            raise ProgramError(f"tensor {layer.name}/{key}", f"must hold {size} elements")
        dtypes = _dtypes(key, program)
        _require(str(tensor.dtype) in dtypes, f"tensor {layer.name}/{key}", f"must be of type {dtypes}", tensor.dtype)
    bias = program.tensors.get(f"{layer.name}/bias")
    if bias is None or bias.ndim != 1 or bias.dtype != np.float64 or not np.isfinite(bias).all():
        raise ProgramError(f"tensor {layer.name}/bias", "must be a vector of finite float64")
    _require(loops == 1, subject, "must be computed by one loop", loops)
    _check_calibration(program, layer)


def _dtypes(key: str, program: TileProgram) -> tuple[str, ...]:
    if key in ("plus", "minus") and program.spec.device.levels is not None:
        return ("uint8", "uint16")
    return (_DTYPES[key],)


_DTYPES = {
    "plus": "float64",
    "minus": "float64",
    "row_map": "int32",
    "col_map": "int32",
    "col_sign": "int8",
    "scale": "float64",
    "gain": "float64",
}
_FLOATS = ("float16", "float32", "float64")
_CALIBRATION = ("range", "mean", "covariance", "vectors")


def _check_calibration(program: TileProgram, layer: Layer) -> None:
    length = layer.groups * layer.rows
    for key in _CALIBRATION:
        subject = f"calibration {layer.name}/{key}"
        value = program.calibration.get(f"{layer.name}/{key}")
        if value is None or value.dtype.kind != "f":
            raise ProgramError(subject, "must be in the program, of floats")
        if key in ("range", "vectors"):
            _require(bool(np.isfinite(value).all()), subject, "must be finite", "NaN or infinity")
        if key == "range":
            good = value.shape == (2,) and value[0] <= 0 <= value[1]
            _require(bool(good), subject, "must be a lowest input up to 0 and a highest from 0", value.tolist())
        elif key == "mean":
            _require(value.shape == (length,), subject, f"must hold {length} elements", value.shape)
        elif key == "vectors":
            good = value.ndim == 2 and value.shape[1] == length
            _require(good, subject, f"must be vectors of {length} elements", value.shape)
        else:
            good = value.ndim == 3 and value.shape[1] == value.shape[2] and not len(value) % layer.groups
            _require(good, subject, "must hold a square matrix for each row block of each group", value.shape)


def _check_names(program: TileProgram) -> None:
    """Tensors and report entries belong to layers, one set each."""
    layers = program.layers
    for kind, names, keys in (
        ("tensor", program.tensors, (*TILE_TENSORS, "bias")),
        ("calibration", program.calibration, _CALIBRATION),
    ):
        known = {f"{layer}/{key}" for layer in layers for key in keys}
        for name in names:
            _require(name in known, f"{kind} {name!r}", "must belong to a layer", name)
    for name in program.weights:
        _require(name in layers, f"weights {name!r}", "must belong to a layer", name)
    reported = [layer.name for layer in program.report.layers]
    _require(reported == list(layers), "report", "must tell of each layer, in order", reported)


def _check_tile(program: TileProgram, tile: Tile, tensors: TileTensors) -> None:
    subject = f"tile {tile.name!r}"
    spec, layer = program.spec, program.layers[tile.layer]
    if tile.row + tile.rows > spec.array.weight_rows or tile.col + tile.cols > spec.array.weight_cols:
        size = f"{spec.array.weight_rows}x{spec.array.weight_cols}"
        raise ProgramError(subject, f"must lie within its site of {size} weights")
    _require(tile.slice < spec.array.slices, subject, f"must hold one of {spec.array.slices} slices", tile.slice)
    _require(tile.array % spec.array.arrays_per_site == 0, subject, "must start a site", tile.array)
    device = spec.device
    single = spec.array.pairing == "reference"
    if single:
        _require(not tensors.minus.any(), subject, "must have no minus devices", float(tensors.minus.max()))
    for side, targets in (("plus", tensors.plus), ("minus", tensors.minus))[: 1 if single else 2]:
        if device.level_count is not None:
            good = bool((targets < device.level_count).all())
            _require(good, subject, f"must have {side} level codes below {device.level_count}", int(targets.max()))
        else:
            slack = 1e-9 * device.span
            low, high = device.g_min - slack, device.g_max + slack
            good = bool(((targets >= low) & (targets <= high)).all())
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
    good = bool((np.isfinite(tensors.gain) & (tensors.gain > 0)).all())
    _require(good, subject, "must have positive finite gains", tensors.gain[:8].tolist())


def _check_overlaps(program: TileProgram) -> None:
    by_array: dict[int, list[Tile]] = {}
    for tile in program.tables.tiles:
        by_array.setdefault(tile.array, []).append(tile)
    for array, tiles in by_array.items():
        if len(tiles) == 1:
            continue
        used = np.zeros((program.spec.array.weight_rows, program.spec.array.weight_cols), dtype=bool)
        for tile in tiles:
            cells = used[tile.row : tile.row + tile.rows, tile.col : tile.col + tile.cols]
            if cells.any():
                raise ProgramError(f"tile {tile.name!r}", f"must not overlap another tile on array {array}")
            cells[:] = True


def _check_instructions(program: TileProgram) -> None:
    tables = program.tables
    known = {info.name for info in tables.inputs}
    for instruction in tables.instructions:
        if isinstance(instruction, Host):
            _check_segment(program, instruction)
            _all_known(f"segment {instruction.segment!r}", instruction.inputs, known)
            known.update(instruction.outputs)
        else:
            _check_loop(program, instruction, known)
    _all_known("program outputs", (info.name for info in tables.outputs), known)


def _check_segment(program: TileProgram, host: Host) -> None:
    import onnx

    subject = f"segment {host.segment!r}"
    _require(host.segment in program.segments, subject, "must be in the program", host.segment)
    try:
        model = onnx.load_model_from_string(program.segments[host.segment])
    except Exception:  # protobuf's own exception types differ from one of its implementations to the next
        raise ProgramError(subject, "must be an ONNX model") from None
    graph = model.graph
    for kind, names, values in (("read", host.inputs, graph.input), ("write", host.outputs, graph.output)):
        wanted = tuple(value.name for value in values)
        _require(names == wanted, subject, f"must {kind} {wanted}", names)
        for value in values:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.shape.SetInParent()  # the checker wants one, segments go without
    model.ir_version = min(model.ir_version, onnx.IR_VERSION)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, and ValueError beyond protobuf's limits
        raise ProgramError(subject, f"must be a valid ONNX model ({str(error).strip().splitlines()[0]})") from None


def _all_known(subject: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ProgramError(subject, "must read buffers that earlier instructions wrote", got=name)


def _check_loop(program: TileProgram, loop: Loop, known: set[str]) -> None:
    subject = f"loop {loop.layer!r}"
    _require(loop.layer in program.layers, subject, "must compute a layer of the program", loop.layer)
    layer, dtypes = program.layers[loop.layer], program.dtypes
    loads: dict[str, Load] = {}
    mvms: dict[str, Mvm] = {}
    sums: set[str] = set()
    stored: set[str] = set()
    held: dict[str, str] = {}
    sources = {(step.buffer, step.gather) for step in loop.body if isinstance(step, Load)}
    _require(len(sources) == 1, subject, "must load from one buffer through one gather", sorted(sources))

    def resolve(found: Row | None, requirement: str, got: str) -> None:
        if found is None:
            raise ProgramError(subject, requirement, got=got)

    for step in loop.body:
        if not isinstance(step, Store):
            good = held.setdefault(step.into, step.op) == step.op
            _require(good, subject, "must use a register for one kind of step", step.into)
        if isinstance(step, Load):
            _all_known(subject, [step.buffer], known)
            _require(dtypes.get(step.buffer) in _FLOATS, subject, "must load from a buffer of floats", step.buffer)
            gather = program.gathers.get(step.gather)
            resolve(gather, "must load through a gather of the program", step.gather)
            assert gather is not None
            good = step.start < step.stop <= gather.length == layer.groups * layer.rows
            good = good and step.start // layer.rows == (step.stop - 1) // layer.rows
            _require(good, subject, "must load rows of one group within the vector", (step.start, step.stop))
            loads[step.into] = step
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
            if program.spec.periphery.needs_range:
                good = len(tile.adc_range) == len(phases)
                _require(good, f"tile {tile.name!r}", f"must have {len(phases)} ADC ranges", tile.adc_range)
            mvms[step.into] = step
        elif isinstance(step, Acc):
            mvm = mvms.get(step.source)
            resolve(mvm, "must accumulate a register that an mvm wrote", step.source)
            assert mvm is not None
            _require(mvm.tile == step.tile, subject, f"must accumulate {mvm.tile!r} through its own map", step.tile)
            sums.add(step.into)
        else:
            _check_store(program, layer, step, program.scatters.get(step.scatter), sums)
            gather, scatter = program.gathers[next(iter(sources))[1]], program.scatters[step.scatter]
            fits = (gather.kind == "vectors") == (scatter.kind == "vectors")
            fits = fits and (scatter.kind != "fold" or len(scatter.kernel) == len(gather.kernel))
            _require(fits, f"scatter {scatter.name!r}", f"must suit the gather {gather.name!r}", scatter.kind)
            _require(step.buffer not in stored, subject, "must store into a buffer once", step.buffer)
            stored.add(step.buffer)
            _require(dtypes.get(step.buffer) in _FLOATS, subject, "must store into a buffer of floats", step.buffer)
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
