"""From the programmed devices of whole arrays to the channels of the tiles on them: wires, offsets, sneak paths."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from hwspec.array import Array
from hwspec.spec import HardwareSpec
from runtime.channels import Channel, Network, effective_volts
from runtime.layout import Place, Side, driven_rows, lines_of
from runtime.physics.converters import Drive
from runtime.physics.network import solve_currents
from runtime.physics.noise_transfer import noise_transfer
from runtime.physics.readout import ColumnErrors
from runtime.physics.wires import approximate_matrix, effective_matrix, share_out
from runtime.program import TileProgram
from runtime.quantize import Float64, input_codes
from runtime.tables import Tile

_NOISE_VECTORS = 32
"""Calibration vectors that the attenuation of read noise is found with."""
_AT_ONCE = 64
"""Arrays whose wires are solved at once: bounds memory."""


@dataclass(eq=False)
class ProgrammedArrays:
    """The devices of the arrays that tiles lie on, and what follows from them for an array as a whole.

    Attributes
    ----------
    index
        Where an array of this number lies in the others.
    conductance, variance : (arrays, rows, cols)
        Siemens, and siemens² (None without read noise).
    errors
        Of each array's columns.
    """

    index: Mapping[int, int]
    conductance: Float64
    variance: Float64 | None
    errors: Mapping[int, ColumnErrors]
    transfers: dict[tuple[int, bytes], Float64] = field(default_factory=dict)
    """What wires leave of the noise of an array's devices, by its number and `driven_lines`."""
    _effective: Float64 | None = field(default=None, init=False)

    def effective(self, number: int, array: Array) -> Float64:
        """Current into each column for one volt on each row, ``(rows, cols)``, siemens; other lines at 0 V."""
        if not array.wired:
            unwired: Float64 = self.conductance[self.index[number]]
            return unwired
        if self._effective is None:
            self._effective = np.concatenate(
                [
                    wired(self.conductance[start : start + _AT_ONCE], array)
                    for start in range(0, len(self.conductance), _AT_ONCE)
                ]
            )
        found: Float64 = self._effective[self.index[number]]
        return found


def wired(conductance: Float64, array: Array) -> Float64:
    """Effective conductances of whole arrays ``(..., rows, cols)`` with the spec's wires, in the same order."""
    solve = effective_matrix if array.wire_model == "exact" else approximate_matrix
    return solve(conductance, array.r_word, array.r_bit, array.r_driver, array.r_sense).swapaxes(-1, -2)


@dataclass(frozen=True, eq=False)
class _View:
    """An array as one tile sees it: ``(rows, cols)`` of the whole array, and its columns' currents without input."""

    matrix: Float64
    variance: Float64 | None
    static: Float64 | None
    network: Network | None


def tile_channels(
    program: TileProgram, spec: HardwareSpec, arrays: ProgrammedArrays, tile: Tile
) -> tuple[Channel, ...]:
    """The conversions of a programmed tile.

    Parameters
    ----------
    program
        That the tile belongs to.
    spec
        With the effects that are on.
    arrays
        The programmed devices.
    tile
        Of the program.
    """
    places, driven = program.places(tile.name), driven_lines(program, tile)
    numbers = {number for number, _, _ in places.values()}
    views = {number: _view(spec, arrays, driven, places, number) for number in numbers}
    sides = {side: _channel(views[place[0]], arrays.errors[place[0]], place) for side, place in places.items()}
    plus, after = sides["plus"], spec.periphery.subtract == "after"
    if "minus" in sides:
        minus = sides["minus"]
        if spec.array.pairing == "neighbouring_rows":  # one column, whose readout sees its offset once
            minus = replace(minus, static=None, networks=())
        return (plus, replace(minus, sign=-1)) if after else (_difference(plus, minus),)
    reference = Channel(
        sign=-1,
        matrix=np.full((tile.rows, tile.cols), spec.reference_conductance),
        variance=None,
        static=None,
        errors=ColumnErrors.none(tile.cols),
        exact=True,
    )
    return (plus, reference) if after else (_difference(plus, reference),)


def _channel(view: _View, errors: ColumnErrors, place: Place) -> Channel:
    _, rows, cols = place
    cells = np.ix_(rows, cols)
    return Channel(
        sign=1,
        matrix=np.zeros((len(rows), len(cols))) if view.network else view.matrix[cells],
        variance=None if view.variance is None else view.variance[cells],
        static=None if view.static is None else view.static[cols],
        errors=errors.of(cols),
        networks=(replace(view.network, cols=cols),) if view.network else (),
    )


def _difference(plus: Channel, minus: Channel) -> Channel:
    """One channel for the difference of two, read out by the first one's columns."""
    return Channel(
        sign=1,
        matrix=plus.matrix - minus.matrix,
        variance=_sum(plus.variance, minus.variance, 1),
        static=_sum(plus.static, minus.static, -1),
        errors=plus.errors,
        networks=plus.networks + tuple(replace(network, sign=-network.sign) for network in minus.networks),
    )


def _sum(one: Float64 | None, other: Float64 | None, sign: int) -> Float64 | None:
    if one is None or other is None:
        return one if other is None else sign * other
    return one + sign * other


def _view(
    spec: HardwareSpec,
    arrays: ProgrammedArrays,
    lines_driven: bytes,
    places: dict[Side, Place],
    number: int,
) -> _View:
    array, errors = spec.array, arrays.errors[number]
    conductance = arrays.conductance[arrays.index[number]]
    rows, cols = lines_of(places, array, number)
    lines = _Unselected.of(spec, rows, cols)
    matrix = arrays.effective(number, array) if not lines.floats else lines.effective(conductance, array)
    driven = driven_rows(places, number, array)
    network = static = None
    offset = bool(errors.sense_offset.any())
    held = lines.cols + errors.sense_offset
    bends = array.wired or array.unselected != "grounded" or array.pairing == "neighbouring_rows" or offset
    if not spec.device.iv.linear and bends:
        network = Network(
            conductance, driven, np.arange(array.cols), 1, lines.rows, held, lines.floating_rows, lines.floating_cols
        )
    elif lines.rows.any() or held.any():
        # Devices are ohmic: what held lines and virtual grounds off 0 V add is the same for every input.
        static = solve_currents(
            conductance,
            lines.rows,
            r_word=array.r_word,
            r_bit=array.r_bit,
            r_driver=array.r_driver,
            r_sense=array.r_sense,
            sense_volts=held,
            floating_rows=lines.floating_rows,
            floating_cols=lines.floating_cols,
        )
    variance = None if arrays.variance is None else arrays.variance[arrays.index[number]]
    if variance is not None and array.wired:
        variance = variance * arrays.transfers[number, lines_driven]
    return _View(matrix, variance, static, network)


@dataclass(frozen=True, eq=False)
class _Unselected:
    """Voltages of the lines that a tile does not use, and which of them are connected to nothing."""

    rows: Float64
    cols: Float64
    floating_rows: npt.NDArray[np.bool_]
    floating_cols: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, spec: HardwareSpec, rows: npt.NDArray[np.bool_], cols: npt.NDArray[np.bool_]) -> "_Unselected":
        """By the spec, for a tile that uses these lines."""
        scheme, v_read = spec.array.unselected, spec.periphery.v_read
        of_row = {"half": v_read / 2, "third": v_read / 3}.get(scheme, 0.0)
        of_col = {"half": v_read / 2, "third": 2 * v_read / 3}.get(scheme, 0.0)
        floating = scheme == "floating"
        return cls(np.where(rows, 0.0, of_row), np.where(cols, 0.0, of_col), ~rows & floating, ~cols & floating)

    @property
    def floats(self) -> bool:
        """Whether any line is connected to nothing."""
        return bool(self.floating_rows.any() or self.floating_cols.any())

    def effective(self, conductance: Float64, array: Array) -> Float64:
        """Effective conductances of the array, ``(rows, cols)``, with open ends of the floating lines."""
        word, bit = np.full(conductance.shape, array.r_word), np.full(conductance.shape, array.r_bit)
        word[self.floating_rows, 0] = np.inf
        bit[-1, self.floating_cols] = np.inf
        return effective_matrix(conductance, word, bit, array.r_driver, array.r_sense).T


def driven_lines(program: TileProgram, tile: Tile) -> bytes:
    """The word lines that a tile drives, and the layer whose inputs it drives them with, as a key."""
    return program.tile_tensors[tile.name].word_lines.tobytes() + tile.layer.encode()


def find_transfers(program: TileProgram, spec: HardwareSpec, arrays: ProgrammedArrays, tiles: list[Tile]) -> None:
    """Fill `transfers`: what wires leave of each device's noise, for inputs like the tiles' calibration vectors.

    Tiles of a layer that drive the same rows of an array count together: what a row's inputs do to a device depends on
    the rows that are driven with it, not on whose columns are read.
    """
    if arrays.variance is None or not spec.array.wired:
        return
    groups: dict[tuple[int, bytes], list[Tile]] = {}
    for tile in tiles:
        for number in {number for number, _, _ in program.places(tile.name).values()}:
            groups.setdefault((number, driven_lines(program, tile)), []).append(tile)
    keys = list(groups)

    def work(part: slice) -> None:
        for key in keys[part]:
            arrays.transfers[key] = _transfer(program, spec, arrays, key[0], groups[key])

    share_out(len(keys), work)


def _transfer(
    program: TileProgram, spec: HardwareSpec, arrays: ProgrammedArrays, number: int, tiles: list[Tile]
) -> Float64:
    assert arrays.variance is not None
    array, at = spec.array, arrays.index[number]
    chosen = tiles[:: -(-len(tiles) // _NOISE_VECTORS)]
    volts = []
    for tile in chosen:
        of_tile = calibration_volts(program, spec, tile, max(_NOISE_VECTORS // len(chosen), 1))
        lines = np.zeros((len(of_tile), array.rows))
        for rows, sign in driven_rows(program.places(tile.name), number, array):
            lines[:, rows] = sign * of_tile
        volts.append(lines)
    return noise_transfer(
        arrays.conductance[at],
        np.concatenate(volts),
        array.r_word,
        array.r_bit,
        array.r_driver,
        array.r_sense,
        sigma=np.sqrt(arrays.variance[at]),
        threads=1,
    )


def calibration_codes(program: TileProgram, code_max: int | None, tile: Tile, most: int) -> Float64:
    """DAC codes of the calibration vectors that a tile sees, in the order of its loaded elements."""
    layer, start = program.layers[tile.layer], program.tile_starts[tile.name]
    vectors = program.calibration[f"{tile.layer}/vectors"][:most, start : start + tile.rows].astype(np.float64)
    return input_codes(vectors, layer.full_scale, code_max, layer.signed)


def calibration_volts(program: TileProgram, spec: HardwareSpec, tile: Tile, most: int) -> Float64:
    """Word-line voltages of the calibration vectors that a tile sees, in the physical order of its rows."""
    drive = Drive.of(spec.periphery, program.layers[tile.layer].signed)
    shares = calibration_codes(program, drive.code_max, tile, most) / (drive.code_max or 1)
    volts = np.zeros_like(shares)
    volts[:, program.tile_tensors[tile.name].row_map] = effective_volts(shares, spec)
    return volts
