"""Weights written onto a program that is mapped around failed devices: each pair holds the nearest that it can."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from small_programs import SmallModel, compile_small, small_spec, two_matmuls

import xbarc
from compiler.compile import CompileOptions, remap_program
from compiler.frontend import load_model
from compiler.like import compile_like
from compiler.tuned import tuned_model
from hwspec.chip import Chip
from hwspec.reach import isolation, reachable_set
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram
from runtime.quantize import level_conductances
from runtime.rewrite import reachable_weights, rewrite
from runtime.tables import Tile

Float64 = npt.NDArray[np.float64]

FAILED: dict[str, object] = {
    "failures.unformed.rate": 0.06,
    "failures.overformed.rate": 0.06,
    "failures.overformed.conductance": 180e-6,
    "failures.overformed.isolatable": False,
    "failures.stuck_hrs.rate": 0.06,
    "failures.stuck_lrs.rate": 0.06,
    "failures.allow_unbounded": True,
}
SPECS: dict[str, dict[str, object]] = {
    "pairs": {},
    "few levels": {"device.levels": 3},
    "listed levels": {"device.levels": [1e-6, 12e-6, 40e-6, 100e-6]},
    "continuous": {"device.levels": None},
    "columns": {"array.pairing": "neighbouring_columns"},
    "rows": {"array.pairing": "neighbouring_rows"},
    "reference": {"array.pairing": "reference"},
    "reference, continuous": {"array.pairing": "reference", "device.levels": None},
    "own gates": {"array.cell": "2T2R", "failures.isolation": "device"},
    "own gates, continuous": {"array.cell": "2T2R", "failures.isolation": "device", "device.levels": None},
    "gated lines": {"failures.isolation": "line", "failures.lines.word_failed": 0.2},
    "gated lines, continuous": {"failures.isolation": "line", "device.levels": None},
    "residue": {"periphery.residue": 0.05},
    "access": {"device.r_access": 2e3},
}


@cache
def mapped(name: str, seed: int = 0) -> TileProgram:
    """Two layers on a chip with a fifth of its devices failed."""
    return mapped_on(small_spec({**FAILED, **SPECS[name]}), two_matmuls(), seed)


def mapped_on(spec: HardwareSpec, model: SmallModel, seed: int) -> TileProgram:
    program = compile_small(model, spec)
    return remap_program(program, CompileOptions(predistort=False), Chip.sample(spec, program.arrays, seed))


def near(program: TileProgram, seed: int, spread: float = 0.5) -> dict[str, Float64]:
    """Weights about those that the program holds, some of them beyond full scale."""
    generator = np.random.default_rng(seed)
    held = {name: program.decoded_weights(name) for name in program.layers}
    return {name: own + spread * own.std() * generator.standard_normal(own.shape) for name, own in held.items()}


# -- against everything that a pair can hold ------------------------------------------------------------------------


def wanted_of(program: TileProgram, tile: Tile, weights: Mapping[str, Float64]) -> Float64:
    """What a tile's pairs are to hold over its full scale, ``(rows, cols)`` as they lie: written anew, step by step."""
    layer, tensors = program.layers[tile.layer], program.tile_tensors[tile.name]
    left = weights[tile.layer].copy()
    index, values = program.residue(tile.layer)
    left.ravel()[index] -= values
    group, start = divmod(program.tile_starts[tile.name], layer.rows)
    found = np.empty((tile.rows, tile.cols))
    for element, at in enumerate(tensors.row_map):
        for col, column in enumerate(tensors.col_map):
            weight = left[group, start + element, column - group * layer.cols]
            found[at, col] = weight * tensors.col_sign[col] / tensors.scale[col]
    return found


class Choice:
    """What the devices of a tile's pairs can be: shares of good ones, of failed ones, and of those gated off."""

    def __init__(self, program: TileProgram, tile: Tile) -> None:
        assert program.faults is not None
        spec = program.spec
        device = spec.device
        self.open = -device.g_min / device.span
        self.unit = 2.0 if spec.array.pairing == "reference" else 1.0
        table = level_conductances(device)
        self.levels = None if table is None else (table - device.g_min) / device.span
        kind = isolation(spec.array, spec.failures)
        stubborn = [state for state, section in spec.failures.states() if not section.isolatable]
        self.shares: list[Float64] = []
        self.gates: list[npt.NDArray[np.bool_]] = []
        for (number, rows, cols), off in zip(
            program.places(tile.name).values(), program.gated(tile.name), strict=False
        ):
            states = program.faults.states[number][np.ix_(rows, cols)]
            stuck = program.faults.stuck(number)[np.ix_(rows, cols)]
            share = (stuck / (1 + stuck * device.r_access) - device.g_min) / device.span
            gated = np.asarray(off.all(1)).reshape(-1, 1) & ~np.isin(states, stubborn)
            self.shares.append(np.where(gated, self.open, share) if kind == "line" else share)
            self.gates.append(~np.isin(states, stubborn) if kind == "device" else np.zeros(states.shape, bool))
        if len(self.shares) == 1:
            self.shares.append(np.full((tile.rows, tile.cols), 0.5))
            self.gates.append(np.zeros((tile.rows, tile.cols), bool))

    def intervals(self, at: tuple[int, int]) -> tuple[tuple[float, float], ...]:
        """Of continuous levels."""
        plus, minus = (float(side[at]) for side in self.shares)
        gates = {"gate_pos": bool(self.gates[0][at]), "gate_neg": bool(self.gates[1][at])}
        if self.unit == 2 and np.isnan(plus):
            gates = {}
        found = reachable_set(plus, minus, open_share=self.open, **gates)
        return tuple((self.unit * low, self.unit * high) for low, high in found)

    def failed(self, at: tuple[int, int]) -> bool:
        plus, minus = (bool(np.isnan(side[at])) for side in self.shares)
        return not plus or (self.unit == 1 and not minus)

    def distance(self, at: tuple[int, int], wanted: float) -> float:
        """From what is wanted to the nearest weight that the pair can hold."""
        if self.levels is None:
            ends = self.intervals(at)
            return min(max(low - wanted, wanted - high, 0.0) for low, high in ends)
        sides = []
        for share, gate in zip(self.shares, self.gates, strict=True):
            own = list(self.levels) if np.isnan(share[at]) else [float(share[at])]
            sides.append([*own, self.open] if gate[at] and self.failed(at) else own)
        if not self.failed(at) and self.unit == 1:  # one device of a good pair stays at the lowest level
            return float(min(min(abs(share - wanted), abs(share + wanted)) for share in self.levels))
        return min(abs(self.unit * (plus - minus) - wanted) for plus, minus in itertools.product(*sides))


def held_by(program: TileProgram, tile: Tile) -> Float64:
    """What a tile's pairs hold over its full scale, failed devices behind the access resistance of the spec."""
    plus, minus = program._assumed(tile.name, program.spec.device.r_access)
    found: Float64 = (plus - minus) / program.spec.weight_span
    return found


@pytest.mark.parametrize("name", SPECS)
def test_each_pair_holds_the_nearest_weight_that_it_can(name: str) -> None:
    program = mapped(name)
    weights = near(program, 1)
    written = rewrite(program, weights, {})
    failed = beyond = 0
    for tile in program.tables.tiles:
        choice, wanted, held = Choice(program, tile), wanted_of(program, tile, weights), held_by(written, tile)
        for at in itertools.product(range(tile.rows), range(tile.cols)):
            aim = float(wanted[at])
            failed += choice.failed(at)
            if not choice.failed(at):
                aim = min(max(aim, -1.0), 1.0)
            distance = choice.distance(at, aim)
            beyond += distance > 1e-6
            assert abs(held[at] - aim) == pytest.approx(distance, abs=1e-9), (tile.name, at, aim, held[at])
    assert failed > 5
    assert beyond > 5


@pytest.mark.parametrize("name", SPECS)
def test_what_the_devices_hold_is_written_as_it_is(name: str) -> None:
    """In double precision, and rounded to the single precision that training has."""
    program = mapped(name)
    written = rewrite(program, near(program, 2), {})
    held = {one: written.decoded_weights(one) for one in written.layers}
    for dtype in (np.float64, np.float32):
        again = rewrite(program, {one: values.astype(dtype) for one, values in held.items()}, {})
        for one in written.layers:
            found = again.decoded_weights(one)
            if program.spec.device.levels is not None:
                np.testing.assert_array_equal(found, held[one])
            else:
                off = 4 * float(np.finfo(dtype).eps) * float(np.abs(held[one]).max())
                np.testing.assert_allclose(found, held[one], rtol=0, atol=off)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "access"])
def test_reach_is_what_pairs_can_hold_from_end_to_end(name: str) -> None:
    program = mapped(name)
    for layer in program.layers:
        low, high = reachable_weights(program, layer)
        assert (low <= high).all()
        wanted_low, wanted_high = np.full(low.shape, np.nan), np.full(low.shape, np.nan)
        index, values = program.residue(layer)
        residue = np.zeros(low.size)
        residue[index] = values
        rows = program.layers[layer].rows
        for tile in program.tables.tiles:
            if tile.layer != layer:
                continue
            choice, tensors = Choice(program, tile), program.tile_tensors[tile.name]
            start = program.tile_starts[tile.name] % rows
            for (element, at), (col, column) in itertools.product(
                enumerate(tensors.row_map), enumerate(tensors.col_map)
            ):
                ends = np.array([(-1.0, 1.0)])
                if choice.failed((at, col)):
                    ends = np.array(choice.intervals((int(at), col)))
                unit = tensors.scale[col] * tensors.col_sign[col]
                span = (
                    np.array([ends.min(), ends.max()]) * unit + residue.reshape(low.shape)[0, start + element, column]
                )
                wanted_low[0, start + element, column], wanted_high[0, start + element, column] = span.min(), span.max()
        np.testing.assert_allclose(low, wanted_low, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(high, wanted_high, rtol=1e-12, atol=1e-12)


# -- programs that verify -------------------------------------------------------------------------------------------


@cache
def tuned(name: str) -> TileProgram:
    """A program with weights near those that it held, compiled from the model that has them."""
    program = mapped(name)
    written = rewrite(program, near(program, 3, 0.1), {})
    held = {one: written.decoded_weights(one) for one in written.layers}
    return compile_like(load_model(tuned_model(program, held, {})), program)


@pytest.mark.parametrize("name", SPECS)
def test_a_program_with_other_weights_verifies(name: str) -> None:
    program = tuned(name)
    assert xbarc.verify(program).passed
    for layer in program.layers:
        held = program.decoded_weights(layer)
        np.testing.assert_allclose(program.weights[layer], held, rtol=1e-6, atol=1e-6 * float(np.abs(held).max()))


@pytest.mark.parametrize("name", ["pairs", "continuous", "own gates", "residue", "reference"])
def test_a_program_with_one_other_target_does_not(name: str) -> None:
    """Of a good pair, of a pair with a failed device, and of a device that no one reads: a failed one."""
    program = tuned(name)
    tile = program.tables.tiles[0]
    choice = Choice(program, tile)
    failed = np.array([[choice.failed((row, col)) for col in range(tile.cols)] for row in range(tile.rows)])
    stuck = ~np.isnan(choice.shares[0])
    for kind in (~failed, failed & ~stuck, stuck):
        if not kind.any():
            continue
        at = int(np.flatnonzero(kind.ravel())[0])
        plus = program.tensors[f"{tile.layer}/plus"].copy()
        plus[at] = 20e-6 if program.spec.device.levels is None else (int(plus[at]) + 1) % 2
        report = xbarc.verify(replace(program, tensors={**program.tensors, f"{tile.layer}/plus": plus}))
        assert not report.passed
        assert "targets that its weights give" in " ".join(report.failures)
