"""Territories: tiles side by side on shelves, and the lines left over shared out among them."""

from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.packing import pack
from hwspec.array import Array

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
