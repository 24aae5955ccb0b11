"""The controller's trim: digital gains and offsets that undo what known vectors show."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from agreement import in_float64
from chips import chip_of, program_of

from hwspec.effects import EFFECTS
from runtime.engine import Engine
from runtime.program import TileProgram
from runtime.programming import ProgrammedChip, program_chip
from runtime.reference import Reference

Float64 = npt.NDArray[np.float64]
WEIGHT = np.random.default_rng(0).uniform(-1, 1, (16, 12))
X = np.random.default_rng(1).uniform(-1, 1, (200, 16)).astype(np.float32)
"""Inputs that neither the DAC nor the ADC clips."""
GAINS: Mapping[str, object] = {"periphery.gain_sigma": 0.1}
OFFSETS: Mapping[str, object] = {
    "periphery.gain_sigma": 0.05,
    "periphery.adc_bits": 10,
    "periphery.offset_sigma": 20.0,
    "periphery.sense_offset_sigma": 3e-3,
}
DRIFT: Mapping[str, object] = {
    "device.g_min": 0.1e-6,
    "device.g_max": 25e-6,
    "device.drift": {"model": "pcm"},
}
DAY = 86400.0


def trimmed(
    fields: Mapping[str, object], gain: str = "none", offset: bool = False, when: str = "programming", vectors: int = 64
) -> TileProgram:
    trim = {"gain": gain, "offset": offset, "when": when, "vectors": vectors}
    return in_float64(program_of(WEIGHT, {**fields, "periphery.trim": trim}))


def only(chip: ProgrammedChip) -> tuple[Float64, Float64]:
    """Gains and offsets of the one tile."""
    (tile,) = chip.tiles.values()
    return tile.gain, tile.offset


def error(chip: ProgrammedChip) -> float:
    """Relative error of the results on inputs that trim has not seen."""
    wanted = X.astype(np.float64) @ chip.program.decoded_weights("layer")[0]
    found = Reference(chip)(X)[0]
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def told(chip: ProgrammedChip) -> tuple[float, float]:
    """Errors before and after, as reported."""
    assert chip.report.trim is not None
    return chip.report.trim["layer"]


def test_a_column_s_gain_is_undone() -> None:
    """Without rounding and noise exactly: the trim's gain is the inverse of the readout's."""
    chip = chip_of(trimmed(GAINS, "column"), 3)
    (tile,) = chip.tiles.values()
    np.testing.assert_allclose(tile.gain * (1 + tile.channels[0].errors.gain), 1, rtol=1e-9)
    before, after = told(chip)
    assert before == pytest.approx(0.1, rel=0.6)
    assert after < 1e-9
    assert error(chip) < 1e-6 < 0.03 < error(chip_of(trimmed(GAINS), 3))
    assert not tile.offset.any()


def test_offsets_are_undone() -> None:
    """What is left is that of rounding, on the known vectors and on others."""
    plain = error(chip_of(trimmed(OFFSETS), 3))
    chip = chip_of(trimmed(OFFSETS, "column", True), 3)
    before, after = told(chip)
    assert before == pytest.approx(plain, rel=0.5)
    assert after < before / 10
    assert error(chip) < plain / 10
    gain_only = chip_of(trimmed(OFFSETS, "column"), 3)
    assert error(chip) < error(gain_only) / 3


def test_an_offset_alone_keeps_the_gains() -> None:
    chip = chip_of(trimmed({"periphery.sense_offset_sigma": 3e-3}, "none", True), 3)
    gain, offset = only(chip)
    np.testing.assert_array_equal(gain, 1)
    (tile,) = chip.tiles.values()
    assert tile.channels[0].static is not None
    np.testing.assert_allclose(offset, -tile.channels[0].static, rtol=1e-9)
    assert error(chip) < 1e-6


@pytest.mark.parametrize("signed", ["bipolar", "two_phase"])
@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_rows", "reference"])
def test_trim_serves_every_way_of_reading(pairing: str, signed: str) -> None:
    """Two conversions of one vector, with the readout's offset in each; digits; subtraction after the conversion.

    Not both phases and subtraction after: currents then have one sign, and an offset below zero is clipped away.
    """
    subtract = "before" if pairing == "neighbouring_rows" or signed == "two_phase" else "after"
    size = {"array.pairing": pairing, "array.rows": 32, "periphery.subtract": subtract, "periphery.signed": signed}
    digits = {"periphery.dac_bits": 4, "periphery.input_bits": 8}
    both = {**OFFSETS, **size, **digits, "periphery.adc_bits": 10}
    trim = {"gain": "column", "offset": True, "vectors": 64}
    plain, chip = (
        chip_of(in_float64(program_of(WEIGHT, {**both, **more})), 3) for more in ({}, {"periphery.trim": trim})
    )
    before, after = told(chip)
    assert after < before / 4
    assert error(chip) < error(plain) / 4
    found = Engine(chip, dtype=torch.float64)(X)[0]
    wanted = Reference(chip)(X)[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


def test_a_tile_s_gain_is_one_for_all_columns() -> None:
    """It undoes what columns have in common, such as drift, and leaves what sets them apart."""
    tile, column = (chip_of(trimmed(GAINS, gain), 3) for gain in ("tile", "column"))
    gain, _ = only(tile)
    assert len(np.unique(gain)) == 1
    assert len(np.unique(only(column)[0])) == 12
    assert told(tile)[1] > 10 * told(column)[1]
    common = chip_of(trimmed(DRIFT, "tile", when="read"), 3, effects=["drift", "trim"], seconds=DAY)
    assert told(common)[1] < told(common)[0] / 3


def test_a_column_without_signal_keeps_its_gain() -> None:
    """Rounding alone would give it any gain; without converters it would divide zero by zero."""
    weight = WEIGHT.copy()
    weight[:, 3] = 0
    weight[:, 5] = 0
    trim = {"gain": "column", "offset": True, "vectors": 64}
    ideal = chip_of(program_of(weight, {**GAINS, "periphery.trim": trim}), 3)
    np.testing.assert_array_equal(only(ideal)[0][[3, 5]], 1)
    rounded = {**OFFSETS, "periphery.adc_bits": 6, "periphery.offset_sigma": 1.0}
    gain, offset = only(chip_of(program_of(weight, {**rounded, "periphery.trim": trim}), 3))
    np.testing.assert_allclose(gain[[3, 5]], 1, rtol=1e-12)
    np.testing.assert_allclose(np.delete(gain, [3, 5]), 1, atol=0.25)
    assert np.isfinite(offset).all()
    noise = {"periphery.readout_noise": 0.3}
    gain, _ = only(chip_of(program_of(weight, {**rounded, **noise, "periphery.trim": trim}), 3))
    assert (gain > 0).all()
    assert (gain[[3, 5]] <= 1).all()


def test_a_trim_at_the_time_of_reads_undoes_mean_drift() -> None:
    """One of programming time does not: it was measured before the devices moved."""
    early, late = (
        chip_of(trimmed(DRIFT, "column", when=when), 3, effects=["drift", "trim"], seconds=DAY)
        for when in ("programming", "read")
    )
    plain = chip_of(trimmed(DRIFT), 3, effects=["drift"], seconds=DAY)
    np.testing.assert_allclose(only(early)[0], 1, rtol=1e-9)
    assert only(late)[0].mean() == pytest.approx((DAY / 20) ** 0.055, rel=0.15)
    assert error(early) == pytest.approx(error(plain), rel=1e-6)
    assert error(late) < error(plain) / 3
    assert told(late)[0] == pytest.approx(error(plain), rel=0.3)
    assert told(early)[0] < 1e-6


def test_trim_measures_what_programming_left_even_when_reads_are_later() -> None:
    """Gains from the time of programming are those of a chip that is read at once."""
    fields = {**DRIFT, **GAINS, "device.spread": {"model": "pcm"}}
    program = trimmed(fields, "column", True)
    at_once, later = chip_of(program, 3), chip_of(program, 3, seconds=DAY)
    for found, wanted in zip(only(later), only(at_once), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_effects_without_trim_leave_the_chip_as_it_is() -> None:
    program = trimmed(GAINS, "column", True)
    bare = chip_of(program, 3, effects=sorted(set(EFFECTS) - {"trim"}))
    gain, offset = only(bare)
    np.testing.assert_array_equal(gain, 1)
    np.testing.assert_array_equal(offset, 0)
    assert bare.report.trim is None
    without = replace(program, tables=trimmed(GAINS).tables)
    np.testing.assert_array_equal(Reference(bare)(X)[0], Reference(chip_of(without, 3))(X)[0])


def test_an_ideal_chip_has_nothing_to_trim() -> None:
    chip = program_chip(trimmed(GAINS, "column", True))
    np.testing.assert_allclose(only(chip)[0], 1, rtol=1e-9)
    np.testing.assert_allclose(only(chip)[1], 0, atol=1e-15)
    assert told(chip)[1] < 1e-9


def test_exact_layers_are_not_trimmed() -> None:
    program = trimmed(GAINS, "column", True)
    chip = program_chip(program, exact_layers=["layer"])
    np.testing.assert_array_equal(only(chip)[0], 1)
    assert not chip.report.trim


def test_more_vectors_trim_better() -> None:
    """On inputs that trim has not seen, where each known vector is read with noise."""
    fields = {**GAINS, "device.read_noise": {"model": "proportional", "share": 0.05}}
    errors = []
    for vectors in (3, 256):
        program = trimmed(fields, "column", vectors=vectors)
        found = [chip_of(program, seed) for seed in range(8)]
        left = [only(chip)[0] * (1 + next(iter(chip.tiles.values())).channels[0].errors.gain) - 1 for chip in found]
        errors.append(float(np.std(left)))
    assert errors[1] < errors[0] / 2


def test_a_trim_of_one_seed_is_the_same_again() -> None:
    fields = {**GAINS, "device.read_noise": {"model": "proportional", "share": 0.1}}
    program = trimmed(fields, "column", True)
    first, again = (only(chip_of(program, 3, simulate=1)) for _ in range(2))
    other = only(chip_of(program, 3, simulate=2))
    for number in range(2):
        np.testing.assert_array_equal(first[number], again[number])
        assert (first[number] != other[number]).all()
