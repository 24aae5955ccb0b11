"""The devices of weights around failures: no step raises an error, and what is predicted is what programs hold."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from faulty_programs import chip_for, column_costs, compile_for, faulty_specs
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import SmallModel, compile_small, matmul, one_node, small_models, small_spec

import xbarc
from compiler.assignment import Held, closed_form, compensated, joined, split, values
from compiler.compile import CompileOptions, run_compile
from compiler.frontend import load_model
from compiler.mapping import Mapping
from compiler.packing import pack
from compiler.passes.assign import Assign, worst_weights
from compiler.passes.place import Place, column_signs
from compiler.steps import ALL
from compiler.strips import layer_strips, takes_bias
from hwspec.chip import Chip
from hwspec.failures import State
from hwspec.fault_map import FaultMap
from hwspec.spec import HardwareSpec
from runtime.pairs import PairRules, site_pairs
from runtime.pairs_numba import OFF
from runtime.programming import program_chip
from runtime.reference import Reference

Float64 = npt.NDArray[np.float64]
NONE = frozenset[str]()
FAULTY = {"failures.stuck_hrs.rate": 0.08, "failures.stuck_lrs.rate": 0.08}


def quantized_for(model: SmallModel, spec: HardwareSpec, chip: Chip, replicas: int) -> Mapping:
    """The mapping for a chip, before it is placed."""
    options = CompileOptions(replicas=replicas)
    return run_compile(load_model(model.proto), spec, options, None, chip, stop_after="quantize").mapping


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_models(), faulty_specs(), st.integers(1, 2), st.sampled_from([NONE, ALL]))
def test_a_map_without_failed_devices_changes_no_target(
    model: SmallModel, spec: HardwareSpec, replicas: int, steps: frozenset[str]
) -> None:
    """What failures are mapped around with gives, where there are none, what is given when nobody asks."""
    options = CompileOptions(replicas=replicas, robust=False, predistort=False)
    wanted, program = compile_for(model, spec, None, options)
    chip = Chip.ideal(spec, program.arrays + 2)
    mapping = replace(
        quantized_for(model, spec, chip, replicas), faults=FaultMap(np.zeros(chip.shape, np.uint8), np.zeros(0))
    )
    found = Assign(steps).run(Place(steps=steps).run(mapping))
    for one, other in zip(found.targets["layer"], wanted.targets["layer"], strict=True):
        for side in ("plus", "minus"):
            assert getattr(one, side).dtype == getattr(other, side).dtype
            np.testing.assert_allclose(getattr(one, side), getattr(other, side), rtol=1e-12)
    for place, before in zip(found.placements["layer"], wanted.placements["layer"], strict=True):
        assert place.array == before.array
        for name in ("row_map", "col_order", "col_sign"):
            np.testing.assert_array_equal(getattr(place, name), getattr(before, name))
    assert not found.bias_shifts["layer"].any()
    assert not found.residues
    report = found.failures["layer"]
    assert (report.failed, report.failed_pairs, report.absorbed, report.gated, report.residue) == (0, 0, 0, 0, 0)


def held_in_order(mapping: Mapping) -> list[tuple[Held, Float64]]:
    """What each column block of a mapping holds in order, and the weighting of its errors."""
    assert mapping.faults is not None
    layer, spec, faults = mapping.layers[0], mapping.spec, mapping.faults
    places = pack([block.shape for block in mapping.grids["layer"].blocks], spec.array, share=True, spares=False)
    arrays = [place.site * spec.array.arrays_per_site for place in places]
    strips = layer_strips(mapping, layer, places, arrays, column_signs(mapping, layer), centred=True)
    rules = PairRules.of(spec, mapping.replicas)
    return [
        (held, strip.weighting)
        for strip in strips
        for held in strip.held(lambda number: site_pairs(spec, faults, number), rules)
    ]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(small_models(), faulty_specs(), st.integers(0, 2**32 - 1), st.integers(1, 2))
def test_no_step_raises_the_error_of_a_column(model: SmallModel, spec: HardwareSpec, seed: int, replicas: int) -> None:
    """Neither the closed form nor compensation; columns of good devices and weights in digital memory stay."""
    options = CompileOptions(replicas=replicas, robust=False)
    chip = chip_for(compile_for(model, spec, None, options)[1], seed)
    if chip.faults is None:
        return
    rules = PairRules.of(spec, replicas)
    for held, weighting in held_in_order(quantized_for(model, spec, chip, replicas)):
        fitted = closed_form(held, weighting, rules)
        moved = compensated(fitted, weighting, rules)
        errors = [one.error(weighting) for one in (held, fitted, moved)]
        assert (errors[1] <= errors[0] * (1 + 1e-9) + 1e-12).all()
        assert (errors[2] <= errors[1] * (1 + 1e-9) + 1e-12).all()
        good = ~held.failed.any(1)
        for one in (fitted, moved):
            np.testing.assert_array_equal(one.devices[good], held.devices[good])
            np.testing.assert_allclose(one.value, values(one, rules), atol=1e-9)
            allowed = np.stack((one.gate & 1 > 0, one.gate & 2 > 0), -1)
            assert not ((one.devices == OFF) & ~allowed).any()
        pinned = held.failed & (np.random.default_rng(seed).random(held.failed.shape) < 0.5)
        kept = compensated(fitted, weighting, rules, pinned=pinned)
        np.testing.assert_array_equal(kept.devices[pinned], fitted.devices[pinned])
        exact = [replace(one, value=np.where(pinned, one.target, one.value)) for one in (fitted, kept)]
        assert (exact[1].error(weighting) <= exact[0].error(weighting) * (1 + 1e-9) + 1e-12).all()
        both = split(joined([fitted, moved]), [fitted, moved])
        for one, other in zip(both, (fitted, moved), strict=True):
            np.testing.assert_array_equal(one.value, other.value)
            np.testing.assert_array_equal(one.devices, other.devices)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    small_models(),
    faulty_specs(),
    st.integers(0, 2**32 - 1),
    st.integers(1, 2),
    st.sampled_from([NONE, frozenset({"pair"}), frozenset({"compensation"}), ALL - {"bias"}, ALL]),
)
def test_predicted_errors_are_those_of_the_program(
    model: SmallModel, spec: HardwareSpec, seed: int, replicas: int, steps: frozenset[str]
) -> None:
    """Of weights and of outputs, from what its devices conduct; and the report counts its failed devices."""
    whole = compile_for(model, spec, None, CompileOptions(replicas=replicas, robust=False))[1]
    mapping, program = compile_for(
        model, spec, chip_for(whole, seed, 1), CompileOptions(replicas=replicas, steps=steps, predistort=False)
    )
    if program.faults is None:
        return
    told = mapping.step_errors["layer"]
    step, (weights, outputs) = list(told.sums.items())[-1]
    if mapping.gated and step not in ("bias", "compensation", "residue"):  # gated off after orders are chosen
        return
    layer = mapping.layers[0]
    centred = "bias" in steps and takes_bias(layer)
    error = program.decoded_weights("layer") - program.weights["layer"].astype(np.float64)
    scale = float((program.weights["layer"].astype(np.float64) ** 2).sum())
    assert weights == pytest.approx(float((error**2).sum()), rel=1e-5, abs=1e-10 * scale)
    direct = float(column_costs(program, "layer", centred=centred).sum())
    assert outputs == pytest.approx(direct, rel=1e-5, abs=1e-9 * told.outputs)
    report = mapping.failures["layer"]
    states = [np.stack(program.failed_states(tile.name)) for tile in program.tables.tiles]
    assert report.failed == sum(int((one != State.OK).sum()) for one in states)
    assert report.failed_pairs == sum(int((one != State.OK).any(0).sum()) for one in states)
    assert report.gated == sum(int(np.stack(program.gated(tile.name)).sum()) for tile in program.tables.tiles)
    assert report.steps[-1].step == step
    assert report.steps[-1].output_error == pytest.approx((max(outputs, 0) / (told.outputs or 1.0)) ** 0.5)
    _, residue = program.residue("layer")
    assert report.residue == len(residue) <= np.ceil(spec.periphery.residue * program.weights["layer"].size)


@pytest.mark.parametrize("op", ["Gemm", "Conv"])
@pytest.mark.parametrize("residue", [0.0, 0.02])
def test_the_digital_bias_takes_the_mean_error_up(op: str, residue: float) -> None:
    """Over the calibration data the mean of each output is the model's, however much its devices are off."""
    generator = np.random.default_rng(0)
    ideal = {"periphery.dac_bits": None, "periphery.adc_bits": None, "device.levels": None}
    size = {"array.rows": 32, "array.cols": 32, "periphery.residue": residue}
    spec = small_spec({**FAULTY, **ideal, **size})
    if op == "Gemm":
        model = one_node(op, generator.standard_normal((24, 10)), (24,), bias=generator.standard_normal(10))
    else:
        weight, bias = generator.standard_normal((10, 2, 3, 3)), generator.standard_normal(10)
        model = one_node(op, weight, (2, 6, 6), bias=bias)
    x = np.abs(model.inputs(5, batch=64))
    program = xbarc.compile(model.proto, spec=spec, calibration=x)
    chip = chip_for(program, 9, 1)
    mapped, without = (
        xbarc.compile(model.proto, spec=spec, calibration=x, chip=chip, options=CompileOptions(steps=steps))
        for steps in (frozenset({"pair", "bias", "residue"}), frozenset({"pair", "residue"}))
    )
    over = (0,) if op == "Gemm" else (0, 2, 3)
    wanted = Reference(program_chip(program))(x)[0].astype(np.float64)
    means = []
    for one in (mapped, without):
        found = Reference(program_chip(one, one.nominal_chip))(x)[0].astype(np.float64)
        means.append(np.abs((found - wanted).mean(over)).max() / wanted.std())
    assert means[0] < 1e-5
    assert means[1] > 1e-3


def test_digital_memory_holds_what_costs_most() -> None:
    """Of weights with failed devices only, no more than the budget, each worse than any that is left."""
    spec = small_spec({**FAULTY, "array.rows": 16, "array.cols": 16})
    model = matmul(16, 16)
    mapping = quantized_for(model, spec, chip_for(compile_small(model, spec), 3), 1)
    generator = np.random.default_rng(0)
    pieces = [(held, weighting, generator.random(16) + 0.5) for held, weighting in held_in_order(mapping)] * 2
    costs = np.stack(
        [
            held.failed * (held.value - held.target) ** 2 * np.diagonal(weighting) * scale[:, None] ** 2
            for held, weighting, scale in pieces
        ]
    )
    for budget in (0, 1, 7, 10_000):
        chosen = np.stack(worst_weights(pieces, budget))
        assert chosen.sum() == min(budget, (costs > 0).sum())
        assert not (chosen & ~np.stack([held.failed for held, _, _ in pieces])).any()
        assert costs[chosen].min(initial=np.inf) >= costs[~chosen].max()


def test_digital_memory_makes_weights_exact() -> None:
    """A budget for all weights with failed devices leaves no error of them at all."""
    model = matmul(16, 16)
    spec = small_spec({**FAULTY, "array.rows": 16, "array.cols": 16, "periphery.residue": 0.5})
    chip = chip_for(compile_small(model, spec), 3)
    _, program = compile_for(model, spec, chip)
    index, _ = program.residue("layer")
    error = (program.decoded_weights("layer") - program.weights["layer"]).ravel()
    assert len(index) > 40
    np.testing.assert_allclose(error[index], 0, atol=1e-6)
