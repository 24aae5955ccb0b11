"""The quantiser: idempotent, symmetric, monotone, and the same for numpy and torch."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_programs import small_spec

from hwspec.device import Device
from runtime.quantize import (
    WeightCode,
    input_codes,
    input_digit,
    level_conductances,
    off_target,
    output_codes,
    weight_codes,
)

Float64 = npt.NDArray[np.float64]
VALUES = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6))
SCALES = st.floats(1e-6, 1e6)
CODE_MAX = st.integers(1, 2**15)
UNIT = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1, 1))


@settings(max_examples=150, deadline=None)
@given(VALUES, SCALES, CODE_MAX, st.booleans())
def test_input_codes(x: Float64, full_scale: float, code_max: int, signed: bool) -> None:
    codes = input_codes(x, full_scale, code_max, signed)
    assert np.array_equal(codes, np.rint(codes))
    assert codes.max() <= code_max
    assert codes.min() >= (-code_max if signed else 0)
    lsb = full_scale / code_max
    inside = (np.abs(x) <= full_scale) & (signed | (x >= 0))
    assert (np.abs(codes * lsb - x) <= lsb * (0.5 + 1e-9))[inside].all()
    np.testing.assert_array_equal(input_codes(codes * lsb, full_scale, code_max, signed), codes)
    np.testing.assert_array_equal(input_codes(torch.from_numpy(x), full_scale, code_max, signed).numpy(), codes)
    order = np.argsort(x)
    assert (np.diff(codes[order]) >= 0).all()
    if signed:
        np.testing.assert_array_equal(input_codes(-x, full_scale, code_max, signed), -codes)


@settings(max_examples=50, deadline=None)
@given(VALUES, SCALES, st.booleans())
def test_an_ideal_dac_neither_rounds_nor_clips(x: Float64, full_scale: float, signed: bool) -> None:
    np.testing.assert_array_equal(input_codes(x, full_scale, None, signed), x / full_scale)


@settings(max_examples=150, deadline=None)
@given(VALUES, CODE_MAX)
def test_output_codes(lsbs: Float64, code_max: int) -> None:
    codes = output_codes(lsbs, -code_max, code_max)
    assert np.array_equal(codes, np.rint(codes))
    assert np.abs(codes).max() <= code_max
    inside = np.abs(lsbs) <= code_max
    assert (np.abs(codes - lsbs) <= 0.5)[inside].all()
    np.testing.assert_array_equal(output_codes(codes, -code_max, code_max), codes)
    np.testing.assert_array_equal(output_codes(-lsbs, -code_max, code_max), -codes)
    np.testing.assert_array_equal(output_codes(torch.from_numpy(lsbs), -code_max, code_max).numpy(), codes)
    assert (np.diff(codes[np.argsort(lsbs)]) >= 0).all()


def test_output_codes_from_zero_up() -> None:
    found = output_codes(np.array([-3.0, -0.4, 0.6, 14.6, 99.0]), 0, 15)
    np.testing.assert_array_equal(found, [0, 0, 1, 15, 15])


def test_ties_go_to_the_even_code() -> None:
    halves = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    np.testing.assert_array_equal(output_codes(halves, -7, 7), [-2, -2, 0, 0, 2, 2])
    np.testing.assert_array_equal(output_codes(torch.from_numpy(halves), -7, 7).numpy(), [-2, -2, 0, 0, 2, 2])


@settings(max_examples=150, deadline=None)
@given(UNIT, st.integers(2, 65536))
def test_weight_codes(w: Float64, levels: int) -> None:
    codes = weight_codes(w, levels)
    assert codes.dtype == np.int64
    assert np.abs(codes).max() <= levels - 1
    assert (np.abs(codes / (levels - 1) - w) <= 0.5 / (levels - 1) + 1e-12).all()
    np.testing.assert_array_equal(weight_codes(codes / (levels - 1), levels), codes)
    np.testing.assert_array_equal(weight_codes(-w, levels), -codes)
    assert (np.diff(codes[np.argsort(w)]) >= 0).all()


def device(levels: int | list[float] | None, g_min: float = 1e-6, g_max: float = 100e-6) -> Device:
    return Device.model_validate({"g_min": g_min, "g_max": g_max, "levels": levels})


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-9, 1e-5), st.floats(2e-5, 1e-3), st.integers(2, 65536))
def test_levels_are_uniform_between_the_ends(g_min: float, g_max: float, levels: int) -> None:
    table = level_conductances(device(levels, g_min, g_max))
    assert table is not None
    assert table.shape == (levels,)
    assert table[0] == g_min
    assert table[-1] == pytest.approx(g_max, rel=1e-15)
    np.testing.assert_allclose(np.diff(table), (g_max - g_min) / (levels - 1), rtol=1e-6)


def test_levels_may_be_listed_or_continuous() -> None:
    np.testing.assert_array_equal(level_conductances(device([1e-6, 7e-6, 100e-6])), [1e-6, 7e-6, 100e-6])
    assert level_conductances(device(None)) is None


@st.composite
def weight_codes_of_any_kind(draw: st.DrawFn) -> WeightCode:
    """Uniform levels in one or several slices, listed levels, continuous ones; pairs and single devices."""
    kind = draw(st.sampled_from(["uniform", "sliced", "listed", "continuous"]))
    single = draw(st.booleans())
    if kind == "continuous":
        return WeightCode(device(None), single=single)
    if kind == "listed":
        inner = sorted(draw(st.sets(st.integers(1, 98), max_size=6)))
        return WeightCode(device([1e-6, *((1 + share) * 1e-6 for share in inner), 100e-6]), single=single)
    slices = draw(st.integers(2, 4)) if kind == "sliced" else 1
    return WeightCode(device(draw(st.integers(2, 16 if slices > 1 else 300))), slices, single)


def reachable(code: WeightCode) -> Float64:
    """Every weight that the devices of a code can hold, from all combinations of their levels, rising."""
    table = level_conductances(code.device)
    assert table is not None
    share = (table - code.device.g_min) / code.device.span
    one = 2 * share - 1 if code.single else np.concatenate([-share[:0:-1], share])
    if code.slices == 1:
        return one
    base = len(table)
    digits = np.indices((base,) * code.slices).reshape(code.slices, -1)
    value = sum(digits[number] * base**number for number in range(code.slices)) / (base**code.slices - 1)
    return np.unique(2 * value - 1 if code.single else np.concatenate([-value, value]))


@settings(max_examples=150, deadline=None)
@given(weight_codes_of_any_kind(), UNIT)
def test_weights_are_rounded_to_the_nearest_that_devices_can_hold(code: WeightCode, w: Float64) -> None:
    found = code.round(w)
    np.testing.assert_allclose(code.round(found), found, rtol=0, atol=1e-12)
    half = code.half_gap(w)
    assert (np.abs(found - w) <= half + 1e-12).all()
    assert (np.diff(found[np.argsort(w)]) >= -1e-12).all()
    if code.device.levels is None:
        np.testing.assert_array_equal(found, w)
        assert not half.any()
    elif (code.device.level_count or 0) ** code.slices <= 4096:
        held = reachable(code)
        best = np.abs(w[:, None] - held).min(axis=1)
        np.testing.assert_allclose(np.abs(found - w), best, rtol=0, atol=1e-12)
        assert np.abs(found[:, None] - held).min(axis=1).max() <= 1e-12


@settings(max_examples=150, deadline=None)
@given(weight_codes_of_any_kind(), UNIT)
def test_slices_add_up_to_the_weight(code: WeightCode, w: Float64) -> None:
    """And each slice's difference is that of the conductances of its devices."""
    rounded, table = code.round(w), level_conductances(code.device)
    total = np.zeros_like(w)
    for number in range(code.slices):
        difference = code.differences(rounded, number)
        total += code.slice_weight(number) * difference
        plus, minus = code.devices(rounded, number)
        assert (np.abs(difference) <= 1).all()
        if table is None:
            g_plus, g_minus = plus, minus
            assert ((plus >= code.device.g_min * (1 - 1e-9)) & (plus <= code.device.g_max * (1 + 1e-9))).all()
        else:
            assert plus.dtype == minus.dtype == (np.uint8 if off_target(code.device) < 256 else np.uint16)
            assert max(plus.max(), minus.max()) < len(table)
            g_plus, g_minus = table[plus], table[minus]
        if code.single:
            assert not minus.any()
            middle, span = (code.device.g_min + code.device.g_max) / 2, code.device.span / 2
            np.testing.assert_allclose((g_plus - middle) / span, difference, rtol=0, atol=1e-9)
        else:
            np.testing.assert_allclose((g_plus - g_minus) / code.device.span, difference, rtol=0, atol=1e-9)
            low = code.device.g_min * (1 + 1e-9)
            assert ((g_plus <= low) | (g_minus <= low)).all()
    np.testing.assert_allclose(total, rounded, rtol=0, atol=1e-12)
    weights = [code.slice_weight(number) for number in range(code.slices)]
    assert sum(weights) == pytest.approx(1, rel=1e-12)
    assert weights == sorted(weights)


@settings(max_examples=50, deadline=None)
@given(weight_codes_of_any_kind(), UNIT)
def test_pairs_treat_both_signs_alike(code: WeightCode, w: Float64) -> None:
    if not code.single:
        np.testing.assert_array_equal(code.round(-w), -code.round(w))
        plus, minus = code.devices(code.round(w))
        turned = code.devices(code.round(-w))
        np.testing.assert_array_equal(turned[0], minus)
        np.testing.assert_array_equal(turned[1], plus)


def test_the_code_of_a_spec() -> None:
    spec = small_spec({"device.levels": 4, "array.slices": 3, "array.pairing": "reference"})
    assert WeightCode.of(spec) == WeightCode(spec.device, 3, True)
    pairs = WeightCode.of(small_spec())
    assert (pairs.slices, pairs.single) == (1, False)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(1, 40), elements=st.integers(-255, 255).map(float)), st.sampled_from([2, 4, 8])
)
def test_digits_of_inputs(codes: Float64, base: int) -> None:
    """Weighted by the powers of their base they give the code; each has the code's sign; torch agrees."""
    total = np.zeros_like(codes)
    for number in range(8):
        digit = input_digit(codes, base, number)
        assert (np.abs(digit) < base).all()
        assert (digit * codes >= 0).all()
        np.testing.assert_array_equal(input_digit(torch.from_numpy(codes), base, number).numpy(), digit)
        total += digit * float(base) ** number
    np.testing.assert_array_equal(total, codes)


def test_gradients_pass_through_an_ideal_dac() -> None:
    x = torch.tensor([0.5, -0.25], dtype=torch.float64, requires_grad=True)
    input_codes(x, 2.0, None, True).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [0.5, 0.5])
