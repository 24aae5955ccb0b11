"""Writing a program onto a chip: conductances, effective matrices, readout errors and the controller's trim."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hwspec.chip import Chip
from hwspec.effects import EFFECTS, OF_A_CHIP, with_effects
from hwspec.errors import DataError
from hwspec.spec import HardwareSpec
from runtime.arrays import ProgrammedArrays, find_transfers, tile_channels
from runtime.channels import Channel
from runtime.layout import device_places
from runtime.physics.cells import Moment, device_cells
from runtime.physics.converters import CodeRange, Drive
from runtime.physics.readout import ColumnErrors, Readout, draw_column_errors
from runtime.physics.wires import share_out
from runtime.program import TileProgram
from runtime.quantize import Float64, input_codes
from runtime.tables import Phase, Tile


@dataclass(frozen=True)
class ProgrammingReport:
    """What programming took and left.

    Attributes
    ----------
    devices, pulses
        Devices that hold weights, and the pulses that they got in all.
    unconverged, failed
        Devices outside the tolerance of write-verify when its budget was spent; devices whose programming failed.
    trim
        Relative error of each layer's tiles on the known vectors, before and after the controller's trim.
    """

    devices: int = 0
    pulses: int = 0
    unconverged: int = 0
    failed: int = 0
    trim: Mapping[str, tuple[float, float]] | None = None


@dataclass(frozen=True, eq=False)
class TileOnChip:
    """A tile as it was programmed, with the controller's digital gain and offset (amperes) of each column."""

    channels: tuple[Channel, ...]
    gain: Float64
    offset: Float64


@dataclass(frozen=True, eq=False)
class ProgrammedChip:
    """A program written onto a chip.

    Attributes
    ----------
    program
        What was written.
    spec
        The program's, with the effects that are on.
    tiles
        By name; those that no instruction drives are on their arrays, and not here.
    exact_layers
        Layers that run with their float weights and ideal converters.
    report
        What programming took.
    """

    program: TileProgram
    spec: HardwareSpec
    tiles: Mapping[str, TileOnChip]
    exact_layers: frozenset[str]
    report: ProgrammingReport

    def layer_spec(self, layer: str) -> HardwareSpec:
        """The hardware that a layer runs on: none at all where it is exact."""
        return with_effects(self.spec, ()) if layer in self.exact_layers else self.spec

    def drive(self, layer: str) -> Drive:
        """The input drivers of a layer."""
        return Drive.of(self.layer_spec(layer).periphery, self.program.layers[layer].signed)

    def input_codes(self, layer: str, vectors: Float64) -> Float64:
        """DAC codes of a layer's input vectors."""
        table = self.program.layers[layer]
        return input_codes(vectors, table.full_scale, self.drive(layer).code_max, table.signed)

    def unipolar(self, layer: str) -> bool:
        """Whether the currents of a layer's conversions have one sign, so that no ADC code is spent on the other."""
        periphery = self.program.spec.periphery
        return periphery.subtract == "after" and (
            not self.program.layers[layer].signed or periphery.signed == "two_phase"
        )

    def readout(self, tile: Tile, phase: Phase, channel: Channel) -> Readout:
        """The readout of a tile's channel. Errors in lsb are those of the program's ADC, even where that is off."""
        full_scale = tile.adc_range[1 if phase == "-" else 0] if tile.adc_range else 0.0
        code_max, unipolar = self.program.spec.periphery.output_code_max, self.unipolar(tile.layer)
        codes = None
        if code_max is not None and full_scale:
            codes = CodeRange.of(code_max, full_scale, unipolar=unipolar)
        periphery = self.layer_spec(tile.layer).periphery
        bends = bool(full_scale) and tile.layer not in self.exact_layers
        return Readout(
            errors=channel.errors,
            codes=codes if periphery.adc_bits is not None else None,
            lsb=0.0 if codes is None else codes.lsb,
            full_scale=full_scale,
            saturation=periphery.saturation if bends else 0.0,
            cubic=periphery.cubic if bends else 0.0,
            compliance=periphery.compliance,
            noise=periphery.readout_noise,
        )

    def result_unit(self, layer: str) -> float:
        """What an ampere stands for in a layer's result, for a column of scale 1."""
        spec, table = self.program.spec, self.program.layers[layer]
        return table.full_scale / (spec.weight_span * spec.periphery.v_read)


def program_chip(
    program: TileProgram,
    chip: Chip | None = None,
    *,
    exact_layers: Collection[str] = (),
    effects: Collection[str] | None = None,
    seed: int = 0,
    seconds: float = 0.0,
) -> ProgrammedChip:
    """Write `program` onto `chip`.

    Parameters
    ----------
    program
        What to write.
    chip
        Where to write it; None takes `Chip.ideal`, whose devices, readouts and reads are all nominal.
    exact_layers
        Layers to run with their float weights, continuous conductances and ideal converters instead of the spec's:
        what remains shows the effect of the other layers alone.
    effects
        Names of the effects that are on (`hwspec.effects`); None is all.
    seed
        Of programming pulses, slow traps and the noise that trim is measured with.
    seconds
        Time since programming.

    Raises
    ------
    ChipError
        If the chip has other arrays than the program was compiled for, or fewer.
    DataError
        If an exact layer is not in the program.
    SpecError
        If the time is negative, or beyond what the drift model was fitted to.
    """
    if chip is not None:
        chip.check_fits(program.spec, program.arrays)
    unknown = set(exact_layers) - set(program.layers)
    if unknown:
        raise DataError(f"layer {min(unknown)!r}", "is not in the program", hint=f"layers: {', '.join(program.layers)}")
    if not 0 <= seconds < float("inf"):
        raise DataError("time since programming", "must be finite and not negative", got=seconds)
    keep = frozenset(EFFECTS if effects is None else effects)
    chip_seed = None if chip is None else chip.seed
    if chip_seed is None:
        keep -= OF_A_CHIP
    spec = with_effects(program.spec, keep)
    moment = Moment(0 if chip_seed is None else chip_seed, seed, seconds)
    exact = frozenset(exact_layers)
    programmed = _program(program, spec, moment, exact)
    if spec.periphery.trim.gain == "none" and not spec.periphery.trim.offset:
        return programmed
    from runtime.trim import trimmed  # it measures on a programmed chip

    measured = programmed
    if spec.periphery.trim.when == "programming" and seconds:
        measured = _program(program, spec, replace(moment, seconds=0.0), exact)
    return trimmed(programmed, measured, moment)


def _program(program: TileProgram, spec: HardwareSpec, moment: Moment, exact_layers: frozenset[str]) -> ProgrammedChip:
    real = [tile for tile in program.tables.tiles if tile.layer not in exact_layers]
    arrays, report = _write(program, spec, real, moment)
    driven = [tile for tile in program.tables.tiles if tile.name in program.tile_starts]
    find_transfers(program, spec, arrays, [tile for tile in driven if tile.layer not in exact_layers])
    tiles = {}
    for tile in driven:
        if tile.layer in exact_layers:
            channels: tuple[Channel, ...] = (_exact_channel(program, tile),)
        else:
            channels = tile_channels(spec, arrays, tile)
        tiles[tile.name] = TileOnChip(channels, np.ones(tile.cols), np.zeros(tile.cols))
    return ProgrammedChip(program, spec, tiles, exact_layers, report)


def _write(
    program: TileProgram, spec: HardwareSpec, tiles: list[Tile], moment: Moment
) -> tuple[ProgrammedArrays, ProgrammingReport]:
    """All arrays that tiles lie on, each programmed on its own."""
    array = spec.array
    targets: dict[int, tuple[Float64, npt.NDArray[np.bool_]]] = {}
    for tile in tiles:
        sides = dict(zip(("plus", "minus"), program.target_conductances(tile.name), strict=True))
        for side, (number, rows, cols) in device_places(tile, array).items():
            if number not in targets:
                shape = (array.rows, array.cols)
                targets[number] = (np.zeros(shape), np.zeros(shape, bool))
            targets[number][0][rows, cols] = sides[side]
            targets[number][1][rows, cols] = True
    numbers = sorted(targets)
    index = {number: at for at, number in enumerate(numbers)}
    conductance = np.empty((len(numbers), array.rows, array.cols))
    variance = np.zeros_like(conductance) if _noisy(spec) else None
    counts = np.zeros((len(numbers), 4), np.int64)

    def program_some(part: slice) -> None:
        for at in range(part.start, part.stop):
            target, used = targets[numbers[at]]
            cells = device_cells(spec.device, target, used, array.unused, numbers[at], moment)
            conductance[at] = cells.conductance
            if variance is not None and cells.variance is not None:
                variance[at] = cells.variance
            failed, astray = cells.failed & used, ~cells.converged & used
            counts[at] = used.sum(), cells.pulses[used].sum(), astray.sum(), failed.sum()

    share_out(len(numbers), program_some)
    errors = {number: draw_column_errors(spec.periphery, array.cols, moment.chip_seed, number) for number in numbers}
    devices, pulses, unconverged, lost = (int(count) for count in counts.sum(0))
    report = ProgrammingReport(devices, pulses, unconverged, lost)
    return ProgrammedArrays(index, conductance, variance, errors), report


def _noisy(spec: HardwareSpec) -> bool:
    telegraph = spec.device.telegraph
    return spec.device.read_noise.model != "none" or (telegraph.amplitude > 0 and telegraph.correlation_time == 0)


def _exact_channel(program: TileProgram, tile: Tile) -> Channel:
    """A channel that computes with a tile's share of the float weights, and no physics."""
    matrix = program.intended(tile.name, exact=True) * program.spec.weight_span
    return Channel(1, matrix, None, None, ColumnErrors.none(tile.cols), exact=True)
