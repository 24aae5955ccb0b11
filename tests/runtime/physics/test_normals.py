"""Normal numbers by counter: known answers of the generator, their distribution, and that nobody's blocks matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from runtime.physics.normals_numba import CHUNK, fill_normals, philox

SEED = np.array([7, 99], np.uint32)


def normals(count: int, first: int = 0, stream: int = 0, purpose: int = 0, seed: int = 7) -> np.ndarray:
    out = np.empty(count, np.float32)
    fill_normals(np.array([seed, 99], np.uint32), first, stream, purpose, out)
    return out


@pytest.mark.parametrize(
    ("key", "start", "stream", "purpose", "wanted"),
    [
        (0, 0, 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, -1, 0xFFFFFFFF, 0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_known_answers(key: int, start: int, stream: int, purpose: int, wanted: tuple[int, ...]) -> None:
    """Of Philox4x32-10, as its authors publish them; -1 is the counter of all ones."""
    bits = np.zeros((4, 1), np.uint32)
    philox(np.array([key, key], np.uint32), start, stream, purpose, bits)
    assert tuple(bits[:, 0]) == wanted


def test_they_are_normal() -> None:
    found = normals(1 << 22).astype(np.float64)
    assert stats.kstest(found, "norm").pvalue > 1e-3
    for power, wanted, of_square in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((found**power).mean() - wanted) < 4 * np.sqrt(of_square / found.size)
    tail = np.abs(found) > 4
    assert tail.mean() == pytest.approx(2 * stats.norm.sf(4), rel=0.2)


@pytest.mark.parametrize("lag", [1, 128, 256, 384, CHUNK])
def test_neighbours_are_independent(lag: int) -> None:
    """The numbers of one counter are 128 apart, and two of them share a radius or an angle."""
    found = normals(1 << 20).astype(np.float64)
    for power in (1, 2):
        one, other = found[:-lag] ** power, found[lag:] ** power
        assert abs(np.corrcoef(one, other)[0, 1]) < 4.5 / np.sqrt(len(one))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 5000), st.integers(1, 2000))
def test_any_part_of_a_stream_is_the_same(first: int, count: int) -> None:
    whole = normals(7000)
    np.testing.assert_array_equal(normals(count, first), whole[first : first + count])


def test_streams_purposes_and_seeds_differ() -> None:
    base = normals(4096)
    for other in (normals(4096, stream=1), normals(4096, purpose=1), normals(4096, seed=8)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 4.5 / 64


def test_far_numbers_have_counters_of_their_own() -> None:
    """Beyond 2^32 counters the second word counts on."""
    far = normals(1024, first=CHUNK << 32)
    assert not np.isin(far, normals(1024)).all()
    assert np.isfinite(far).all()


def test_double_precision_holds_the_same_numbers() -> None:
    out = np.empty(600, np.float64)
    fill_normals(SEED, 0, 0, 0, out)
    np.testing.assert_array_equal(out, normals(600).astype(np.float64))
