"""Keyed generators: one stream for each seed, purpose and array, whatever else is drawn."""

import itertools

import numpy as np
import pytest

from hwspec.errors import DataError
from hwspec.randomness import Purpose, array_generator

SHAPE = (5, 7)


def test_an_array_draws_the_same_in_any_order_and_among_any_number() -> None:
    alone = array_generator(3, Purpose.SPREAD, 4).standard_normal(SHAPE)
    forwards = [array_generator(3, Purpose.SPREAD, array).standard_normal(SHAPE) for array in range(9)]
    backwards = [array_generator(3, Purpose.SPREAD, array).standard_normal(SHAPE) for array in reversed(range(6))]
    assert np.array_equal(alone, forwards[4])
    assert np.array_equal(forwards[:6], backwards[::-1])


def test_no_two_keys_share_a_stream() -> None:
    """Seeds of several words and arrays of 0 included: as one flat entropy these would collide."""
    seeds = [0, 1, 2, 3, 1 + (7 << 32), 1 + (2 << 32), (1 << 128) - 1]
    keys = list(itertools.product(seeds, Purpose, [0, 1, 2, 7, (1 << 32) - 1]))
    draws = {array_generator(*key).bytes(16) for key in keys}
    assert len(draws) == len(keys)


def test_a_chip_s_seed_is_a_key_of_its_own() -> None:
    """Chip 0 is not the lack of a chip, and no two pairs of seeds meet."""
    seeds = [0, 1, 7, 1 << 32, (1 << 128) - 1]
    draws = {
        array_generator(seed, Purpose.PROGRAMMING, 0, chip_seed=chip).bytes(16) for seed in seeds for chip in seeds
    }
    draws |= {array_generator(seed, Purpose.PROGRAMMING, 0).bytes(16) for seed in seeds}
    assert len(draws) == len(seeds) * (len(seeds) + 1)


def test_streams_of_neighbouring_keys_are_uncorrelated() -> None:
    draws = [
        array_generator(seed, purpose, array).standard_normal(20000)
        for seed, purpose, array in itertools.product((0, 1), (Purpose.SPREAD, Purpose.DRIFT), (0, 1))
    ]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 4.75 / np.sqrt(20000)


def test_streams_never_change() -> None:
    """Golden numbers, drawn with numpy 2.4: a chip of a seed must stay the same chip."""
    assert array_generator(0, Purpose.STATES, 0).integers(1 << 32, size=3).tolist() == [
        2081501252,
        4060103576,
        4165089906,
    ]
    assert array_generator(7, Purpose.SPREAD, 2).integers(1 << 32, size=3).tolist() == [
        53155239,
        2713915524,
        1452709794,
    ]
    assert array_generator(7, Purpose.TRIM, 2).integers(1 << 32, size=3).tolist() == [
        2832014892,
        4200067095,
        2343144947,
    ]
    assert array_generator(7, Purpose.PROGRAMMING, 2, chip_seed=5).integers(1 << 32, size=3).tolist() == [
        404005550,
        3876044782,
        4120843692,
    ]
    assert array_generator(7, Purpose.TELEGRAPH, 0, chip_seed=1 << 100).integers(1 << 32, size=3).tolist() == [
        3327884718,
        2833020834,
        3031362175,
    ]
    assert [purpose.value for purpose in Purpose] == list(range(1, 11))


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", None])
def test_keys_must_be_whole_numbers(value: object) -> None:
    with pytest.raises(DataError, match="seed must be"):
        array_generator(value, Purpose.SPREAD, 0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="array must be"):
        array_generator(0, Purpose.SPREAD, value)  # type: ignore[arg-type]
    if value is not None:
        with pytest.raises(DataError, match="chip seed must be"):
            array_generator(0, Purpose.SPREAD, 0, chip_seed=value)  # type: ignore[arg-type]


def test_keys_have_a_largest_value() -> None:
    with pytest.raises(DataError, match=r"seed must be from 0 to 2\^128 - 1"):
        array_generator(1 << 128, Purpose.SPREAD, 0)
    with pytest.raises(DataError, match=r"array must be from 0 to 2\^32 - 1"):
        array_generator(0, Purpose.SPREAD, 1 << 32)
    with pytest.raises(DataError, match=r"chip seed must be from 0 to 2\^128 - 1"):
        array_generator(0, Purpose.SPREAD, 0, chip_seed=1 << 128)
    assert array_generator(np.int64(5), Purpose.SPREAD, np.int64(1)).random() == (  # type: ignore[arg-type]
        array_generator(5, Purpose.SPREAD, 1).random()
    )
