"""Rectangles on sites: packed without overlap, on few of them, and never on fewer than the lower bound says."""

import time
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.packing import Matrix, mobilenet_v1, mobilenet_v2, tile_shapes
from compiler.rectangle_packing import Shape, Spot, dual_feasible, least_sites, pack_rectangles
from hwspec.array import Array, Pairing

Site = tuple[int, int]


@st.composite
def sites_and_shapes(draw: st.DrawFn) -> tuple[Site, list[Shape]]:
    """A site, and a few shapes on it, each any number of times, in any order."""
    rows, cols = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    kinds = draw(st.lists(st.tuples(st.integers(1, rows), st.integers(1, cols)), min_size=1, max_size=8))
    return (rows, cols), draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=80))


def sites_taken(spots: Sequence[Spot]) -> int:
    return max(spot.site for spot in spots) + 1


@settings(max_examples=400, deadline=None, derandomize=True)
@given(sites_and_shapes())
def test_rectangles_lie_within_their_sites_and_do_not_overlap(case: tuple[Site, list[Shape]]) -> None:
    """All are packed, sites are numbered as they come first, and there are no fewer than the bound."""
    (rows, cols), shapes = case
    spots = pack_rectangles(shapes, rows, cols)
    assert len(spots) == len(shapes)
    used: dict[int, np.ndarray] = {}
    for spot, (height, width) in zip(spots, shapes, strict=True):
        assert spot.site <= len(used)
        assert 0 <= spot.row <= rows - height
        assert 0 <= spot.col <= cols - width
        cells = used.setdefault(spot.site, np.zeros((rows, cols), bool))[spot.row :, spot.col :][:height, :width]
        assert not cells.any()
        cells[:] = True
    assert least_sites(shapes, rows, cols) <= sites_taken(spots) == len(used)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sites_and_shapes(), st.randoms(use_true_random=False))
def test_packings_are_the_same_each_time(case: tuple[Site, list[Shape]], random: Random) -> None:
    """The number of sites does not even depend on the order of the rectangles."""
    (rows, cols), shapes = case
    assert pack_rectangles(shapes, rows, cols) == pack_rectangles(list(shapes), rows, cols)
    shuffled = list(shapes)
    random.shuffle(shuffled)
    assert sites_taken(pack_rectangles(shuffled, rows, cols)) == sites_taken(pack_rectangles(shapes, rows, cols))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60))
def test_copies_of_a_shape_fill_sites_as_grids(rows: int, cols: int, copies: int) -> None:
    """The least that a grid of equal rectangles can take."""
    spots = pack_rectangles([(rows, cols)] * copies, 40, 40)
    assert sites_taken(spots) == -(-copies // ((40 // rows) * (40 // cols)))


def test_a_rectangle_as_large_as_its_site_fills_it() -> None:
    assert pack_rectangles([(4, 6)] * 3, 4, 6) == (Spot(0, 0, 0), Spot(1, 0, 0), Spot(2, 0, 0))


# -- the bound --------------------------------------------------------------------------------------------------------


@st.composite
def cut_sites(draw: st.DrawFn) -> tuple[Site, int, list[Shape]]:
    """Sites cut into pieces, of which some are left away: what is left fits on so many sites."""
    rows, cols, sites = draw(st.integers(1, 30)), draw(st.integers(1, 30)), draw(st.integers(1, 4))
    pieces = [(rows, cols)] * sites
    for _ in range(draw(st.integers(0, 25))):
        at = draw(st.integers(0, len(pieces) - 1))
        height, width = pieces[at]
        if draw(st.booleans()) and height > 1:
            cut = draw(st.integers(1, height - 1))
            pieces[at : at + 1] = [(cut, width), (height - cut, width)]
        elif width > 1:
            cut = draw(st.integers(1, width - 1))
            pieces[at : at + 1] = [(height, cut), (height, width - cut)]
    kept = [piece for piece in pieces if draw(st.integers(0, 3))] or pieces[:1]
    return (rows, cols), sites, kept


@settings(max_examples=500, deadline=None, derandomize=True)
@given(cut_sites())
def test_the_bound_is_never_above_a_packing_that_is_known(case: tuple[Site, int, list[Shape]]) -> None:
    (rows, cols), sites, pieces = case
    area = -(-sum(height * width for height, width in pieces) // (rows * cols))
    assert area <= least_sites(pieces, rows, cols) <= sites


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.data())
def test_what_fits_into_a_whole_still_does_under_a_dual_feasible_function(whole: int, data: st.DataObject) -> None:
    """Whatever other sizes there are, which only choose the functions."""
    parts, left = [], whole
    while left and data.draw(st.integers(0, 9)):
        parts.append(data.draw(st.integers(1, left)))
        left -= parts[-1]
    others = data.draw(st.lists(st.integers(1, whole), max_size=5))
    sizes = np.array([*parts, *others], np.int64)
    changed, wholes = dual_feasible(sizes, whole)
    assert changed.shape == (len(wholes), len(sizes))
    assert (changed >= 0).all()
    assert (changed[:, : len(parts)].sum(1) <= wholes).all()


@pytest.mark.parametrize(
    ("shapes", "least"),
    [
        ([(6, 6)] * 5, 5),  # no two side by side, although areas would fit on two sites
        ([(6, 1)] * 4 + [(1, 6)] * 4, 1),
        ([(6, 10)] * 3 + [(4, 10)] * 4, 4),  # three times 6 + 4, and one left over
        ([(4, 4)] * 8, 2),  # four on a site
        ([(1, 1)] * 100, 1),
        ([(10, 10)] * 7 + [(1, 1)], 8),
    ],
)
def test_the_bound_heeds_what_cannot_lie_beside_each_other(shapes: list[Shape], least: int) -> None:
    assert least_sites(shapes, 10, 10) == least == sites_taken(pack_rectangles(shapes, 10, 10))


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["two_arrays", "neighbouring_columns"])
@pytest.mark.parametrize("size", [64, 128, 256, 512])
@pytest.mark.parametrize("network", [mobilenet_v1, mobilenet_v2])
def test_mobilenets_take_a_tenth_more_than_the_bound_at_most(
    network: Callable[[], list[Matrix]], size: int, pairing: Pairing
) -> None:
    """Real shapes; `python -m benchmarks.packing` prints the ratios."""
    array = Array(rows=size, cols=size, pairing=pairing)
    shapes = [shape for of_layer in tile_shapes(network(), array).values() for shape in of_layer]
    found = sites_taken(pack_rectangles(shapes, array.weight_rows, array.weight_cols))
    assert found <= 1.1 * least_sites(shapes, array.weight_rows, array.weight_cols)


def test_the_shapes_are_those_of_the_networks() -> None:
    """Weights of convolutions and classifiers, without biases and batch normalisation, as published."""
    for network, weights in ((mobilenet_v1(), 4_209_088), (mobilenet_v2(), 3_469_760)):
        assert sum(groups * rows * cols for groups, rows, cols in network) == weights


def test_tens_of_thousands_of_blocks_take_seconds() -> None:
    generator = np.random.default_rng(0)
    shapes = (
        [(9, 1)] * 60_000 + [(70, 70)] * 5_000 + [(int(a), int(b)) for a, b in generator.integers(1, 129, (300, 2))]
    )
    start = time.process_time()
    spots = pack_rectangles(shapes, 128, 128)
    assert time.process_time() - start < 10
    assert sites_taken(spots) >= least_sites(shapes, 128, 128) >= 5_000
