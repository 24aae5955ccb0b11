"""Effects of the fields of `array`: its size, where pairs lie, unused lines and wires."""

import functools

import numpy as np
import pytest
from networks import nodal
from small_programs import matmul
from spec_effects import (
    IDEAL,
    Fields,
    Float64,
    arrays,
    close,
    conductances,
    currents,
    driven,
    effect,
    error,
    pair,
    sampled,
    volts,
)

from compiler.compile import CompileOptions, remap_program
from hwspec.chip import Chip
from runtime.check import check_program
from runtime.physics.network import CurrentVoltage
from runtime.program import TileProgram

TINY = matmul(3, 2, seed=5)
SPARE: Fields = {**IDEAL, "array.rows": 5, "array.cols": 4, "array.unused": 20e-6, "periphery.subtract": "after"}
"""Arrays with two word lines and two bit lines that the model does not use."""
WIRES = {"r_word": 20.0, "r_bit": 30.0, "r_driver": 100.0, "r_sense": 200.0}


def sensed(program: TileProgram, x: Float64, held: tuple[float, float] = (0.0, 0.0), floating: bool = False) -> Float64:
    """Currents of the plus and the minus side by the equations of every node, ``(windows, 4)``, amperes.

    The lines that are not used are at the two voltages `held` (rows, columns), or open.
    """
    array = program.spec.array
    rw, rb = np.full((5, 4), array.r_word), np.full((5, 4), array.r_bit)
    rw[:, 0] += array.r_driver
    rb[-1] += array.r_sense
    if floating:
        rw[3:, 0] = rb[-1, 2:] = np.inf
    sense = np.array([0.0] * 2 + [held[1]] * 2)
    rows = [np.concatenate([v, [held[0]] * 2]) for v in volts(program, x)]
    sides = [[nodal(G, rw, rb, v, sense, CurrentVoltage())[0][:2] for v in rows] for G in arrays(program)]
    return np.concatenate([np.array(side) for side in sides], axis=1)


@effect("array.rows")
def _rows() -> None:
    one, other = pair("array.rows", 8, 24)
    assert {tile.rows for tile in one.tables.tiles} == {8}
    assert {tile.rows for tile in other.tables.tiles} == {24}
    assert (one.report.layers[0].partial_sums, other.report.layers[0].partial_sums) == (2 * 12, 0)


@effect("array.cols")
def _cols() -> None:
    one, other = pair("array.cols", 4, 12)
    assert {tile.cols for tile in one.tables.tiles} == {4}
    assert {tile.cols for tile in other.tables.tiles} == {12}
    assert (one.arrays, other.arrays) == (2 * 9, 2 * 3)


@effect("array.pairing")
def _pairing() -> None:
    one, other = pair("array.pairing", "two_arrays", "neighbouring_columns", {"array.cols": 12})
    assert {tile.cols for tile in one.tables.tiles} == {12}
    assert {tile.cols for tile in other.tables.tiles} == {6}
    assert one.arrays == other.arrays == 6
    assert {tile.array % 2 for tile in one.tables.tiles} == {0}
    assert {tile.array % 2 for tile in other.tables.tiles} == {0, 1}
    rows, single = pair("array.pairing", "neighbouring_rows", "reference", {"array.cols": 12})
    assert {tile.rows for tile in rows.tables.tiles} == {4}
    assert {tile.rows for tile in single.tables.tiles} == {8}
    assert (rows.arrays, single.arrays) == (6, 3)
    ideal = [*pair("array.pairing", "two_arrays", "neighbouring_columns", IDEAL)]
    ideal += pair("array.pairing", "neighbouring_rows", "reference", IDEAL)
    assert max(error(program) for program in ideal) < 1e-6
    # A single device holds w = 2 s - 1, and the column's sign is free.
    weights = np.abs(ideal[3].weights["layer"][0] / np.abs(ideal[3].weights["layer"][0]).max(0))
    held = np.abs(2 * (ideal[3].tensors["layer/plus"] - 1e-6) / 99e-6 - 1)
    close(np.sort(held), np.sort(weights.ravel()), 1e-6)


@effect("array.slices")
def _slices() -> None:
    fixed: Fields = {"array.cols": 12, "device.levels": 4, "periphery.dac_bits": None, "periphery.adc_bits": None}
    one, other = pair("array.slices", 1, 2, fixed)
    alike, _ = pair("array.slices", 1, 2, {**fixed, "device.levels": 16})
    assert (one.arrays, other.arrays) == (2 * 3, 4 * 3)
    assert len(np.unique(conductances(other))) == 4
    assert error(other) == pytest.approx(error(alike), rel=1e-6)
    assert error(one) > 3 * error(other)
    assert other.report.layers[0].weight_error == pytest.approx(alike.report.layers[0].weight_error, rel=1e-9)


@effect("array.unused")
def _unused() -> None:
    fixed: Fields = {**SPARE, "array.unused": 0.0, "periphery.sense_offset_sigma": 5e-3}
    one, other = pair("array.unused", 0.0, 50e-6, fixed, TINY)
    dark = driven(one, np.zeros((1, 3)))
    currents_of = [currents(sampled(program), dark)[0] for program in (one, other)]
    used = np.concatenate([side.sum(0) for side in one.target_conductances("t0")])
    assert np.abs(currents_of[0]).min() > 0
    close(currents_of[1], currents_of[0] * (used + 2 * 50e-6) / used)

    fixed = {**SPARE, "array.r_word": 100.0}
    one, other = pair("array.unused", 0.0, 50e-6, fixed, TINY)
    x = 0.4 * TINY.inputs(3, batch=1)
    for program in (one, other):
        close(currents(program, x), sensed(program, x), 1e-8)


@effect("array.unselected")
def _unselected() -> None:
    dark = driven(pair("array.unselected", "half", "third", SPARE, TINY)[0], np.zeros((1, 3)))
    grounded, floating = pair("array.unselected", "grounded", "floating", SPARE, TINY)
    half, third = pair("array.unselected", "half", "third", SPARE, TINY)
    assert not currents(grounded, dark).any()
    close(currents(half, dark), np.full((1, 4), 2 * 20e-6 * 0.2 / 2))
    close(currents(third, dark), np.full((1, 4), 2 * 20e-6 * 0.2 / 3))
    x = 0.4 * TINY.inputs(3, batch=1)
    linear = currents(grounded, x)
    close(currents(half, x), linear + currents(half, dark))
    close(currents(floating, x), sensed(floating, x, floating=True), 1e-8)
    assert np.abs(currents(floating, x) - linear).max() > 1e-3 * np.abs(linear).max()

    wired: Fields = {**SPARE, **{f"array.{name}": ohms for name, ohms in WIRES.items()}}
    grounded, floating = pair("array.unselected", "grounded", "floating", wired, TINY)
    half, third = pair("array.unselected", "half", "third", wired, TINY)
    close(currents(grounded, x), sensed(grounded, x), 1e-8)
    close(currents(floating, x), sensed(floating, x, floating=True), 1e-8)
    close(currents(half, x), sensed(half, x, (0.1, 0.1)), 1e-8)
    close(currents(third, x), sensed(third, x, (0.2 / 3, 0.4 / 3)), 1e-8)


def wire(name: str) -> None:
    """A resistance of the wires alone."""
    one, other = pair(f"array.{name}", 0.0, WIRES[name], SPARE, TINY)
    x = 0.4 * TINY.inputs(3, batch=1)
    sides = np.concatenate(one.target_conductances("t0"), axis=1)
    close(currents(one, x), volts(one, x) @ sides)
    wanted = sensed(other, x)
    close(currents(other, x), wanted, 1e-8)
    ohmic = volts(other, x) @ np.concatenate(other.target_conductances("t0"), axis=1)
    assert np.abs(wanted - ohmic).max() > 1e-3 * np.abs(ohmic).max()


for _name in WIRES:
    effect(f"array.{_name}")(functools.partial(wire, _name))


@effect("array.wire_model")
def _wire_model() -> None:
    wired: Fields = {**SPARE, **{f"array.{name}": ohms for name, ohms in WIRES.items()}}
    exact, closed = pair("array.wire_model", "exact", "closed_form", wired, TINY)
    x = 0.4 * TINY.inputs(3, batch=1)
    close(currents(exact, x), sensed(exact, x), 1e-8)
    found = []
    for G in arrays(closed):
        i, j = np.indices(G.shape)
        a = sum((100 + 20 * (np.minimum(j, k) + 1)) * G[:, k : k + 1] for k in range(4))
        b = sum((200 + 30 * (5 - np.maximum(i, k))) * G[k] for k in range(5))
        found.append((G / (1 + a + b))[:3, :2])
    close(currents(closed, x), volts(closed, x) @ np.concatenate(found, axis=1))
    assert np.abs(currents(closed, x) - sensed(closed, x)).max() > 1e-5 * np.abs(currents(closed, x)).max()


@effect("array.router")
def _router() -> None:
    """Tiles of the same inputs take their rows in orders of their own, around the devices that failed below each."""
    failed: Fields = {"failures.stuck_lrs.rate": 0.1, "array.rows": 16, "array.cols": 16}
    found = []
    for program in pair("array.router", False, True, failed, matmul(16, 48, seed=5)):
        mapped = remap_program(program, CompileOptions(), Chip.sample(program.spec, program.arrays, 2))
        check_program(mapped)
        orders = {tuple(one.word_lines[one.row_map].tolist()) for one in mapped.tile_tensors.values()}
        failures = mapped.report.layers[0].failures
        assert failures is not None
        errors = {step.step: step.output_error for step in failures.steps}
        found.append((len(orders), errors["rows"]))
    assert [orders for orders, _ in found] == [1, 3]
    assert found[1][1] < found[0][1]
