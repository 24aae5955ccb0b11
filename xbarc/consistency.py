"""What in a program must be exactly what its model, its spec and its calibration record give."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from compiler.compile import mapping_of, placed_mapping_of
from compiler.frontend import SourceModel
from compiler.mapping import LoweredGraph, MatrixLayer
from compiler.passes.assign import Assign
from compiler.passes.predistort import Predistort
from compiler.passes.quantize import quantize_layer
from compiler.passes.ranges import tile_ranges
from compiler.pipeline import Pass, run_passes
from hwspec.errors import VerificationError
from runtime.program import TileProgram
from runtime.quantize import Float64, WeightCode
from runtime.rewrite import rewrite
from runtime.tables import Loop, Mvm, input_phases

_SOLVED = 1e-6
"""The same for what iterations over solved wires, and sums over covariances, end with; level codes must be equal."""
_RELATIVE = 1e-9
"""How far a range may be off the one found here: the order of additions is not the same on all machines."""


def structure_failures(program: TileProgram, source: SourceModel, fresh: LoweredGraph) -> list[str]:
    """What in the program is not what lowering the model gives, numbers apart; a sentence each.

    Parameters
    ----------
    program
        A sound program (`runtime.check`).
    source
        The model to compare with.
    fresh
        That model, lowered anew with the program's options.
    """
    tables = program.tables
    if tables.model_sha256 != source.sha256:
        return ["the model is not the one that the program was compiled from (its hash differs)"]
    if [layer.name for layer in tables.layers] != [layer.name for layer in fresh.layers]:
        return ["the program's layers are not those of the model"]
    failures = []
    for layer in fresh.layers:
        row = program.layers[layer.name]
        told = (row.op, row.initializer, row.groups, row.rows, row.cols)
        if told != (layer.op, layer.initializer, *layer.weight.shape):
            failures.append(f"layer {layer.name!r} does not have the model's matrix")
        elif not np.array_equal(program.weights[layer.name], layer.weight):
            failures.append(f"layer {layer.name!r} does not carry the model's float weights")
    if (tables.inputs, tables.outputs, tables.buffers) != (fresh.inputs, fresh.outputs, fresh.buffers):
        failures.append("the program's inputs, outputs or buffers are not those of the model")
    if {row.name: row for row in tables.gathers} != {layer.gather.name: layer.gather for layer in fresh.layers}:
        failures.append("the program gathers inputs otherwise than the model")
    if {row.name: row for row in tables.scatters} != {layer.scatter.name: layer.scatter for layer in fresh.layers}:
        failures.append("the program writes results otherwise than the model")
    steps = tuple(step.layer if isinstance(step, Loop) else step for step in tables.instructions)
    if steps != fresh.steps or dict(program.segments) != dict(fresh.segments):
        failures.append("the program's digital segments are not those of the model")
    loops = {loop.layer: loop for loop in tables.loops}
    for layer in fresh.layers:
        failures += _loop_failures(program, layer, loops[layer.name])
    return [*failures, *_report_failures(program, fresh)]


def _loop_failures(program: TileProgram, layer: MatrixLayer, loop: Loop) -> Iterator[str]:
    """A loop reads and writes the layer's values, drives each tile once in each phase, and adds all of that up."""
    ends = {(step.op, step.buffer) for step in loop.body if step.op in ("load", "store")}
    if ends != {("load", layer.source), ("store", layer.target)}:
        yield f"layer {layer.name!r} reads or writes other values than in the model"
    held: dict[str, Mvm] = {}
    added: dict[str, list[tuple[str, str]]] = {}
    stored: list[tuple[str, str]] = []
    for step in loop.body:
        if step.op == "mvm":
            held[step.into] = step
        elif step.op == "acc":
            mvm = held[step.source]
            added.setdefault(step.into, []).append((mvm.tile, mvm.phase))
        elif step.op == "store":
            stored = added[step.source]
    phases = input_phases(program.spec, program.layers[layer.name].signed)
    tiles = [tile.name for tile in program.tables.tiles if tile.layer == layer.name]
    if Counter(stored) != Counter((tile, phase) for tile in tiles for phase in phases):
        yield f"layer {layer.name!r} does not add up each of its tiles once"


def _report_failures(program: TileProgram, fresh: LoweredGraph) -> Iterator[str]:
    """The counts that the report tells are those of the program."""
    tables, report, array = program.tables, program.report, program.spec.array
    on_site: dict[int, set[str]] = {}
    for tile in tables.tiles:
        on_site.setdefault(tile.array, set()).add(tile.layer)
    for layer, told in zip(tables.layers, report.layers, strict=True):
        tiles = [tile for tile in tables.tiles if tile.layer == layer.name]
        arrays = len({tile.array for tile in tiles}) * array.arrays_per_site
        weights = layer.replicas * layer.copies * layer.groups * layer.rows * layer.cols
        cells = array.devices_per_weight * array.slices * weights
        counted = (layer.op, layer.groups, layer.rows, layer.cols, len(tiles), arrays, cells)
        if counted != (told.op, told.groups, told.rows, told.cols, told.tiles, told.arrays, told.cells):
            yield f"the report on layer {layer.name!r} does not count what the program holds"
        others = set[str]().union(*(on_site[tile.array] for tile in tiles)) - {layer.name}
        if sorted(others) != sorted(told.shares_with):
            yield f"the report on layer {layer.name!r} does not name the layers that it shares arrays with"
    totals, sums = report.totals, report.layers
    arrays = len({tables.physical(number) for number in on_site}) * array.arrays_per_site
    shared = sum(len(names) > 1 for names in on_site.values()) * array.arrays_per_site
    counted_all = (len(tables.tiles), arrays, shared, sum(told.cells for told in sums), sum(told.macs for told in sums))
    if counted_all != (totals.tiles, totals.arrays, totals.shared_arrays, totals.cells, totals.mapped_macs):
        yield "the report's totals are not the sums of its layers"
    digital = [(node.node, node.op, node.reason) for node in fresh.digital]
    if [(node.node, node.op, node.reason) for node in report.digital] != digital or totals.nodes != fresh.nodes:
        yield "the report's digital nodes are not those of the model"


def number_failures(program: TileProgram, fresh: LoweredGraph) -> Iterator[str]:
    """Biases, scales, input and ADC ranges that are not what weights and calibration record give; a sentence each.

    Each of them is part of the bound that a layer's error is held against: a wrong one would loosen the bound with it.
    Scales and ranges of a tuned program are its own; its targets must be those of its weights.
    """
    recorded = mapping_of(program)
    code = WeightCode.of(program.spec)
    for layer in fresh.layers:
        row = program.layers[layer.name]
        if not np.array_equal(program.tensors[f"{layer.name}/bias"], layer.bias):
            yield f"layer {layer.name!r} does not have the model's bias"
        if program.tables.tuned:
            continue
        wanted = quantize_layer(layer, recorded.statistics[layer.name], code)
        scales = wanted.scale.reshape(-1)
        tiles = [
            (tensors, program.part_weight(name))
            for name, tensors in program.tile_tensors.items()
            if program.tiles[name].layer == layer.name
        ]
        if not all(np.array_equal(tensors.scale, scales[tensors.col_map] * weight) for tensors, weight in tiles):
            yield f"layer {layer.name!r} has column scales that are not the largest weights of its columns"
        if (row.full_scale, row.signed) != (wanted.full_scale, wanted.signed):
            yield f"layer {layer.name!r} has an input range that is not that of its calibration record"
    failures = list(_tuned_failures(program)) if program.tables.tuned else [""]
    if failures:  # or it was mapped again since
        yield from _target_failures(program)
    if program.tables.tuned:
        return
    if program.spec.periphery.needs_range:
        yield from _range_failures(program)


def _tuned_failures(program: TileProgram) -> Iterator[str]:
    """Targets are exactly those that the weights give on the program's own scales."""
    biases = {name: program.tensors[f"{name}/bias"] for name in program.layers}
    wanted = rewrite(program, program.weights, biases)
    for name, tensors in program.tile_tensors.items():
        other = wanted.tile_tensors[name]
        if not (np.array_equal(tensors.plus, other.plus) and np.array_equal(tensors.minus, other.minus)):
            yield f"tile {name!r} does not have the targets that its weights give"
    for key in program.tensors:
        if key.endswith("/bias_shift"):
            yield f"layer {key.removesuffix('/bias_shift')!r} must have its failed devices' share in its bias"


def _target_failures(program: TileProgram) -> Iterator[str]:
    """Targets, digital bias and residue are what the passes give for where the tiles lie."""
    mapping = placed_mapping_of(program)
    passes: list[Pass] = [Assign(program.tables.mapping_steps, program.tables.robust)]
    if program.tables.predistorted:
        passes.append(Predistort())
    try:
        found = run_passes(mapping, passes).mapping
    except VerificationError as error:
        yield f"the program's tiles do not lie as the compiler's do: {error}"
        return
    if program.tables.predistorted and not found.predistorted:
        yield "the program says that its targets undo the wires, and there are none to undo"
    at = dict.fromkeys(found.targets, 0)
    for tile in program.tables.tiles:
        tensors, targets = program.tile_tensors[tile.name], found.targets[tile.layer][at[tile.layer]]
        at[tile.layer] += 1
        pairs = ((tensors.plus, targets.plus), (tensors.minus, targets.minus), (tensors.gain, targets.gain))
        if not all(np.allclose(one, other, rtol=_SOLVED, atol=0) for one, other in pairs):
            yield f"tile {tile.name!r} does not have the targets that its weights give"
    for layer in mapping.layers:
        shift = found.bias_shifts.get(layer.name, np.zeros(0)).ravel()
        told = program.tensors.get(f"{layer.name}/bias_shift", np.zeros_like(shift))
        if told.shape != shift.shape or not np.allclose(told, shift, rtol=_SOLVED, atol=_SOLVED * _size(told)):
            yield f"layer {layer.name!r} does not have the digital bias that its failed devices ask for"
        index, values = found.residues.get(layer.name, (np.zeros(0, np.int64), np.zeros(0)))
        kept = program.residue(layer.name)
        if not np.array_equal(kept[0], index) or not np.allclose(kept[1], values, rtol=_SOLVED, atol=0):
            yield f"layer {layer.name!r} does not have the digital residue that its failed devices ask for"


def _size(values: Float64) -> float:
    return float(np.abs(values).max(initial=0.0))


def _range_failures(program: TileProgram) -> Iterator[str]:
    """ADC ranges are those of the calibration vectors, run through the program's own tiles."""
    ranges, _ = tile_ranges(program)
    wrong: dict[str, list[str]] = {}
    for tile in program.tables.tiles:
        off = np.abs(np.subtract(tile.adc_range, ranges[tile.name]))
        if not (off <= _RELATIVE * np.array(ranges[tile.name])).all():
            wrong.setdefault(tile.layer, []).append(tile.name)
    for layer, tiles in wrong.items():
        named = ", ".join(sorted(tiles)[:8])
        yield f"layer {layer!r} has ADC ranges that are not those of its calibration record (tiles {named})"
