"""Targets that undo the resistance of wires, and what wires do to each layer."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compiler.mapping import Mapping, Targets
from compiler.passes.emit import emit
from compiler.report import build_report
from hwspec.spec import HardwareSpec
from runtime.arrays import calibration_volts, wired
from runtime.layout import Place as Position
from runtime.layout import Side, device_places
from runtime.physics.predistortion import Predistorted, predistort
from runtime.physics.spread import with_access_resistance
from runtime.physics.wires import approximate_matrix, approximation_error, effective_matrix, share_out
from runtime.program import TileProgram
from runtime.quantize import Float64, level_conductances
from runtime.report import WireReport
from runtime.tables import Tile

_VECTORS = 64
"""Calibration vectors that targets and gains are fitted to."""


@dataclass(frozen=True)
class Predistort:
    """Move the targets of pairs until what wires leave of them is the weights, up to a digital gain a column.

    Access resistance is undone with them; without either there is nothing to do. Single devices against a reference
    are left as they are: the reference does not pass through the wires that attenuate them.

    Parameters
    ----------
    enabled
        Whether targets change; otherwise the pass only reports what wires do.
    progress
        Called with the number of tiles done, and of all.
    """

    enabled: bool = True
    progress: Callable[[int, int], None] | None = None
    name: ClassVar[str] = "predistort"
    requires: ClassVar[tuple[str, ...]] = ("calibrate", "assign")

    def run(self, mapping: Mapping) -> Mapping:
        """Change `targets`, fill `wires`."""
        array = mapping.spec.array
        if not array.wired and not mapping.spec.device.r_access:
            return mapping
        program = emit(mapping, build_report(mapping, {}), keep_source=False)
        nominal = _Nominal.of(program)
        tiles = program.tables.tiles
        moved = self.enabled and array.pairing != "reference"
        results = [_Result(None, 0.0, 0.0)] * len(tiles)
        done = itertools.count(1)

        def work(part: slice) -> None:
            for at in range(part.start, part.stop):
                results[at] = _tile(program, nominal, tiles[at], moved=moved)
                if self.progress:
                    self.progress(next(done), len(tiles))

        share_out(len(tiles), work)
        targets: dict[str, list[Targets]] = {layer.name: [] for layer in mapping.layers}
        found: dict[str, list[_Result]] = {layer.name: [] for layer in mapping.layers}
        for tile, result in zip(tiles, results, strict=True):
            before = mapping.targets[tile.layer][len(targets[tile.layer])]
            targets[tile.layer].append(before if result.moved is None else _targets(result.moved, before, mapping.spec))
            found[tile.layer].append(result)
        return replace(
            mapping,
            predistorted=moved,
            targets={name: tuple(parts) for name, parts in targets.items()},
            wires={name: _report(parts) for name, parts in found.items()},
        )


@dataclass(frozen=True, eq=False)
class _Result:
    """A tile's new targets, if any, the closed form's error on its arrays, and that of its outputs without them."""

    moved: Predistorted | None
    closed_form: float
    error: float


@dataclass(frozen=True, eq=False)
class _Nominal:
    """Every array that tiles lie on, at its targets: ``(arrays, rows, cols)``, siemens.

    `conductance` includes the access resistance; `effective` is what the spec's wires leave of it, `exact` and `closed`
    what the exact solution and the closed form do.
    """

    index: dict[int, int]
    conductance: Float64
    effective: Float64
    exact: Float64
    closed: Float64

    @classmethod
    def of(cls, program: TileProgram) -> "_Nominal":
        """The arrays of a program."""
        array, found = program.spec.array, _targets_of_arrays(program)
        conductance = np.stack(list(found.values()))
        ohms = (array.r_word, array.r_bit, array.r_driver, array.r_sense)
        exact = effective_matrix(conductance, *ohms).swapaxes(-1, -2)
        closed = approximate_matrix(conductance, *ohms).swapaxes(-1, -2)
        effective = exact if array.wire_model == "exact" else closed
        return cls({number: at for at, number in enumerate(found)}, conductance, effective, exact, closed)


def _targets_of_arrays(program: TileProgram) -> dict[int, Float64]:
    """Target conductances of every array that tiles lie on, access resistance included, ``(rows, cols)``, siemens."""
    array, found = program.spec.array, dict[int, Float64]()
    for tile in program.tables.tiles:
        sides = dict(zip(("plus", "minus"), program.target_conductances(tile.name), strict=True))
        for side, (number, rows, cols) in device_places(tile, array).items():
            if number not in found:
                found[number] = np.full((array.rows, array.cols), array.unused)
            found[number][rows, cols] = sides[side]
    return {number: with_access_resistance(one, program.spec.device.r_access) for number, one in found.items()}


def _tile(program: TileProgram, nominal: _Nominal, tile: Tile, *, moved: bool) -> _Result:
    """New targets of a tile among the present ones of its neighbours."""
    spec, array = program.spec, program.spec.array
    places = device_places(tile, array)
    volts = calibration_volts(program, spec, tile, _VECTORS)
    numbers = sorted({number for number, _, _ in places.values()})
    at = [nominal.index[number] for number in numbers]
    index = {number: position for position, number in enumerate(numbers)}
    lines = _line_volts(volts, places, array.rows)
    closed, exact = (matrices[at].swapaxes(-1, -2) for matrices in (nominal.closed, nominal.exact))
    closed_form = float(np.mean(approximation_error(closed, exact, lines)))

    def sides_of(effective: Float64, reference: Float64) -> tuple[Float64, Float64]:
        found = {side: effective[index[number]][rows, cols] for side, (number, rows, cols) in places.items()}
        return found["plus"], found.get("minus", reference)

    def effective(plus: Float64, minus: Float64) -> tuple[Float64, Float64]:
        sides: dict[Side, Float64] = {"plus": plus, "minus": minus}
        changed = nominal.conductance[at]
        for side, (number, rows, cols) in places.items():
            changed[index[number]][rows, cols] = with_access_resistance(sides[side], spec.device.r_access)
        return sides_of(wired(changed, array), minus)

    device = spec.device
    plus, minus = program.target_conductances(tile.name)
    if not moved:
        got_plus, got_minus = sides_of(nominal.effective[at], minus)
        wanted = (plus - minus).T
        return _Result(None, closed_form, float(approximation_error((got_plus - got_minus).T, wanted, volts)))
    found = predistort(plus, minus, effective, volts, device.g_min, device.g_max, level_conductances(device))
    return _Result(found, closed_form, found.error_before)


def _line_volts(volts: Float64, places: dict[Side, Position], rows: int) -> Float64:
    """Voltages of all word lines of an array for those of a tile's rows; of the plus side's, on neighbouring rows."""
    lines = np.zeros((len(volts), rows))
    lines[:, places["plus"][1]] = volts
    return lines


def _targets(found: Predistorted, before: Targets, spec: HardwareSpec) -> Targets:
    table = level_conductances(spec.device)
    if table is None:
        return Targets(found.plus, found.minus, found.gain)
    between = (table[1:] + table[:-1]) / 2
    plus, minus = (np.searchsorted(between, side).astype(before.plus.dtype) for side in (found.plus, found.minus))
    return Targets(plus, minus, found.gain)


def _report(tiles: list[_Result]) -> WireReport:
    moved = [result.moved for result in tiles if result.moved is not None]

    def together(errors: list[float]) -> float:
        return float(np.sqrt(np.mean(np.square(errors))))

    return WireReport(
        closed_form_error=together([result.closed_form for result in tiles]),
        error=together([result.error for result in tiles]),
        error_with_gain=together([found.error_gain_only for found in moved]) if moved else None,
        error_predistorted=together([found.error for found in moved]) if moved else None,
        headroom=min((float(found.headroom.min()) for found in moved), default=None),
    )
