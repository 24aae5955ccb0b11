"""Validation of a program: every name resolves, every index and shape is in range, nothing overlaps.

Hashes stop accidents, not forgery; after this check the engines trust the tables.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from hwspec.errors import ProgramError
from runtime.check_loops import check_instructions
from runtime.check_tiles import check_tiles
from runtime.program import TILE_TENSORS, TileProgram, tile_tensor_size
from runtime.requirement import require
from runtime.tables import Gather, Layer, Scatter, Tile


def check_program(program: TileProgram) -> None:
    """Raise `ProgramError`, naming the entry, unless `program` is sound."""
    tables = program.tables
    good = tables.spec_sha256 == tables.spec.sha256
    require(good, "spec", f"must have the hash {tables.spec_sha256}", tables.spec.sha256)
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
    check_tiles(program)
    check_instructions(program)


def _unique(kind: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ProgramError(f"{kind} {name!r}", "must be defined once")


def _check_windows(subject: str, row: Gather | Scatter, *, image: bool) -> None:
    rank = len(row.kernel)
    if row.channels % row.groups:
        raise ProgramError(subject, "must divide its channels evenly among its groups", got=(row.channels, row.groups))
    if not image:
        require(rank == 0, subject, "must have no kernel", row.kernel)
        return
    require(rank >= 1, subject, "must have a kernel", row.kernel)
    for name in ("strides", "dilations"):
        require(len(getattr(row, name)) == rank, subject, f"must have {rank} {name}", getattr(row, name))
    if row.auto_pad == "none" and not (isinstance(row, Scatter) and row.output_shape):
        require(len(row.pads) == 2 * rank, subject, f"must have {2 * rank} pads", row.pads)
    if isinstance(row, Scatter):
        require(len(row.output_padding) == rank, subject, f"must have {rank} output paddings", row.output_padding)
        require(len(row.output_shape) in (0, rank), subject, f"must have {rank} output sizes", row.output_shape)


def _check_layer(program: TileProgram, layer: Layer, tiles: Sequence[Tile], loops: int) -> None:
    subject = f"layer {layer.name!r}"
    shape = (layer.groups, layer.rows, layer.cols)
    weight = program.weights.get(layer.name)
    if weight is None or weight.shape != shape or weight.dtype.kind != "f":
        raise ProgramError(subject, f"must have float weights of shape {shape}")
    require(bool(np.isfinite(weight).all()), subject, "must have finite weights", "NaN or infinity")
    for key in TILE_TENSORS:
        tensor = program.tensors.get(f"{layer.name}/{key}")
        size = sum(tile_tensor_size(key, tile) for tile in tiles)
        if tensor is None or tensor.ndim != 1 or len(tensor) != size:
            raise ProgramError(f"tensor {layer.name}/{key}", f"must hold {size} elements")
        dtypes = _dtypes(key, program)
        require(str(tensor.dtype) in dtypes, f"tensor {layer.name}/{key}", f"must be of type {dtypes}", tensor.dtype)
    bias = program.tensors.get(f"{layer.name}/bias")
    if bias is None or bias.ndim != 1 or bias.dtype != np.float64 or not np.isfinite(bias).all():
        raise ProgramError(f"tensor {layer.name}/bias", "must be a vector of finite float64")
    size = layer.copies * len(bias)
    shift = program.tensors.get(f"{layer.name}/bias_shift", np.zeros(size))
    if shift.shape != (size,) or shift.dtype != np.float64 or not np.isfinite(shift).all():
        raise ProgramError(f"tensor {layer.name}/bias_shift", "must be a finite float64 for each bias of each copy")
    require(loops == 1, subject, "must be computed by one loop", loops)
    _check_calibration(program, layer)


def _dtypes(key: str, program: TileProgram) -> tuple[str, ...]:
    if key in ("plus", "minus") and program.spec.device.levels is not None:
        return ("uint8", "uint16", "uint32")
    return (_DTYPES[key],)


_DTYPES = {
    "plus": "float64",
    "minus": "float64",
    "row_map": "int32",
    "col_map": "int32",
    "col_sign": "int8",
    "scale": "float64",
    "gain": "float64",
    "word_lines": "int32",
    "bit_lines": "int32",
}
_CALIBRATION = ("range", "mean", "covariance", "vectors")


def _check_calibration(program: TileProgram, layer: Layer) -> None:
    length = layer.groups * layer.rows
    for key in _CALIBRATION:
        subject = f"calibration {layer.name}/{key}"
        value = program.calibration.get(f"{layer.name}/{key}")
        if value is None or value.dtype.kind != "f":
            raise ProgramError(subject, "must be in the program, of floats")
        if key in ("range", "vectors"):
            require(bool(np.isfinite(value).all()), subject, "must be finite", "NaN or infinity")
        if key == "range":
            good = value.shape == (2,) and value[0] <= 0 <= value[1]
            require(bool(good), subject, "must be a lowest input up to 0 and a highest from 0", value.tolist())
        elif key == "mean":
            require(value.shape == (length,), subject, f"must hold {length} elements", value.shape)
        elif key == "vectors":
            good = value.ndim == 2 and value.shape[1] == length
            require(good, subject, f"must be vectors of {length} elements", value.shape)
        else:
            most = program.spec.array.weight_rows
            block, blocks = min(layer.rows, most), -(-layer.rows // most)
            good = value.shape in ((layer.groups, layer.rows, layer.rows), (layer.groups * blocks, block, block))
            require(good, subject, "must hold a square matrix for each group, or each row block of each", value.shape)


def _check_names(program: TileProgram) -> None:
    """Tensors and report entries belong to layers, one set each."""
    layers = program.layers
    for kind, names, keys in (
        ("tensor", program.tensors, (*TILE_TENSORS, "bias", "bias_shift", "residue", "residue_index")),
        ("calibration", program.calibration, _CALIBRATION),
    ):
        known = {f"{layer}/{key}" for layer in layers for key in keys}
        for name in names:
            require(name in known, f"{kind} {name!r}", "must belong to a layer", name)
    for name in program.weights:
        require(name in layers, f"weights {name!r}", "must belong to a layer", name)
    reported = [layer.name for layer in program.report.layers]
    require(reported == list(layers), "report", "must tell of each layer, in order", reported)
