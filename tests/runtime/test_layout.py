"""Where devices lie: each tile's on places of its own, and every device of an array in one place."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import SmallModel, compile_small, map_small, mapped_specs, place_and_emit, small_models

from hwspec.array import Array
from hwspec.spec import HardwareSpec
from runtime.layout import Place, Side, device_places, lines_of
from runtime.quantize import WeightCode

PAIRINGS = ["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"]


def array_of(pairing: str, rows: int = 12, cols: int = 10) -> Array:
    return Array.model_validate({"rows": rows, "cols": cols, "pairing": pairing})


def places_of(array: Array, rows: npt.ArrayLike, cols: npt.ArrayLike) -> dict[Side, Place]:
    """Of a tile on these rows and columns of weights of the site that starts at array 4."""
    return device_places(4, np.array(rows, np.int32), np.array(cols, np.int32), array)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_tile_of_a_whole_site_takes_each_of_its_devices_once(pairing: str) -> None:
    array = array_of(pairing)
    counts = np.zeros((8, array.rows, array.cols), int)
    places = places_of(array, range(array.weight_rows), range(array.weight_cols))
    for number, rows, cols in places.values():
        assert (len(rows), len(cols)) == (array.weight_rows, array.weight_cols)
        counts[number][np.ix_(rows, cols)] += 1
    assert (counts[4 : 4 + array.arrays_per_site] == 1).all()
    assert counts.sum() == array.arrays_per_site * array.rows * array.cols
    assert len(places) == array.devices_per_weight


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PAIRINGS), st.data())
def test_tiles_that_cut_a_site_share_no_device(pairing: str, data: st.DataObject) -> None:
    """However their lines lie among one another."""
    array = array_of(pairing)
    first_row = np.array(data.draw(st.lists(st.booleans(), min_size=array.weight_rows, max_size=array.weight_rows)))
    first_col = np.array(data.draw(st.lists(st.booleans(), min_size=array.weight_cols, max_size=array.weight_cols)))
    counts = np.zeros((6, array.rows, array.cols), int)
    for rows in (np.flatnonzero(first_row), np.flatnonzero(~first_row)):
        for cols in (np.flatnonzero(first_col), np.flatnonzero(~first_col)):
            for number, of_rows, of_cols in places_of(array, rows, cols).values():
                assert (len(of_rows), len(of_cols)) == (len(rows), len(cols))
                counts[number][np.ix_(of_rows, of_cols)] += 1
    assert (counts[4 : 4 + array.arrays_per_site] == 1).all()
    assert not counts[:4].any()


def test_pairs_lie_where_their_spec_says() -> None:
    found = {pairing: places_of(array_of(pairing), [2, 5], [1, 4]) for pairing in PAIRINGS}
    lines = {
        pairing: {side: (at, rows.tolist(), cols.tolist()) for side, (at, rows, cols) in places.items()}
        for pairing, places in found.items()
    }
    assert lines == {
        "two_arrays": {"plus": (4, [2, 5], [1, 4]), "minus": (5, [2, 5], [1, 4])},
        "neighbouring_columns": {"plus": (4, [2, 5], [2, 8]), "minus": (4, [2, 5], [3, 9])},
        "neighbouring_rows": {"plus": (4, [4, 10], [1, 4]), "minus": (4, [5, 11], [1, 4])},
        "reference": {"plus": (4, [2, 5], [1, 4])},
    }


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_lines_are_those_of_a_tile_s_devices(pairing: str) -> None:
    array = array_of(pairing)
    places = places_of(array, [0, 2, 3], [1, 4])
    for number in (4, 5):
        used = np.zeros((array.rows, array.cols), bool)
        for at, of_rows, of_cols in places.values():
            if at == number:
                used[np.ix_(of_rows, of_cols)] = True
        rows, cols = lines_of(places, array, number)
        np.testing.assert_array_equal(rows, used.any(1))
        np.testing.assert_array_equal(cols, used.any(0))
    assert not any(lines.any() for lines in lines_of(places, array, 9))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_models(), mapped_specs(), st.integers(0, 2**32 - 1))
def test_tiles_of_a_program_share_no_device(model: SmallModel, spec: HardwareSpec, seed: int) -> None:
    program = place_and_emit(map_small(model, spec, "quantize"), np.random.default_rng(seed))
    counts = np.zeros((program.arrays, spec.array.rows, spec.array.cols), int)
    for tile in program.tables.tiles:
        for number, rows, cols in program.places(tile.name).values():
            counts[number][np.ix_(rows, cols)] += 1
    assert counts.max() == 1
    weights = sum(tile.rows * tile.cols for tile in program.tables.tiles)
    assert counts.sum() == weights * spec.array.devices_per_weight
    layer = program.layers["layer"]
    assert weights == layer.groups * layer.rows * layer.cols * spec.array.slices


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_models(), mapped_specs())
def test_a_compiled_weight_is_the_nearest_that_its_devices_can_hold(model: SmallModel, spec: HardwareSpec) -> None:
    """Whatever the pairing, slices and levels, and whichever sign a column is stored with."""
    program, code = compile_small(model, spec), WeightCode.of(spec)
    weight = program.weights["layer"].astype(np.float64)
    scale = np.abs(weight).max(axis=1, keepdims=True)
    scale[scale == 0] = 1.0
    layer, sign = program.layers["layer"], np.ones(weight.shape)
    for tensors in program.tile_tensors.values():
        group, column = np.divmod(tensors.col_map, layer.cols)
        sign[group, :, column] = tensors.col_sign[:, None]
    error = np.abs(program.decoded_weights("layer") - weight) / scale
    assert (error <= code.half_gap(sign * weight / scale) + 1e-9).all()
