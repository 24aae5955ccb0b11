"""Effects of the fields of `failures` that act when a program runs: retention, gates; and of the digital residue."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mapped_programs import mapped_for, with_gated, with_residue
from spec_effects import (
    SMALL,
    SQUARE,
    Fields,
    chance,
    close,
    conductances,
    devices,
    effect,
    on_spec,
    outputs,
    pair,
    sampled,
)

from hwspec.chip import Chip
from hwspec.errors import ProgramError
from hwspec.failures import State
from runtime.check import check_program
from runtime.program import TileProgram
from runtime.programming import program_chip

Bools = npt.NDArray[np.bool_]

LARGE: Fields = {"array.rows": 64, "array.cols": 64, "periphery.subtract": "after"}
"""8192 devices, each of which can be read."""
LASTING: Fields = {"failures.retention.state": "stuck_lrs", "failures.retention.lifetime": 1000.0}
"""What they turn into cannot be mistaken for a target: g_max is 150 µS for them."""
LOST = 150e-6
WEAR: Fields = {**LASTING, "failures.stuck_lrs.conductance": LOST, "failures.allow_unbounded": True}


def lost(field: str, one: object, other: object, fixed: Fields, seconds: float) -> tuple[Bools, Bools]:
    """Which devices are lost after a time, for each of two values of a field."""
    fixed = {name: value for name, value in {**LARGE, **WEAR, **fixed}.items() if name != field}
    first, second = pair(field, one, other, fixed, SQUARE)
    found = [np.isclose(devices(sampled(program, seconds=seconds)), LOST) for program in (first, second)]
    return found[0], found[1]


@effect("failures.retention.state")
def _state() -> None:
    """Devices turn into what the state conducts; without one all stay what they are."""
    fixed = {name: value for name, value in {**LARGE, **WEAR}.items() if name != "failures.retention.state"}
    for state, siemens in (("unformed", 0.0), ("stuck_lrs", LOST)):
        none, some = pair("failures.retention.state", None, state, fixed, SQUARE)
        close(devices(sampled(none, seconds=1000.0)), conductances(none))
        found, gone = devices(sampled(some, seconds=1000.0)), ~np.isclose(conductances(some), siemens)
        chance(np.isclose(found, siemens)[gone], 1 - math.exp(-1))
        kept = ~np.isclose(found, siemens)
        close(found[kept], conductances(some)[kept])


@effect("failures.retention.lifetime")
def _lifetime() -> None:
    short, long = lost("failures.retention.lifetime", 1000.0, 3000.0, {}, 1000.0)
    chance(short, 1 - math.exp(-1))
    chance(long, 1 - math.exp(-1 / 3))
    assert not (long & ~short).any()


@effect("failures.retention.shape")
def _shape() -> None:
    """Half way through a lifetime few are lost where wear out rules, and many where children die."""
    early, late = lost("failures.retention.shape", 0.5, 3.0, {}, 500.0)
    chance(early, 1 - math.exp(-(0.5**0.5)))
    chance(late, 1 - math.exp(-(0.5**3)))
    assert not (late & ~early).any()


@effect("failures.retention.activation_energy")
def _activation_energy() -> None:
    """Time runs faster above 25 degrees, and as it does at 25."""
    cold, hot = lost("failures.retention.activation_energy", 0.0, 0.5, {"device.temperature": 50}, 100.0)
    factor = math.exp(0.5 / 8.617333262e-5 * (1 / 298.15 - 1 / 323.15))
    chance(cold, 1 - math.exp(-0.1))
    chance(hot, 1 - math.exp(-0.1 * factor))
    one, other = lost("failures.retention.activation_energy", 0.0, 0.5, {}, 100.0)
    np.testing.assert_array_equal(one, other)


def gated(program: TileProgram) -> TileProgram:
    """Mapped around the failed devices of chip 1, with a third of its devices gated off."""
    mapped = mapped_for(program, Chip.sample(program.spec, program.arrays, 1))
    return with_gated(mapped, 0.3, np.random.default_rng(0))


def _register_isolatable(state: str) -> None:
    @effect(f"failures.{state}.isolatable")
    def _isolatable() -> None:
        """A failed device can be gated off, or conducts in spite of it, and no program may count on its gate."""
        fixed = {
            f"failures.{state}.rate": 0.2,
            f"failures.{state}.conductance": LOST,
            "failures.allow_unbounded": True,
            "array.cell": "2T2R",
            **LARGE,
        }
        good, bad = pair(f"failures.{state}.isolatable", True, False, fixed, SQUARE)
        program = gated(good)
        check_program(program)
        counting = on_spec(program, bad.spec)
        counting = replace(counting, tables=counting.tables.model_copy(update={"spec_sha256": bad.spec.sha256}))
        with pytest.raises(ProgramError, match=f"must not gate off {state} devices"):
            check_program(counting)
        off, states = (sides_of(program, found) for found in (program.gated, program.failed_states))
        both = off & (states == State[state.upper()])
        assert both.any()
        held, loose = devices(program_chip(program)), devices(program_chip(counting))
        assert not held[off].any()
        np.testing.assert_array_equal(loose[both], LOST)
        np.testing.assert_array_equal(held[~both], loose[~both])


for _state_name in ("unformed", "overformed", "stuck_hrs", "stuck_lrs"):
    _register_isolatable(_state_name)


def sides_of(program: TileProgram, of: Callable[[str], tuple[npt.NDArray[Any], ...]]) -> npt.NDArray[Any]:
    """What a method of a program says of its tiles' devices, ordered as `conductances`."""
    found = [side for tile in program.tables.tiles for side in of(tile.name)]
    return np.concatenate([side.ravel() for side in found])


@effect("failures.isolation")
def _isolation() -> None:
    """With none nothing may be gated off; a line's gate takes its devices along, and no single one may be."""
    fixed: Fields = {"failures.stuck_hrs.rate": 0.05}
    none, line = pair("failures.isolation", "none", "line", fixed)
    program = gated(line)
    check_program(program)
    counting = on_spec(program, none.spec)
    counting = replace(counting, tables=counting.tables.model_copy(update={"spec_sha256": none.spec.sha256}))
    with pytest.raises(ProgramError, match="must not gate"):
        check_program(counting)
    _, own = pair("failures.isolation", None, "device", {**fixed, "array.cell": "2T2R"})
    single = gated(own)
    check_program(single)
    by_line = on_spec(single, line.spec)
    by_line = replace(by_line, tables=by_line.tables.model_copy(update={"spec_sha256": line.spec.sha256}))
    with pytest.raises(ProgramError, match="must gate off all devices of a word line"):
        check_program(by_line)


@effect("periphery.residue")
def _residue() -> None:
    """A program may hold so many weights in digital memory; those add their exact products."""
    none, some = pair("periphery.residue", 0.0, 0.25, {"periphery.dac_bits": None, "periphery.adc_bits": None}, SMALL)
    program = with_residue(some, 0.25, np.random.default_rng(0))
    check_program(program)
    index, values = program.residue("layer")
    assert len(index) == 16
    x = 0.4 * SMALL.inputs(1, batch=5)
    matrix = np.zeros(64)
    matrix[index] = values
    close(outputs(program, x) - outputs(some, x), x.astype(np.float64) @ matrix.reshape(8, 8), 1e-5)
    beyond = on_spec(program, none.spec)
    beyond = replace(beyond, tables=beyond.tables.model_copy(update={"spec_sha256": none.spec.sha256}))
    with pytest.raises(ProgramError, match=r"must hold at most 0 weights \(periphery.residue\)"):
        check_program(beyond)
