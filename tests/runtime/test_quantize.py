"""The quantiser: idempotent, symmetric, monotone, and the same for numpy and torch."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.quantize import input_codes, level_conductances, output_codes, weight_codes

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
    codes = output_codes(lsbs, code_max)
    assert np.array_equal(codes, np.rint(codes))
    assert np.abs(codes).max() <= code_max
    inside = np.abs(lsbs) <= code_max
    assert (np.abs(codes - lsbs) <= 0.5)[inside].all()
    np.testing.assert_array_equal(output_codes(codes, code_max), codes)
    np.testing.assert_array_equal(output_codes(-lsbs, code_max), -codes)
    np.testing.assert_array_equal(output_codes(torch.from_numpy(lsbs), code_max).numpy(), codes)
    assert (np.diff(codes[np.argsort(lsbs)]) >= 0).all()


def test_ties_go_to_the_even_code() -> None:
    halves = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    np.testing.assert_array_equal(output_codes(halves, 7), [-2, -2, 0, 0, 2, 2])
    np.testing.assert_array_equal(output_codes(torch.from_numpy(halves), 7).numpy(), [-2, -2, 0, 0, 2, 2])


@settings(max_examples=150, deadline=None)
@given(UNIT, st.integers(2, 65536))
def test_weight_codes(w: Float64, levels: int) -> None:
    codes = weight_codes(w, levels)
    assert codes.dtype == np.int32
    assert np.abs(codes).max() <= levels - 1
    assert (np.abs(codes / (levels - 1) - w) <= 0.5 / (levels - 1) + 1e-12).all()
    np.testing.assert_array_equal(weight_codes(codes / (levels - 1), levels), codes)
    np.testing.assert_array_equal(weight_codes(-w, levels), -codes)
    assert (np.diff(codes[np.argsort(w)]) >= 0).all()


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-9, 1e-5), st.floats(2e-5, 1e-3), st.integers(2, 65536))
def test_levels_are_uniform_between_the_ends(g_min: float, g_max: float, levels: int) -> None:
    table = level_conductances(g_min, g_max, levels)
    assert table.shape == (levels,)
    assert table[0] == g_min
    assert table[-1] == pytest.approx(g_max, rel=1e-15)
    np.testing.assert_allclose(np.diff(table), (g_max - g_min) / (levels - 1), rtol=1e-6)


def test_gradients_pass_through_an_ideal_dac() -> None:
    x = torch.tensor([0.5, -0.25], dtype=torch.float64, requires_grad=True)
    input_codes(x, 2.0, None, True).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [0.5, 0.5])
