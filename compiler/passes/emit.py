"""Write a finished mapping as a tile program."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from compiler.mapping import Mapping, MatrixLayer
from runtime.program import TILE_TENSORS, TileProgram
from runtime.quantize import WeightCode
from runtime.report import CompileReport
from runtime.tables import Acc, Instruction, Layer, Load, Loop, Mvm, Residue, Step, Store, Tables, Tile, input_phases

CALIBRATION = ("mean", "covariance", "vectors")
"""Statistics that a program keeps as they are; the range goes into ``<layer>/range``."""


def emit(mapping: Mapping, report: CompileReport, *, keep_source: bool = True) -> TileProgram:
    """The tile program of a finished mapping.

    Parameters
    ----------
    mapping
        Every pass has run.
    report
        What the compiler reports.
    keep_source
        Whether the program carries the model as given; verbs that need it otherwise ask for it.
    """
    graph, faults = mapping.lowered, mapping.faults_used
    names = _tile_names(mapping)
    layers = {layer.name: layer for layer in graph.layers}
    instructions: list[Instruction] = [
        _loop(mapping, layers[step], names[step]) if isinstance(step, str) else step for step in graph.steps
    ]
    tables = Tables(
        model_name=mapping.source.name,
        model_sha256=mapping.source.sha256,
        spec=mapping.spec,
        spec_sha256=mapping.spec.sha256,
        calibration=mapping.calibration,
        seed=mapping.seed,
        input_shapes=dict(mapping.input_shapes),
        digital_nodes=mapping.digital_nodes,
        fuse_batchnorm=mapping.fuse_batchnorm,
        predistorted=mapping.predistorted,
        mapped_for=None if faults is None else mapping.mapped_for or faults.sha256,
        faults_sha256=None if faults is None else faults.sha256,
        mapping_steps=mapping.steps,
        robust=mapping.robust,
        tuned=mapping.tuned,
        reload=mapping.reload,
        inputs=graph.inputs,
        outputs=graph.outputs,
        buffers=graph.buffers,
        layers=tuple(_layer(mapping, layer) for layer in graph.layers),
        gathers=tuple(layer.gather for layer in graph.layers),
        scatters=tuple(layer.scatter for layer in graph.layers),
        tiles=tuple(tile for layer in graph.layers for tile in _tiles(mapping, layer, names[layer.name])),
        instructions=tuple(instructions),
    )
    return TileProgram(
        tables=tables,
        tensors={key: tensor for layer in graph.layers for key, tensor in _tensors(mapping, layer)},
        segments=graph.segments,
        weights={layer.name: layer.weight for layer in graph.layers},
        calibration=dict(_statistics(mapping)),
        report=report,
        faults=faults,
        source=mapping.source.proto.SerializeToString(deterministic=True) if keep_source else None,
    )


def _tile_names(mapping: Mapping) -> dict[str, tuple[str, ...]]:
    names, number = {}, 0
    for layer in mapping.layers:
        count = len(mapping.grids[layer.name].blocks)
        names[layer.name] = tuple(f"t{n}" for n in range(number, number + count))
        number += count
    return names


def _layer(mapping: Mapping, layer: MatrixLayer) -> Layer:
    groups, rows, cols = layer.weight.shape
    quantized = mapping.quantized[layer.name]
    return Layer(
        name=layer.name,
        op=layer.op,
        initializer=layer.initializer,
        groups=groups,
        rows=rows,
        cols=cols,
        full_scale=quantized.full_scale,
        signed=quantized.signed,
        replicas=mapping.replicas,
        copies=mapping.grids[layer.name].copies,
    )


def _tiles(mapping: Mapping, layer: MatrixLayer, names: tuple[str, ...]) -> Iterator[Tile]:
    ranges = mapping.adc_ranges.get(layer.name) or ((),) * len(names)
    blocks, placements = mapping.grids[layer.name].blocks, mapping.placements[layer.name]
    for name, block, placement, adc_range in zip(names, blocks, placements, ranges, strict=True):
        rows, cols = block.shape
        yield Tile(
            name=name,
            layer=layer.name,
            array=placement.array,
            rows=rows,
            cols=cols,
            slice=block.slice,
            replica=block.replica,
            copy_number=block.copy,
            adc_range=adc_range,
        )


def _loop(mapping: Mapping, layer: MatrixLayer, names: tuple[str, ...]) -> Loop:
    """The body of a layer: each row block is loaded once and drives all its tiles, phase by phase."""
    phases = input_phases(mapping.spec, mapping.quantized[layer.name].signed)
    rows = layer.weight.shape[1]
    body: list[Step] = []
    previous: tuple[int, int] | None = None
    loads = results = 0
    for name, block in zip(names, mapping.grids[layer.name].blocks, strict=True):
        start, stop = block.group * rows + block.rows.start, block.group * rows + block.rows.stop
        if (start, stop) != previous:
            source, previous, loads = f"x{loads}", (start, stop), loads + 1
            body.append(Load(into=source, buffer=layer.source, gather=layer.gather.name, start=start, stop=stop))
        for phase in phases:
            body.append(Mvm(into=f"p{results}", tile=name, source=source, phase=phase))
            body.append(Acc(into="y", source=f"p{results}", tile=name))
            results += 1
    if layer.name in mapping.residues:
        loaded = [step.into for step in body if isinstance(step, Load)]
        body += [Residue(into="y", source=source) for source in loaded]
    body.append(Store(buffer=layer.target, source="y", scatter=layer.scatter.name))
    return Loop(layer=layer.name, windows=layer.windows, body=tuple(body))


def _tensors(mapping: Mapping, layer: MatrixLayer) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    quantized, cols = mapping.quantized[layer.name], layer.weight.shape[2]
    code = WeightCode.of(mapping.spec)
    parts: dict[str, list[npt.NDArray[Any]]] = {key: [] for key in TILE_TENSORS}
    tiles = zip(
        mapping.grids[layer.name].blocks, mapping.placements[layer.name], mapping.targets[layer.name], strict=True
    )
    for block, placement, targets in tiles:
        logical = block.cols.start + placement.col_order
        parts["plus"].append(targets.plus.ravel())
        parts["minus"].append(targets.minus.ravel())
        parts["row_map"].append(placement.row_map)
        parts["col_map"].append((block.group * cols + logical).astype(np.int32))
        parts["col_sign"].append(placement.col_sign)
        parts["scale"].append(quantized.scale[block.group, logical] * code.slice_weight(block.slice) / mapping.replicas)
        parts["gain"].append(targets.gain)
        parts["word_lines"].append(placement.word_lines)
        parts["bit_lines"].append(placement.bit_lines)
    for key, values in parts.items():
        yield f"{layer.name}/{key}", np.concatenate(values)
    shift = mapping.bias_shifts.get(layer.name)
    yield f"{layer.name}/bias", layer.bias
    if shift is not None and shift.any():
        yield f"{layer.name}/bias_shift", shift.ravel()
    if layer.name in mapping.residues:
        index, residue = mapping.residues[layer.name]
        yield f"{layer.name}/residue_index", index
        yield f"{layer.name}/residue", residue


def _statistics(mapping: Mapping) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name, statistics in mapping.statistics.items():
        yield f"{name}/range", np.array([statistics.low, statistics.high])
        for key in CALIBRATION:
            yield f"{name}/{key}", getattr(statistics, key)
