"""Full scales of a program's columns and ranges of its converters, set anew; everything else as it is."""

import dataclasses
from collections.abc import Mapping as Table

import numpy as np

from compiler.compile import mapping_of
from compiler.frontend import load_model
from compiler.like import lower_like
from compiler.passes.calibrate import Batches, Calibrate
from compiler.passes.emit import CALIBRATION
from compiler.passes.quantize import OFF_TIES
from compiler.passes.ranges import tile_ranges
from hwspec.errors import ProgramError
from runtime.program import TileProgram
from runtime.quantize import Float64
from runtime.rewrite import rewrite


def with_clip(program: TileProgram, clip: float) -> TileProgram:
    """The program with full scales of at most `clip` standard deviations of a column's weights.

    Weights beyond are clipped: the levels then lie closer together where most weights are (Joshi et al., Nature
    Communications 2020). ADC ranges follow.
    """
    scales: dict[str, Float64] = {}
    for name, weights in program.weights.items():
        values = weights.astype(np.float64)
        largest = np.abs(values).max(axis=1)
        scale = np.minimum(largest, clip * values.std(axis=1))
        scales[name] = np.where(scale > 0, scale, np.where(largest > 0, largest, 1.0)).reshape(-1)
    parts: dict[str, list[Float64]] = {}
    for tile in program.tables.tiles:
        of_columns = scales[tile.layer][program.tile_tensors[tile.name].col_map]
        parts.setdefault(tile.layer, []).append(of_columns * program.part_weight(tile.name))
    tensors = dict(program.tensors) | {f"{layer}/scale": np.concatenate(found) for layer, found in parts.items()}
    scaled = dataclasses.replace(program, tensors=tensors)
    biases = {name: scaled.bias(name) for name in scaled.layers}
    return with_ranges(rewrite(scaled, program.weights, biases))


def with_ranges(program: TileProgram) -> TileProgram:
    """The program with the ADC ranges that its calibration vectors ask for."""
    if not program.spec.periphery.needs_range:
        return program
    ranges, _ = tile_ranges(program)
    tiles = tuple(tile.model_copy(update={"adc_range": ranges[tile.name]}) for tile in program.tables.tiles)
    return dataclasses.replace(program, tables=program.tables.model_copy(update={"tiles": tiles}))


def recalibrated(program: TileProgram, batches: Batches) -> TileProgram:
    """The program with input and ADC ranges that its own model has on data: run it, and record what its layers see.

    Whether inputs have a sign stays as it is.

    Raises
    ------
    ProgramError
        If the program carries no model.
    """
    if program.source is None:
        raise ProgramError("program", "must carry its model to be calibrated anew", hint="compile it with --source")
    tables = program.tables
    lowered = lower_like(program, load_model(program.source))
    mapping = dataclasses.replace(lowered, grids=mapping_of(program).grids)
    found = Calibrate(batches).run(mapping).statistics
    layers = tuple(
        row.model_copy(update={"full_scale": _full_scale(found[row.name].low, found[row.name].high, row.full_scale)})
        for row in tables.layers
    )
    calibration: Table[str, np.ndarray] = {
        key: value
        for name, one in found.items()
        for key, value in (
            (f"{name}/range", np.array([one.low, one.high])),
            *((f"{name}/{part}", getattr(one, part)) for part in CALIBRATION),
        )
    }
    tables = tables.model_copy(update={"layers": layers, "calibration": "data", "tuned": True})
    return with_ranges(dataclasses.replace(program, tables=tables, calibration=calibration))


def _full_scale(low: float, high: float, before: float) -> float:
    return max(abs(low), abs(high)) * OFF_TIES or before
