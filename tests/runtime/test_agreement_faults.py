"""Reference and engine compute the same on programs that were mapped around failed devices."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from agreement import Float64, assert_agree, in_float64, run_engine, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from mapped_programs import FAILED, mapped_for, replicated, with_gated, with_residue, with_spare_lines
from small_programs import SmallModel, compile_small, map_small, mapped_specs, matmul, place_and_emit, small_models

from hwspec.chip import Chip
from hwspec.spec import HardwareSpec
from runtime.check import check_program
from runtime.program import TileProgram
from runtime.programming import program_chip

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def faulty_specs(draw: st.DrawFn) -> HardwareSpec:
    """Every way in which weights become devices, with failed ones, gates, wires, spread and noise."""
    spec = draw(mapped_specs())
    cell = "1T1R" if spec.array.pairing == "reference" else draw(st.sampled_from(["1T1R", "2T2R"]))
    more: dict[str, object] = {
        "array.cell": cell,
        "array.r_word": draw(st.sampled_from([0.0, 2.0])),
        "array.unused": draw(st.sampled_from([0.0, 2e-6])),
        "array.unselected": draw(st.sampled_from(["grounded", "third"])),
        "device.spread.model": "constant",
        "device.spread.sigma": 1e-6,
        "device.telegraph.amplitude": draw(st.sampled_from([0.0, 0.1])),
        "device.r_access": draw(st.sampled_from([0.0, 2e3])),
        "device.programming.pulses": 3,
        "device.programming.tolerance": 1e-6,
        "periphery.trim.gain": draw(st.sampled_from(["none", "column"])),
        "periphery.trim.vectors": 8,
    }
    return spec.with_fields({**FAILED, **more})


def mapped(program: TileProgram, seed: int, *, replicas: int, gated: bool, residue: bool) -> TileProgram:
    """The program with everything that mapping around failed devices may add."""
    generator = np.random.default_rng(seed)
    if replicas > 1:
        program = replicated(program, replicas, generator)
    program = with_spare_lines(program, generator)
    program = mapped_for(program, Chip.sample(program.spec, program.arrays + 1, seed))
    if gated:
        program = with_gated(program, 0.2, generator)
    if residue:
        program = with_residue(program, 0.3, generator)
    check_program(program)
    return program


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    small_models(), faulty_specs(), SEEDS, st.integers(1, 3), st.booleans(), st.booleans(), st.sampled_from([0.0, 1e3])
)
def test_engine_agrees_however_a_program_was_mapped(
    model: SmallModel, spec: HardwareSpec, seed: int, replicas: int, gated: bool, residue: bool, seconds: float
) -> None:
    """On the chip that it was mapped for, and on the one that it expects."""
    gated = gated and spec.array.cell == "2T2R"
    compiled = place_and_emit(map_small(model, spec, "quantize"), np.random.default_rng(seed))
    program = mapped(in_float64(compiled), seed, replicas=replicas, gated=gated, residue=residue)
    chip = program_chip(program, Chip.sample(spec, program.arrays, seed), seed=seed, seconds=seconds)
    x = model.inputs(seed)
    assert_agree(chip, x)
    assert_agree(program_chip(program), x)


IDEAL: Mapping[str, object] = {
    "device.spread.model": "none",
    "device.spread.sigma": 0.0,
    "device.read_noise.model": "none",
    "device.read_noise.share": 0.0,
    "periphery.dac_bits": None,
    "periphery.adc_bits": None,
    "periphery.gain_sigma": 0.0,
    "periphery.offset_sigma": 0.0,
    "periphery.subtract": "before",
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_models(), mapped_specs(), SEEDS, st.integers(1, 3), st.booleans())
def test_the_nominal_chip_computes_with_the_decoded_weights(
    model: SmallModel, spec: HardwareSpec, seed: int, replicas: int, gated: bool
) -> None:
    """Failed and gated devices, replicas and residue included: where nothing is rounded, results are exact."""
    more: dict[str, object] = {
        "periphery.dac_bits": None,
        "periphery.input_bits": None,
        "periphery.signed": "bipolar",
        "array.cell": "1T1R" if spec.array.pairing == "reference" else "2T2R",
    }
    spec = spec.with_fields({**IDEAL, **FAILED, **more})
    compiled = place_and_emit(map_small(model, spec, "quantize"), np.random.default_rng(seed))
    program = mapped(
        in_float64(compiled), seed, replicas=replicas, gated=gated and spec.array.cell == "2T2R", residue=True
    )
    chip, x = program_chip(program), model.inputs(seed)
    wanted = program_chip(
        # Exact layers compute with the float weights: put the decoded ones in their place.
        replace(program, weights={"layer": program.decoded_weights("layer")}),
        exact_layers=["layer"],
    )
    assert_close(run_reference(chip, x)[0][0], run_reference(wanted, x)[0][0])


def assert_close(found: Float64, wanted: Float64) -> None:
    scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns"])
def test_engine_agrees_where_word_lines_are_gated_off(pairing: str) -> None:
    spec = HardwareSpec.preset("rram-128").with_fields(
        {
            **FAILED,
            "array.rows": 8,
            "array.cols": 8,
            "array.pairing": pairing,
            "failures.isolation": "line",
            "failures.overformed.isolatable": True,
        }
    )
    model = matmul(10, 3, seed=4)
    program = in_float64(compile_small(model, spec))
    program = with_gated(mapped_for(program, Chip.sample(spec, program.arrays, 7)), 0.4, np.random.default_rng(0))
    check_program(program)
    assert_agree(program_chip(program, Chip.sample(spec, program.arrays, 7)), model.inputs(1))


def test_replicas_average_their_results() -> None:
    """On equal ideal arrays they give what one gives."""
    spec = HardwareSpec.preset("ideal").with_fields({"array.rows": 8, "array.cols": 8})
    model = matmul(12, 9)
    program = in_float64(compile_small(model, spec))
    several = replicated(program, 3, np.random.default_rng(0))
    check_program(several)
    x = model.inputs(3)
    for run in (run_reference, lambda chip, x: run_engine(chip, x, torch.float64, blocks=True)):
        found, wanted = (run(program_chip(one), x)[0][0] for one in (several, program))
        assert_close(found, wanted)
    np.testing.assert_allclose(several.decoded_weights("layer"), program.decoded_weights("layer"), rtol=1e-12)
    for tile in several.tables.tiles:
        assert several.part_weight(tile.name) == pytest.approx(program.part_weight(tile.name.split("r")[0]) / 3)
