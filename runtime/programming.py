"""Writing a program onto a chip."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from hwspec.chip import Chip
from hwspec.errors import DataError
from hwspec.periphery import Periphery
from runtime.program import TileProgram
from runtime.quantize import Float64
from runtime.tables import Loop


@dataclass(frozen=True, eq=False)
class ProgrammedChip:
    """A program written onto a chip.

    Attributes
    ----------
    plus, minus
        Conductance of each device by tile name, siemens, ``(rows, cols)`` in physical order.
    exact_layers
        Layers that run with their float weights and ideal converters.
    """

    program: TileProgram
    plus: Mapping[str, Float64]
    minus: Mapping[str, Float64]
    exact_layers: frozenset[str]

    def periphery(self, layer: str) -> Periphery:
        """The converters that a layer runs with."""
        periphery = self.program.spec.periphery
        if layer not in self.exact_layers:
            return periphery
        return periphery.model_copy(update={"dac_bits": None, "adc_bits": None})


def program_chip(
    program: TileProgram, chip: Chip | None = None, *, exact_layers: Collection[str] = ()
) -> ProgrammedChip:
    """Write `program` onto `chip`.

    Parameters
    ----------
    program
        What to write.
    chip
        Where to write it; None takes `Chip.ideal`.
    exact_layers
        Layers to run with their float weights, continuous conductances and ideal converters instead of the spec's:
        what remains shows the effect of the other layers alone.

    Raises
    ------
    ChipError
        If the chip has other arrays than the program was compiled for, or fewer.
    DataError
        If an exact layer is not in the program.
    """
    if chip is not None:
        chip.check_fits(program.spec, program.arrays)
    unknown = set(exact_layers) - set(program.layers)
    if unknown:
        raise DataError(f"layer {min(unknown)!r}", "is not in the program", hint=f"layers: {', '.join(program.layers)}")
    plus, minus = {}, {}
    for tile in program.tables.tiles:
        if tile.layer not in exact_layers:
            plus[tile.name], minus[tile.name] = program.target_conductances(tile.name)
    for loop in program.tables.loops:
        if loop.layer in exact_layers:
            for name, (high, low) in _exact_conductances(program, loop).items():
                plus[name], minus[name] = high, low
    return ProgrammedChip(program, plus, minus, frozenset(exact_layers))


def _exact_conductances(program: TileProgram, loop: Loop) -> dict[str, tuple[Float64, Float64]]:
    """Continuous conductances that stand for a layer's float weights exactly."""
    layer, device = program.layers[loop.layer], program.spec.device
    weights = program.weights[loop.layer].astype(np.float64)
    starts: dict[str, int] = {}
    result = {}
    for step in loop.body:
        if step.op == "load":
            starts[step.into] = step.start
        elif step.op == "mvm":
            tensors = program.tile_tensors[step.tile]
            group, row = divmod(starts[step.source], layer.rows)
            block = weights[group, row : row + len(tensors.row_map), tensors.col_map - group * layer.cols].T
            physical = np.empty_like(block)
            physical[tensors.row_map] = block * (tensors.col_sign / tensors.scale)
            high, low = np.maximum(physical, 0), np.maximum(-physical, 0)
            result[step.tile] = (device.g_min + high * device.span, device.g_min + low * device.span)
    return result
