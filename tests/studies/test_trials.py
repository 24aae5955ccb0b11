"""What chips get right, kept in few bytes; means and intervals over chips and samples."""

import itertools
from pathlib import Path

import numpy as np
import pytest

import xbarc
from studies.trials import FIRST_CHIP, each_way, estimate, measure, packed, places, right, rights
from xbarc.data.load import load_data

MODEL = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"


def seen_by(chips: int, each: int, samples: int) -> list[list[int]]:
    """Which samples each chip sees."""
    return [list(places(chip, each, samples)) for chip in range(chips)]


def test_chips_see_samples_of_their_own_until_all_were_seen() -> None:
    windows = seen_by(6, 25, 100)
    assert sorted(itertools.chain(*windows[:4])) == list(range(100))
    assert windows[4:] == windows[:2]
    assert [len({*first} & {*second}) for first, second in itertools.pairwise(seen_by(3, 40, 100))] == [0, 0]
    assert len({*seen_by(3, 40, 100)[2]} & {*seen_by(3, 40, 100)[0]}) == 20
    assert sorted(places(7, 100, 100)) == list(range(100))


def test_what_is_packed_comes_back() -> None:
    rows = np.random.default_rng(0).random((3, 13)) < 0.5
    row = {"samples": 13, "right": [packed(one) for one in rows]}
    np.testing.assert_array_equal(rights(row), rows)


@pytest.mark.parametrize("each", [20, 100, 200])
def test_intervals_hold_the_mean_of_all_chips_and_samples(each: int) -> None:
    """Of what differs by chip, by sample and by chance; 95 % of the time, however samples are given to chips."""
    generator = np.random.default_rng(each)
    chips, samples, trials = 10, 200, 200
    inside = 0
    for _ in range(trials):
        of_sample, of_chip = generator.normal(0, 1.0, samples), generator.normal(0, 0.3, chips)
        windows = seen_by(chips, each, samples)
        values = np.array([of_sample[windows[chip]] + of_chip[chip] for chip in range(chips)])
        _, low, high = estimate(values + generator.normal(0, 1.0, values.shape), samples)
        inside += low <= 0 <= high
    assert 0.89 <= inside / trials <= 0.99


def test_a_share_is_that_of_sums_and_a_pair_has_no_spread_of_its_own() -> None:
    generator = np.random.default_rng(1)
    good = (generator.random((8, 50)) < 0.9).astype(np.float64)
    share, low, high = estimate(0.5 * good, 400, good)
    assert (share, low, high) == pytest.approx((0.5, 0.5, 0.5))
    assert estimate(good - good, 400) == (0.0, 0.0, 0.0)
    mean, low, high = estimate(good, 400)
    assert mean == pytest.approx(good.mean())
    assert low < mean < high


def test_programs_are_measured_on_chips_with_samples_of_their_own() -> None:
    program = xbarc.compile(MODEL, spec="rram-128-faulty")
    data = load_data("digits", program.tables.inputs)

    def chip(seed: int) -> xbarc.Chip:
        return xbarc.Chip.sample(program.spec, program.arrays, seed)

    row = measure(program, chip, 2, data, "cpu", 50)
    seeds = [FIRST_CHIP, FIRST_CHIP + 1]
    seen = [data.take(places(number, 50, len(data))) for number in (0, 1)]
    expected = [right(program, chip(seed), part, seed, "cpu") for seed, part in zip(seeds, seen, strict=True)]
    np.testing.assert_array_equal(rights(row), expected)
    assert (row["samples"], row["of"]) == (50, len(data))
    assert row["chips"] == pytest.approx([one.mean() for one in expected])
    assert row["ci95"][0] <= row["mean"] <= row["ci95"][1]
    whole = measure(program, chip, 1, data, "cpu")
    assert whole["samples"] == len(data)

    found = each_way({"naive": program}, chip(seeds[1]), data, seeds[1], "cpu", 50)
    np.testing.assert_array_equal(rights({**found, "right": [found["right"]["naive"]]})[0], expected[1])
    good = right(program, chip(seeds[1]), seen[1], seeds[1], "cpu", without=["failures"])
    np.testing.assert_array_equal(rights({**found, "right": [found["right"]["fault-free"]]})[0], good)
    assert (found["fault-free"], found["naive"]) == pytest.approx((good.mean(), expected[1].mean()))
    assert good.mean() > expected[1].mean()
