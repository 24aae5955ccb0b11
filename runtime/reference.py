"""The definition of what a program computes: numpy, float64, one function an instruction, written to be read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.errors import DataError
from hwspec.randomness import Purpose, array_generator
from runtime.channels import NoiseKind, NoiseSource, conversions
from runtime.geometry import copy_windows, gather_vectors, scatter_vectors, window_shape
from runtime.host import HostSegment
from runtime.inputs import bind_inputs
from runtime.physics.converters import CodeRange
from runtime.programming import ProgrammedChip
from runtime.quantize import Float64
from runtime.tables import Acc, Host, Load, Loop, Mvm, Phase, Residue, Store

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Conversion:
    """What one conversion of an `mvm` did, for those who watch.

    Attributes
    ----------
    layer, tile, phase
        Whose it was.
    number
        Of the tile's conversions in this phase, channel by channel, digit by digit.
    windows : (windows,)
        Numbers of the windows that the tile was driven in: all, or those of its copy.
    codes, current : (windows, cols)
        Codes, and the current before it was rounded and clipped, amperes.
    adc
        Codes of the converter; None where it is ideal.
    weight
        With which the converted current goes into the tile's result.
    """

    layer: str
    tile: str
    phase: Phase
    number: int
    windows: npt.NDArray[np.int64]
    codes: Float64
    current: Float64
    adc: CodeRange | None
    weight: float


@dataclass(frozen=True, eq=False)
class _Result:
    """What an `mvm` leaves in its register: tile, phase and windows it came from, and the current it stands for."""

    tile: str
    phase: Phase
    windows: npt.NDArray[np.int64]
    current: Float64


class Reference:
    """Runs a programmed chip instruction by instruction.

    Parameters
    ----------
    chip
        The programmed chip.
    watch
        Called after every conversion.
    seed
        Of the noise of reads.
    noise
        Gives standard normal numbers for every tile, in place of those of the seed.
    """

    def __init__(
        self,
        chip: ProgrammedChip,
        watch: Callable[[Conversion], None] | None = None,
        *,
        seed: int = 0,
        noise: NoiseSource | None = None,
    ) -> None:
        self._chip, self._watch = chip, watch
        self._segments: dict[str, HostSegment] = {}
        generator = array_generator(seed, Purpose.READ_NOISE, 0)
        self._noise: NoiseSource = noise or (lambda *which: generator.standard_normal(which[-1]))

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
        windows = copy_windows(shape, self._chip.program.layers[loop.layer].copies)
        codes: dict[str, Float64] = {}
        starts: dict[str, int] = {}
        results: dict[str, _Result] = {}
        sums: dict[str, Float64] = {}
        for step in loop.body:
            if isinstance(step, Load):
                codes[step.into] = vectors[:, step.start : step.stop]
                starts[step.into] = step.start
            elif isinstance(step, Mvm):
                of_copy = windows[self._chip.program.tiles[step.tile].copy_number]
                results[step.into] = self.mvm(loop.layer, step, codes[step.source], of_copy)
            elif isinstance(step, Acc):
                self.acc(loop.layer, step, results[step.source], sums, len(vectors))
            elif isinstance(step, Residue):
                self.residue(loop.layer, step, codes[step.source], starts[step.source], sums)
            else:
                for number, of_copy in enumerate(windows):
                    shift = self._chip.copy_shift(loop.layer, number)
                    if shift is not None:
                        sums[step.source][of_copy] += shift
                self.store(loop.layer, step, sums[step.source], shape, buffers)

    def _input_codes(self, layer: str, step: Load, x: Array) -> Float64:
        vectors = gather_vectors(self._chip.program.gathers[step.gather], x).astype(np.float64)
        if not np.isfinite(vectors).all():
            raise DataError(f"input of layer {layer!r}", "must be finite, and has NaN or infinite values")
        return self._chip.input_codes(layer, vectors)

    def mvm(self, layer: str, step: Mvm, codes: Float64, windows: npt.NDArray[np.int64]) -> _Result:
        """Drive a tile in these windows: the DAC's codes become voltages, the columns' currents become ADC codes."""
        chip = self._chip
        tile, tensors = chip.program.tiles[step.tile], chip.program.tile_tensors[step.tile]
        on_chip = chip.tiles[step.tile]
        driven = np.empty((len(windows), codes.shape[1]))
        driven[:, tensors.row_map] = codes[windows]

        def noise(channel: int, kind: NoiseKind, shape: tuple[int, ...]) -> Float64:
            return self._noise(step.tile, step.phase, channel, kind, shape)

        total = np.zeros((len(windows), tile.cols))
        done = conversions(
            on_chip.channels,
            lambda channel: chip.readout(tile, step.phase, channel),
            chip.drive(layer),
            chip.layer_spec(layer),
            driven,
            step.phase,
            noise,
        )
        for number, one in enumerate(done):
            total += one.estimate * one.weight
            if self._watch:
                shown = one.codes, one.before, one.adc, one.weight
                self._watch(Conversion(layer, step.tile, step.phase, number, windows, *shown))
        return _Result(step.tile, step.phase, windows, on_chip.gain * total + self._offset(step))

    def _offset(self, step: Mvm) -> Float64:
        """The trim's offset of each column, once for an input vector: with the first of two phases."""
        offset = self._chip.tiles[step.tile].offset
        return offset if step.phase != "-" else np.zeros_like(offset)

    def acc(self, layer: str, step: Acc, result: _Result, sums: dict[str, Float64], windows: int) -> None:
        """Turn converted currents back into products with the weights, and add them to where their columns belong.

        The register has all `windows`; a copy's results go to its own.
        """
        program = self._chip.program
        table, tensors = program.layers[layer], program.tile_tensors[step.tile]
        if step.into not in sums:
            sums[step.into] = np.zeros((windows, table.groups * table.cols))
        unit = self._chip.result_unit(layer) * (1 if result.phase != "-" else -1)
        factor = tensors.col_sign * tensors.scale * tensors.gain * unit
        sums[step.into][np.ix_(result.windows, tensors.col_map)] += result.current * factor

    def residue(self, layer: str, step: Residue, codes: Float64, start: int, sums: dict[str, Float64]) -> None:
        """Add the products with the weights in digital memory whose rows were loaded; exact layers need none."""
        chip, table = self._chip, self._chip.program.layers[layer]
        if layer in chip.exact_layers:
            return
        unit = table.full_scale / (chip.drive(layer).code_max or 1)
        index, values = chip.program.residue(layer)
        row, col = np.divmod(index, table.cols)
        loaded = (row >= start) & (row < start + codes.shape[1])
        matrix = np.zeros((codes.shape[1], table.cols))
        matrix[row[loaded] - start, col[loaded]] = values[loaded]
        first = start // table.rows * table.cols
        sums[step.into][:, first : first + table.cols] += codes @ matrix * unit

    def store(self, layer: str, step: Store, y: Float64, shape: tuple[int, ...], buffers: dict[str, Any]) -> None:
        """Add the bias, and write the results to where their windows belong, in the buffer's own type."""
        program = self._chip.program
        written = scatter_vectors(program.scatters[step.scatter], y, shape, self._chip.bias(layer))
        with np.errstate(over="ignore"):  # a narrow type holds infinity then, as in the engine
            buffers[step.buffer] = written.astype(program.dtypes[step.buffer])
