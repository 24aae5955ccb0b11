"""Territories: tiles side by side on shelves, and the lines left over shared out among them."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.packing import Territory, chosen_share, pack, pack_layers, sites_of
from compiler.rectangle_packing import least_sites
from hwspec.array import Array
from hwspec.errors import DataError

Shapes = list[tuple[int, int]]
PAIRINGS = st.sampled_from(["two_arrays", "neighbouring_columns"])
ARRAYS = st.builds(Array, rows=st.integers(1, 12), cols=st.integers(1, 6).map(lambda n: 2 * n), pairing=PAIRINGS)
SHAPES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=40)


def fitting(shapes: Shapes, array: Array) -> Shapes:
    """The shapes, cut to the array."""
    return [(min(rows, array.weight_rows), min(cols, array.weight_cols)) for rows, cols in shapes]


def shelves(shapes: Sequence[tuple[int, int]], array: Array) -> Iterator[tuple[int, int, int]]:
    """Site, row and column of each tile: side by side while they fit, then on the next shelf, then the next site."""
    site, row, col, height = 0, 0, 0, 0
    for rows, cols in shapes:
        if col + cols > array.weight_cols:
            row, col, height = row + height, 0, 0
        if row + rows > array.weight_rows:
            site, row, col, height = site + 1, 0, 0, 0
        yield site, row, col
        col, height = col + cols, max(height, rows)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ARRAYS, SHAPES, st.booleans(), st.booleans())
def test_territories_hold_their_tiles_and_do_not_overlap(
    array: Array, shapes: Shapes, share: bool, spares: bool
) -> None:
    """Sites come one after the other, one for each tile where they are not shared; with spares they are full."""
    shapes = fitting(shapes, array)
    places = pack(shapes, array, share=share, spares=spares)
    used: dict[int, np.ndarray] = {}
    before = 0 if share else -1
    for place, (rows, cols) in zip(places, shapes, strict=True):
        assert place.site in (before, before + 1) if share else place.site == before + 1
        before = place.site
        assert place.shape[0] >= rows
        assert place.shape[1] >= cols
        if not spares:
            assert place.shape == (rows, cols)
        assert 0 <= place.rows.start < place.rows.stop <= array.weight_rows
        assert 0 <= place.cols.start < place.cols.stop <= array.weight_cols
        cells = used.setdefault(place.site, np.zeros((array.weight_rows, array.weight_cols), bool))
        assert not cells[place.rows, place.cols].any()
        cells[place.rows, place.cols] = True
    if spares:
        assert all(cells.all() for cells in used.values())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ARRAYS, SHAPES)
def test_without_spares_tiles_lie_on_shelves(array: Array, shapes: Shapes) -> None:
    """Where the rule of shelves puts them; spares leave every tile on the same site."""
    shapes = fitting(shapes, array)
    places = pack(shapes, array, share=True, spares=False)
    found = [(place.site, place.rows.start, place.cols.start) for place in places]
    assert found == list(shelves(shapes, array))
    grown = pack(shapes, array, share=True, spares=True)
    assert [place.site for place in grown] == [place.site for place in places]


def test_lines_left_over_go_to_tiles_by_their_sizes() -> None:
    array = Array(rows=10, cols=12, pairing="two_arrays")
    one, other = pack([(4, 6), (4, 3)], array, share=True, spares=True)
    assert (one.rows, one.cols) == (slice(0, 10), slice(0, 8))
    assert (other.rows, other.cols) == (slice(0, 10), slice(8, 12))


# -- several layers ---------------------------------------------------------------------------------------------------

LAYERS = st.lists(SHAPES, min_size=1, max_size=5)


def packed(
    layers: list[Shapes], array: Array, share: object, *, spares: bool = False
) -> dict[str, tuple[Territory, ...]]:
    shapes = {f"layer{number}": fitting(found, array) for number, found in enumerate(layers)}
    return pack_layers(shapes, array, share=chosen_share(share), spares=spares)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(ARRAYS, LAYERS, st.booleans(), st.booleans())
def test_layers_apart_follow_one_another(array: Array, layers: list[Shapes], share: bool, spares: bool) -> None:
    """Each layer is packed alone, on the sites after those of the layer before."""
    start = 0
    for found, shapes in zip(packed(layers, array, share, spares=spares).values(), layers, strict=True):
        alone = pack(fitting(shapes, array), array, share=share, spares=spares)
        for place, wanted in zip(found, alone, strict=True):
            assert (place.site, place.rows, place.cols) == (start + wanted.site, wanted.rows, wanted.cols)
        start += alone[-1].site + 1


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ARRAYS, LAYERS, st.booleans())
def test_all_layers_together_take_no_more_sites(array: Array, layers: list[Shapes], spares: bool) -> None:
    """Tiles of all layers keep their shapes and do not overlap; layers share only where that saves a site."""
    together, apart = packed(layers, array, "all", spares=spares), packed(layers, array, "layer", spares=spares)
    every = [shape for shapes in layers for shape in fitting(shapes, array)]
    assert least_sites(every, array.weight_rows, array.weight_cols) <= sites_of(together) <= sites_of(apart)
    if sites_of(together) == sites_of(apart):
        assert together == apart
        return
    places = [place for of_layer in together.values() for place in of_layer]
    assert [place.shape for place in places] == every
    used = np.zeros((sites_of(together), array.weight_rows, array.weight_cols), int)
    for place in places:
        used[place.site, place.rows, place.cols] += 1
    assert used.max() == 1
    assert used.any((1, 2)).all()
    assert used.sum() == sum(rows * cols for rows, cols in every)


def test_who_shares_is_chosen_by_name_or_switch() -> None:
    assert [chosen_share(value) for value in (True, False, "none", "layer", "all")] == [
        "layer", "none", "none", "layer", "all",
    ]  # fmt: skip
    with pytest.raises(DataError, match="must be one of none, inputs, layer, all, not 'layers'; did you mean 'layer'"):
        chosen_share("layers")
    for value in (None, 1, "xyz"):
        with pytest.raises(DataError, match="must be one of none, inputs, layer, all"):
            chosen_share(value)
