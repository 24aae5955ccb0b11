"""Writing a program onto a chip: conductances, effective matrices, readout errors and the controller's trim."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from hwspec.chip import Chip
from hwspec.effects import EFFECTS, OF_A_CHIP, with_effects
from hwspec.errors import DataError
from hwspec.failures import State
from hwspec.fault_map import FaultMap
from hwspec.reach import isolation
from hwspec.spec import HardwareSpec
from runtime.arrays import ProgrammedArrays, find_transfers, tile_channels
from runtime.channels import Channel
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
    stuck
        Devices that hold weights and had failed before they were programmed, gated off or not.
    trim
        Relative error of each layer's tiles on the known vectors, before and after the controller's trim.
    reestimated
        Relative error of each layer's results, before and after its columns were re-estimated (`reestimate_torch`).
    """

    devices: int = 0
    pulses: int = 0
    unconverged: int = 0
    failed: int = 0
    stuck: int = 0
    trim: Mapping[str, tuple[float, float]] | None = None
    reestimated: Mapping[str, tuple[float, float]] | None = None


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
    bias_shift
        Added to the biases of layers whose columns were re-estimated on this chip.
    """

    program: TileProgram
    spec: HardwareSpec
    tiles: Mapping[str, TileOnChip]
    exact_layers: frozenset[str]
    report: ProgrammingReport
    bias_shift: Mapping[str, Float64] = field(default_factory=dict)

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

    def bias(self, layer: str) -> Float64:
        """Digital bias of a layer: the model's own where the layer is exact."""
        return self.program.bias(layer, exact=layer in self.exact_layers) + self.bias_shift.get(layer, 0.0)

    def copy_shift(self, layer: str, number: int) -> Float64 | None:
        """What the bias of one of several copies of a layer takes up; None for nothing, and where it is exact."""
        return None if layer in self.exact_layers else self.program.copy_shift(layer, number)

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

    def rounding(self, tile: Tile) -> float:
        """Variance of a tile's result for a vector by the converter's rounding alone, amperes², all phases together."""
        code_max = self.spec.periphery.output_code_max
        return sum((limit / code_max) ** 2 / 12 for limit in tile.adc_range) if code_max else 0.0

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
        Where to write it; None takes the program's `nominal_chip`, whose devices, readouts and reads are all nominal
        but for the failed devices that the program was mapped around. A chip without a seed has no random effect.
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
    if chip is None:
        chip = program.nominal_chip
    chip.check_fits(program.spec, program.arrays)
    unknown = set(exact_layers) - set(program.layers)
    if unknown:
        raise DataError(f"layer {min(unknown)!r}", "is not in the program", hint=f"layers: {', '.join(program.layers)}")
    if not 0 <= seconds < float("inf"):
        raise DataError("time since programming", "must be finite and not negative", got=seconds)
    keep = frozenset(EFFECTS if effects is None else effects)
    if chip.seed is None:
        keep -= OF_A_CHIP - {"failures"}
    spec = with_effects(program.spec, keep)
    moment = Moment(0 if chip.seed is None else chip.seed, seed, seconds)
    exact = frozenset(exact_layers)
    faults = program.met(chip.faults) if "failures" in keep else None
    programmed = write_program(program, spec, moment, exact, faults)
    if spec.periphery.trim.gain == "none" and not spec.periphery.trim.offset:
        return programmed
    from runtime.trim import trimmed  # it measures on a programmed chip

    measured = programmed
    if spec.periphery.trim.when == "programming" and seconds:
        measured = write_program(program, spec, replace(moment, seconds=0.0), exact, faults)
    return trimmed(programmed, measured, moment, faults)


def write_program(
    program: TileProgram,
    spec: HardwareSpec,
    moment: Moment,
    exact_layers: frozenset[str],
    faults: FaultMap | None,
) -> ProgrammedChip:
    """Write `program` onto a chip with these failed devices, under the effects that `spec` has left; without trim."""
    sites = {tile.array for tile in program.tables.tiles if tile.layer not in exact_layers}
    # Tiles of exact layers on the same arrays are written too: the others' wires see their devices.
    real = [tile for tile in program.tables.tiles if tile.array in sites]
    arrays, report = _write(program, spec, real, moment, faults)
    driven = [tile for tile in program.tables.tiles if tile.name in program.tile_starts]
    find_transfers(program, spec, arrays, [tile for tile in driven if tile.layer not in exact_layers])
    tiles = {}
    for tile in driven:
        if tile.layer in exact_layers:
            channels: tuple[Channel, ...] = (_exact_channel(program, tile),)
        else:
            channels = tile_channels(program, spec, arrays, tile)
        tiles[tile.name] = TileOnChip(channels, np.ones(tile.cols), np.zeros(tile.cols))
    return ProgrammedChip(program, spec, tiles, exact_layers, report)


@dataclass(frozen=True, eq=False)
class _Aims:
    """What the devices of one array are to become, ``(rows, cols)``: targets, which of them count, which are off."""

    target: Float64
    used: npt.NDArray[np.bool_]
    off: npt.NDArray[np.bool_]


def _aims(program: TileProgram, tiles: list[Tile]) -> dict[int, _Aims]:
    """For every array that tiles lie on, by its number."""
    shape = (program.spec.array.rows, program.spec.array.cols)
    found: dict[int, _Aims] = {}
    for tile in tiles:
        sides = zip(program.target_conductances(tile.name), program.gated(tile.name), strict=True)
        for (number, rows, cols), (target, off) in zip(program.places(tile.name).values(), sides, strict=False):
            aims = found.setdefault(number, _Aims(np.zeros(shape), np.zeros(shape, bool), np.zeros(shape, bool)))
            cells = np.ix_(rows, cols)
            aims.target[cells], aims.used[cells], aims.off[cells] = target, True, off
    return found


def _gated(spec: HardwareSpec, off: npt.NDArray[np.bool_], states: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Devices of an array without current: those off, or their whole word lines, but for failed ones without a gate."""
    if isolation(spec.array, spec.failures) == "line":
        off = np.broadcast_to(off.any(1, keepdims=True), off.shape)
    return off & ~np.isin(states, [state for state, section in spec.failures.states() if not section.isolatable])


def _write(
    program: TileProgram, spec: HardwareSpec, tiles: list[Tile], moment: Moment, faults: FaultMap | None
) -> tuple[ProgrammedArrays, ProgrammingReport]:
    """All arrays that tiles lie on, each programmed on its own."""
    array = spec.array
    aims = _aims(program, tiles)
    numbers = sorted(aims)
    index = {number: at for at, number in enumerate(numbers)}
    conductance = np.empty((len(numbers), array.rows, array.cols))
    variance = np.zeros_like(conductance) if _noisy(spec) else None
    counts = np.zeros((len(numbers), 5), np.int64)
    good = np.zeros((array.rows, array.cols), np.uint8)

    def program_some(part: slice) -> None:
        for at in range(part.start, part.stop):
            number = numbers[at]
            one, used = aims[number], aims[number].used
            states = good if faults is None else faults.states[number]
            cells = device_cells(
                spec.device,
                one.target,
                used,
                array.unused,
                number,
                moment,
                stuck=None if faults is None else faults.stuck(number),
                off=_gated(spec, one.off, states) if one.off.any() else None,
                failures=spec.failures,
            )
            conductance[at] = cells.conductance
            if variance is not None and cells.variance is not None:
                variance[at] = cells.variance
            failed, astray, stuck = cells.failed & used, ~cells.converged & used, (states != State.OK) & used
            counts[at] = used.sum(), cells.pulses[used].sum(), astray.sum(), failed.sum(), stuck.sum()

    share_out(len(numbers), program_some)
    physical, chip_seed = program.tables.physical, moment.chip_seed
    errors = {at: draw_column_errors(spec.periphery, array.cols, chip_seed, physical(at)) for at in numbers}
    devices, pulses, unconverged, lost, failed = (int(count) for count in counts.sum(0))
    report = ProgrammingReport(devices, pulses, unconverged, lost, failed)
    return ProgrammedArrays(index, conductance, variance, errors), report


def _noisy(spec: HardwareSpec) -> bool:
    telegraph = spec.device.telegraph
    return spec.device.read_noise.model != "none" or (telegraph.amplitude > 0 and telegraph.correlation_time == 0)


def _exact_channel(program: TileProgram, tile: Tile) -> Channel:
    """A channel that computes with a tile's share of the float weights, and no physics."""
    matrix = program.intended(tile.name, exact=True) * program.spec.weight_span
    return Channel(1, matrix, None, None, ColumnErrors.none(tile.cols), exact=True)
