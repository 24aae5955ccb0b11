"""The definition of what a program computes: numpy, float64, one function an instruction, written to be read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError
from runtime.geometry import gather_vectors, scatter_vectors, window_shape
from runtime.host import HostSegment
from runtime.inputs import bind_inputs
from runtime.physics.converters import convert, drive_voltages, phase_part
from runtime.programming import ProgrammedChip
from runtime.quantize import Float64, input_codes
from runtime.tables import Acc, Host, Load, Loop, Mvm, Phase, Store

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Conversion:
    """What one `mvm` did, for those who watch: codes and the currents before them, ``(windows, cols)``."""

    layer: str
    tile: str
    phase: Phase
    codes: Float64
    current: Float64


@dataclass(frozen=True, eq=False)
class _Result:
    """What an `mvm` leaves in its register: the tile and phase it came from, and the current of each code, amperes."""

    tile: str
    phase: Phase
    current: Float64


class Reference:
    """Runs a programmed chip instruction by instruction.

    Parameters
    ----------
    chip
        The programmed chip.
    watch
        Called after every `mvm`.
    """

    def __init__(self, chip: ProgrammedChip, watch: Callable[[Conversion], None] | None = None) -> None:
        self._chip, self._watch = chip, watch
        self._segments: dict[str, HostSegment] = {}

    def __call__(self, inputs: Mapping[str, Any] | Any) -> list[Any]:
        """Outputs of the program, in the order of the model's, as onnxruntime's ``run`` gives them."""
        tables = self._chip.program.tables
        buffers: dict[str, Any] = dict(bind_inputs(tables.inputs, inputs))
        for instruction in tables.instructions:
            if isinstance(instruction, Host):
                self.host(instruction, buffers)
            else:
                self.loop(instruction, buffers)
        return [buffers[info.name] for info in tables.outputs]

    def host(self, instruction: Host, buffers: dict[str, Any]) -> None:
        """Run a digital segment."""
        name = instruction.segment
        if name not in self._segments:
            self._segments[name] = HostSegment(name, self._chip.program.segments[name])
        results = self._segments[name]([buffers[value] for value in instruction.inputs])
        buffers.update(zip(instruction.outputs, results, strict=True))

    def loop(self, loop: Loop, buffers: dict[str, Any]) -> None:
        """Run a loop for all windows at once."""
        first = next(step for step in loop.body if isinstance(step, Load))
        shape = window_shape(self._chip.program.gathers[first.gather], buffers[first.buffer].shape)
        vectors = self._input_codes(loop.layer, first, buffers[first.buffer])
        codes: dict[str, Float64] = {}
        results: dict[str, _Result] = {}
        sums: dict[str, Float64] = {}
        for step in loop.body:
            if isinstance(step, Load):
                codes[step.into] = vectors[:, step.start : step.stop]
            elif isinstance(step, Mvm):
                results[step.into] = self.mvm(loop.layer, step, codes[step.source])
            elif isinstance(step, Acc):
                self.acc(loop.layer, step, results[step.source], sums)
            else:
                self.store(loop.layer, step, sums[step.source], shape, buffers)

    def _input_codes(self, layer: str, step: Load, x: Array) -> Float64:
        table = self._chip.program.layers[layer]
        vectors = gather_vectors(self._chip.program.gathers[step.gather], x).astype(np.float64)
        if not np.isfinite(vectors).all():
            raise DataError(f"input of layer {layer!r}", "must be finite, and has NaN or infinite values")
        code_max = self._chip.periphery(layer).input_code_max(table.signed)
        return input_codes(vectors, table.full_scale, code_max, table.signed)

    def mvm(self, layer: str, step: Mvm, codes: Float64) -> _Result:
        """Drive a tile: the DAC's codes become voltages, the pairs' current differences become ADC codes."""
        program, periphery = self._chip.program, self._chip.periphery(layer)
        code_max = periphery.input_code_max(program.layers[layer].signed)
        volts = drive_voltages(phase_part(codes, step.phase), code_max, periphery.v_read)
        driven = np.empty_like(volts)
        driven[:, program.tile_tensors[step.tile].row_map] = volts
        current = driven @ (self._chip.plus[step.tile] - self._chip.minus[step.tile])
        ranges = program.tiles[step.tile].adc_range
        adc_range = ranges[0 if step.phase != "-" else 1] if ranges else None
        converted, estimate = convert(current, adc_range, periphery)
        if self._watch:
            self._watch(Conversion(layer, step.tile, step.phase, converted, current))
        return _Result(step.tile, step.phase, estimate)

    def acc(self, layer: str, step: Acc, result: _Result, sums: dict[str, Float64]) -> None:
        """Turn converted currents back into products with the weights, and add them to where their columns belong."""
        program = self._chip.program
        table, tensors = program.layers[layer], program.tile_tensors[step.tile]
        if step.into not in sums:
            sums[step.into] = np.zeros((len(result.current), table.groups * table.cols))
        # A weight of `scale` is a conductance difference of the span; an input of `full_scale` is v_read.
        unit = table.full_scale / (program.spec.device.span * program.spec.periphery.v_read)
        factor = tensors.col_sign * tensors.scale * (unit if result.phase != "-" else -unit)
        sums[step.into][:, tensors.col_map] += result.current * factor

    def store(self, layer: str, step: Store, y: Float64, shape: tuple[int, ...], buffers: dict[str, Any]) -> None:
        """Add the bias, and write the results to where their windows belong, in the buffer's own type."""
        program = self._chip.program
        written = scatter_vectors(program.scatters[step.scatter], y, shape, program.bias(layer))
        with np.errstate(over="ignore"):  # a narrow type holds infinity then, as in the engine
            buffers[step.buffer] = written.astype(program.dtypes[step.buffer])
