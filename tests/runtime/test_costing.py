"""Costs: published figures, sums, energy of reads by brute force, and both modes of running."""

from pathlib import Path

import numpy as np
import pytest
from small_programs import compile_small, matmul, small_spec

import xbarc
from runtime.costing import COMPONENTS, CostReport, adc_bits_needed, cost, peak
from runtime.program import TileProgram
from runtime.quantize import input_codes

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"


@pytest.fixture(scope="module")
def digits() -> TileProgram:
    return xbarc.compile(DIGITS, spec="rram-128")


@pytest.fixture(scope="module")
def report(digits: TileProgram) -> CostReport:
    return cost(digits)


def test_peak_of_isaac() -> None:
    """ISAAC-CE (``physics.md`` section 7): 41 288 GOPS, 627.5 GOPS/W, 483.5 GOPS/mm2, ADC 58.2 % of tile power."""
    found = peak(xbarc.HardwareSpec.preset("isaac"))
    assert found.arrays == 16128
    assert found.ops / 1e9 == pytest.approx(41288, rel=0.005)
    assert found.ops / 1e9 / found.power == pytest.approx(627.5, rel=0.005)
    assert found.ops / 1e9 / (found.area * 1e6) == pytest.approx(483.5, rel=0.005)
    assert found.tile_power["adc"] / sum(found.tile_power.values()) == pytest.approx(0.582, rel=0.005)
    assert sum(found.tile_power.values()) == pytest.approx(0.330, rel=0.005)
    assert found.power == pytest.approx(65.8, rel=0.005)
    assert found.area == pytest.approx(85.4e-6, rel=0.005)


@pytest.mark.parametrize(
    ("bits", "tops", "per_watt", "bound"),
    [(3, 2.122, 43.08, 0.001), (6, 0.744, 15.95, 0.001), (4, 1.793, 40.33, 0.2), (5, 1.165, 23.09, 0.2)],
)
def test_neurram_fitted_on_two_points_predicts_two(bits: int, tops: float, per_watt: float, bound: float) -> None:
    """Constants of ``wan2022`` are fitted at 3 and 6 output bits; 4 and 5 are predictions."""
    spec = xbarc.HardwareSpec.preset("wan2022").with_fields({"periphery.adc_bits": bits})
    found = peak(spec)
    assert found.ops / 1e12 == pytest.approx(tops, rel=bound)
    assert found.ops / 1e12 / found.power == pytest.approx(per_watt, rel=bound)
    assert "fitted" in spec.sources["costs.adc"]


def test_totals_are_sums_of_parts(report: CostReport) -> None:
    assert set(report.energy) == set(COMPONENTS)
    for name in ("array", "dac", "adc", "sample_hold", "shift_add"):
        assert report.energy[name] == pytest.approx(sum(layer.energy[name] for layer in report.layers), rel=1e-12)
    assert report.pipelined.energy == pytest.approx(sum(report.energy.values()), rel=1e-12)
    assert report.pipelined.power * report.pipelined.interval == pytest.approx(report.pipelined.energy)
    assert report.pipelined.tops * 1e12 * report.pipelined.interval == pytest.approx(2 * report.macs)
    assert report.macs == sum(layer.macs for layer in xbarc.compile(DIGITS, spec="rram-128").report.layers)
    assert report.total_area == pytest.approx(sum(report.area.values()))


def test_a_pipeline_is_never_slower(report: CostReport) -> None:
    assert report.pipelined.interval <= report.layer_by_layer.interval
    assert report.pipelined.latency <= report.layer_by_layer.latency * (1 + 1e-12)
    assert report.layer_by_layer.fill == 0


def test_conversions_follow_the_formula(digits: TileProgram, report: CostReport) -> None:
    """``phases V digits ceil(K/R) N slices``, pairs subtracted before their conversion."""
    spec = digits.spec
    for found, layer in zip(report.layers, digits.report.layers, strict=True):
        signed = digits.layers[layer.name].signed
        blocks = -(-layer.rows // spec.array.weight_rows)
        assert found.conversions == layer.windows * spec.periphery.digits(signed) * blocks * layer.cols * layer.groups


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"])
@pytest.mark.parametrize("coding", ["pulse_width", "amplitude"])
def test_energy_of_reads_by_brute_force(pairing: str, coding: str) -> None:
    fields = {"array.pairing": pairing, "periphery.input_coding": coding, "array.unused": 0.0}
    program = compile_small(matmul(6, 3, seed=1), small_spec().with_fields(fields))
    spec, (layer,) = program.spec, program.tables.layers
    vectors = program.calibration["layer/vectors"].astype(np.float64)
    top = spec.periphery.input_code_max(layer.signed)
    assert top is not None
    shares = np.abs(input_codes(vectors, layer.full_scale, top, layer.signed)) / top
    total = 0.0
    for vector in shares:
        for tile in program.tables.tiles:
            tensors, start = program.tile_tensors[tile.name], program.tile_starts[tile.name]
            plus, minus = program.target_conductances(tile.name)
            conductance = plus + (0 if pairing == "reference" else minus)
            for element in range(tile.rows):
                share = vector[start + element]
                drive = spec.periphery.v_read**2 * (share if coding == "pulse_width" else share**2)
                total += drive * spec.costs.t_read * conductance[tensors.row_map[element]].sum()
    assert cost(program).energy["array"] == pytest.approx(total / len(shares))


def test_cells_that_no_tile_uses_draw_current_on_driven_lines() -> None:
    one, other = (
        cost(compile_small(matmul(6, 3, seed=1), small_spec().with_fields({"array.unused": unused})))
        for unused in (0.0, 50e-6)
    )
    assert other.energy["array"] > one.energy["array"]


def test_an_ideal_adc_is_left_out_by_name() -> None:
    report = cost(compile_small(matmul(6, 3, seed=1), small_spec().with_fields({"periphery.adc_bits": None})))
    assert report.energy["adc"] == report.energy["shift_add"] == report.area["adc"] == 0
    assert any("ADC is ideal" in reason for reason in report.excluded)


def test_bits_that_tell_every_sum_apart() -> None:
    """ISAAC: 128 rows, 2-bit cells, 1-bit inputs make sums to 384: 9 bits and a sign."""
    spec = xbarc.HardwareSpec.preset("isaac")
    assert adc_bits_needed(spec, 128, signed=False) == 10
    assert adc_bits_needed(spec, 1, signed=False) == 3
    assert (
        adc_bits_needed(spec.with_fields({"periphery.dac_bits": None, "periphery.input_bits": None}), 128, signed=False)
        is None
    )
