"""Targets that undo the resistance of wires, and what wires do to each layer."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from compiler.mapping import Mapping, Targets
from compiler.passes.emit import emit
from compiler.report import build_report
from hwspec.spec import HardwareSpec
from runtime.arrays import calibration_volts, wired
from runtime.layout import Place as Position
from runtime.layout import Side
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
            targets[tile.layer].append(before if result.moved is None else _targets(result, before, mapping.spec))
            found[tile.layer].append(result)
        return replace(
            mapping,
            predistorted=moved,
            targets={name: tuple(parts) for name, parts in targets.items()},
            wires={name: _report(parts) for name, parts in found.items()},
        )


@dataclass(frozen=True, eq=False)
class _Result:
    """A tile's new targets, if any, the closed form's error on its arrays, and that of its outputs without them.

    `held` tells the devices, plus and minus, that do not move.
    """

    moved: Predistorted | None
    closed_form: float
    error: float
    held: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None = None


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
        sides = dict(zip(("plus", "minus"), program.assumed_conductances(tile.name), strict=True))
        for side, (number, rows, cols) in program.places(tile.name).items():
            if number not in found:
                stuck = np.nan if program.faults is None else program.faults.stuck(number)
                found[number] = np.where(np.isnan(stuck), np.full((array.rows, array.cols), array.unused), stuck)
            found[number][np.ix_(rows, cols)] = sides[side]
    return {number: with_access_resistance(one, program.spec.device.r_access) for number, one in found.items()}


def _tile(program: TileProgram, nominal: _Nominal, tile: Tile, *, moved: bool) -> _Result:
    """New targets of a tile among the present ones of its neighbours."""
    spec, array = program.spec, program.spec.array
    places = program.places(tile.name)
    volts = calibration_volts(program, spec, tile, _VECTORS)
    numbers = sorted({number for number, _, _ in places.values()})
    at = [nominal.index[number] for number in numbers]
    index = {number: position for position, number in enumerate(numbers)}
    lines = _line_volts(volts, places, array.rows)
    closed, exact = (matrices[at].swapaxes(-1, -2) for matrices in (nominal.closed, nominal.exact))
    closed_form = float(np.mean(approximation_error(closed, exact, lines)))

    def sides_of(effective: Float64, reference: Float64) -> tuple[Float64, Float64]:
        found = {side: effective[index[number]][np.ix_(rows, cols)] for side, (number, rows, cols) in places.items()}
        return found["plus"], found.get("minus", reference)

    gated = program.gated(tile.name)
    stuck = [
        np.where(off, 0.0, with_access_resistance(one, spec.device.r_access))
        for one, off in zip(program.stuck_conductances(tile.name), gated, strict=True)
    ]

    def effective(plus: Float64, minus: Float64) -> tuple[Float64, Float64]:
        changed = nominal.conductance[at]
        for (number, rows, cols), side, held in zip(places.values(), (plus, minus), stuck, strict=False):
            conducts = np.where(np.isnan(held), with_access_resistance(side, spec.device.r_access), held)
            changed[index[number]][np.ix_(rows, cols)] = conducts
        return sides_of(wired(changed, array), minus)

    device = spec.device
    plus, minus = program.target_conductances(tile.name)
    if not moved:
        got_plus, got_minus = sides_of(nominal.effective[at], minus)
        held = (np.where(np.isnan(one), side, one) for one, side in zip(stuck, (plus, minus), strict=True))
        wanted = np.subtract(*held).T
        return _Result(None, closed_form, float(approximation_error((got_plus - got_minus).T, wanted, volts)))
    plus, minus = (np.where(off, device.g_min, side) for off, side in zip(gated, (plus, minus), strict=True))
    found = predistort(
        plus,
        minus,
        effective,
        volts,
        device.g_min,
        device.g_max,
        level_conductances(device),
        stuck=(stuck[0], stuck[1]),
    )
    return _Result(found, closed_form, found.error_before, (~np.isnan(stuck[0]), ~np.isnan(stuck[1])))


def _line_volts(volts: Float64, places: dict[Side, Position], rows: int) -> Float64:
    """Voltages of all word lines of an array for those of a tile's rows; of the plus side's, on neighbouring rows."""
    lines = np.zeros((len(volts), rows))
    lines[:, places["plus"][1]] = volts
    return lines


def _targets(found: _Result, before: Targets, spec: HardwareSpec) -> Targets:
    """Targets as a tile holds them; those of failed devices, and of devices that are gated off, stay."""
    assert found.moved is not None
    assert found.held is not None
    table = level_conductances(spec.device)
    sides: list[npt.NDArray[Any]] = [found.moved.plus, found.moved.minus]
    if table is not None:
        between = (table[1:] + table[:-1]) / 2
        sides = [np.searchsorted(between, side) for side in sides]
    kept = zip(sides, (before.plus, before.minus), found.held, strict=True)
    plus, minus = (np.where(held, old, new).astype(old.dtype) for new, old, held in kept)
    return Targets(plus, minus, found.moved.gain)


def _report(tiles: list[_Result]) -> WireReport:
    moved = [result.moved for result in tiles if result.moved is not None]

    def together(errors: list[float]) -> float:
        known = [error for error in errors if np.isfinite(error)]  # none is relative to an output that is always 0
        return float(np.sqrt(np.mean(np.square(known)))) if known else 0.0

    return WireReport(
        closed_form_error=together([result.closed_form for result in tiles]),
        error=together([result.error for result in tiles]),
        error_with_gain=together([found.error_gain_only for found in moved]) if moved else None,
        error_predistorted=together([found.error for found in moved]) if moved else None,
        headroom=min((float(found.headroom.min()) for found in moved), default=None),
    )
