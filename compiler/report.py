"""Builds the compile report from a mapping."""

import numpy as np

from compiler.mapping import Mapping, MatrixLayer
from hwspec.effects import active_effects
from hwspec.reach import weight_bounds
from runtime.report import CompileReport, LayerReport, Totals


def build_report(mapping: Mapping, seconds: dict[str, float]) -> CompileReport:
    """The report of a finished mapping; all counts come from the tile grids and placements."""
    of_site = _layers_of_sites(mapping)
    layers = tuple(_layer_report(mapping, layer, of_site) for layer in mapping.layers)
    digital = mapping.lowered.digital
    mapped = sum(layer.macs for layer in layers)
    cells = sum(layer.cells for layer in layers)
    array = mapping.spec.array
    return CompileReport(
        model=mapping.source.name,
        spec=mapping.spec.name,
        layers=layers,
        digital=digital,
        totals=Totals(
            nodes=mapping.lowered.nodes,
            mapped_nodes=len(layers),
            tiles=sum(layer.tiles for layer in layers),
            arrays=len({_physical(mapping, site) for site in of_site}) * array.arrays_per_site,
            cells=cells,
            utilisation=cells / (_arrays(mapping, mapping.layers) * array.rows * array.cols),
            partial_sums=sum(layer.partial_sums for layer in layers),
            macs=mapped + sum(node.macs or 0 for node in digital),
            mapped_macs=mapped,
            constant_weight_macs=mapped + sum(node.macs or 0 for node in digital if node.constant_weight),
            shared_arrays=array.arrays_per_site * sum(len(names) > 1 for names in of_site.values()),
        ),
        segments=len(mapping.lowered.segments),
        calibration=mapping.calibration,
        warnings=mapping.warnings,
        mapped_for=mapping.mapped_for,
        reachable=weight_bounds(mapping.spec.device, array, mapping.spec.failures),
        effects=tuple(active_effects(mapping.spec)),
        seconds=seconds,
    )


def _layers_of_sites(mapping: Mapping) -> dict[int, set[str]]:
    """Names of the layers with tiles on each site, by its first array."""
    found: dict[int, set[str]] = {}
    for layer in mapping.layers:
        for placement in mapping.placements[layer.name]:
            found.setdefault(placement.array, set()).add(layer.name)
    return found


def _layer_report(mapping: Mapping, layer: MatrixLayer, of_site: dict[int, set[str]]) -> LayerReport:
    grid, array = mapping.grids[layer.name], mapping.spec.array
    quantized = mapping.quantized[layer.name]
    arrays = _arrays(mapping, (layer,))
    cells = array.devices_per_weight * grid.slices * grid.replicas * grid.copies * layer.weight.size
    weight = layer.weight.astype(np.float64)
    neighbours = set[str]().union(*(names for names in of_site.values() if layer.name in names))
    error = np.linalg.norm(quantized.normalized * quantized.scale[:, None, :] - weight)
    return LayerReport(
        name=layer.name,
        op=layer.op,
        groups=grid.groups,
        rows=grid.rows,
        cols=grid.cols,
        windows=layer.windows,
        tiles=len(grid.blocks),
        copies=grid.copies,
        arrays=arrays,
        cells=cells,
        utilisation=cells / (arrays * array.rows * array.cols),
        partial_sums=grid.partial_sums * layer.windows,
        macs=layer.macs,
        weight_error=float(error / (np.linalg.norm(weight) or 1.0)),
        calibration_clipped=mapping.clipped.get(layer.name, 0.0),
        wires=mapping.wires.get(layer.name),
        failures=mapping.failures.get(layer.name),
        shares_with=tuple(one.name for one in mapping.layers if one.name in neighbours - {layer.name}),
    )


def _physical(mapping: Mapping, array: int) -> int:
    return array if mapping.reload is None else array % mapping.reload


def _arrays(mapping: Mapping, layers: tuple[MatrixLayer, ...]) -> int:
    sites = {placement.array for layer in layers for placement in mapping.placements[layer.name]}
    return len(sites) * mapping.spec.array.arrays_per_site
