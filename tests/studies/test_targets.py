"""A target is reached when all of its interval reaches it; values come from what the chips got right."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from studies.kim2020 import CASES
from studies.pages import results
from studies.targets import TARGETS, Target, cao_targets, charan_targets, kim_targets, liu_targets
from studies.trials import packed

CHIPS, EACH, ALL = 8, 100, 800


def target(low: float, value: float, high: float, bound: float | None, wanted: Any) -> Target:
    return Target("what", None, (value, low, high), bound, wanted, (0.5,), 10)


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (target(85, 86, 87, 85, "at least"), "reached"),
        (target(84, 86, 87, 85, "at least"), "open"),
        (target(83, 84, 84.9, 85, "at least"), "missed"),
        (target(-1, -0.5, 0, 0, "at most"), "reached"),
        (target(-1, -0.5, 0.1, 0, "at most"), "open"),
        (target(0.1, 0.5, 1, 0, "at most"), "missed"),
        (target(0.1, 0.5, 1, None, "at most"), "no target"),
    ],
)
def test_the_unfavourable_end_decides(one: Target, verdict: str) -> None:
    assert one.verdict == verdict
    assert one.row()[4] == verdict


def row(wrong: int) -> dict[str, Any]:
    """A row of which each chip gets so many of its samples wrong, the same ones in every row."""
    found = np.ones((CHIPS, EACH), bool)
    found[:, :wrong] = False
    return {
        "mean": float(found.mean()),
        "ci95": [0.0, 1.0],
        "chips": [float(one.mean()) for one in found],
        "samples": EACH,
        "of": ALL,
        "right": [packed(one) for one in found],
    }


def chip(**wrong: int) -> dict[str, Any]:
    """What programs get wrong on one chip."""
    rows = {way.replace("_", "-"): row(count)["right"][0] for way, count in wrong.items()}
    return {"samples": EACH, "of": ALL, "right": rows}


def test_drops_are_paired_with_half_of_the_baselines() -> None:
    found = {f"weight-0: {way}": row(wrong) for way, wrong in {"baseline 0": 10, "baseline 0.05": 30}.items()}
    assert [*kim_targets(found)] == []
    found["weight-0: aware, re-estimated 0.05"] = row(17)
    (one,) = kim_targets(found)
    assert one.measured == pytest.approx((7 - 10, 7 - 10, 7 - 10))
    assert one.verdict == "reached"
    assert one.failed == (0.05, 0.05)
    assert "(7.00, baseline 20.00 (20.00 to 20.00))" in one.what
    found["weight-0: aware, re-estimated 0.05"] = row(21)
    assert [one.verdict for one in kim_targets(found)] == ["missed"]
    found["weight-0: baseline 0.05"] = row(11)
    assert [one.verdict for one in kim_targets(found)] == ["no target"]  # a point is not more than a point
    found["weight-0: baseline 0.001"] = found["weight-0: aware, re-estimated 0.001"] = row(90)
    assert len([*kim_targets(found)]) == 1


def test_targets_are_asked_where_the_issue_asks_them() -> None:
    zero, one = (0.01, 0.02, 0.05, 0.1, 0.2), (0.01, 0.02, 0.05)
    asked = {name: case.targets for name, case in CASES.items() if case.targets}
    assert asked == {"weight-0": zero, "weight-0-deviating": zero, "weight-1": one, "weight-1-deviating": one}


def test_known_maps_are_judged_by_what_tuning_leaves() -> None:
    found = {f"known-5: {10_000 + number}": chip(fault_free=10, naive=80, tuned=9) for number in range(CHIPS)}
    (one,) = kim_targets(found)
    assert one.measured == pytest.approx((-1, -1, -1))
    assert one.verdict == "reached"
    assert one.failed == pytest.approx((0.05, 0.0975))


def test_cao_is_judged_by_accuracy_and_by_what_hardware_takes() -> None:
    rows = {"tuned, every effect": row(14), "tuned, re-estimated": row(13), "plain, converters": row(12)}
    accuracy, lost, better, least = cao_targets(rows)
    assert accuracy.measured == pytest.approx((86, 86, 86))
    assert lost.measured == pytest.approx((2, 2, 2))
    assert (accuracy.verdict, lost.verdict) == ("reached", "missed")
    assert (better.measured[0], least.measured[0]) == pytest.approx((87, 1))
    assert least.verdict == "reached"


def test_liu_is_judged_by_the_share_of_the_fault_free_accuracy() -> None:
    kinds = {"at g_max": chip(fault_free=20, tuned=20), "beyond range": chip(fault_free=20, tuned=90, replicas=24)}
    found = {f"one layer, {kind}, 0.2, chip {n}": one for kind, one in kinds.items() for n in range(CHIPS)}
    inside, beyond = liu_targets(found)
    assert inside.measured == pytest.approx((100, 100, 100))
    assert beyond.measured == pytest.approx((95, 95, 95))
    assert (inside.verdict, beyond.verdict) == ("reached", "missed")


def test_distillation_is_judged_by_the_share_of_what_labels_recover() -> None:
    told = "9.04 % HRS, 1.75 % LRS"
    found = {f"{told}, {way}": row(n) for way, n in (("before", 50), ("labels", 10), ("distillation", 14))}
    (one,) = charan_targets(found)
    assert one.measured == pytest.approx((90, 90, 90))


@pytest.mark.parametrize("study", TARGETS)
def test_rows_without_samples_are_left_out(study: str) -> None:
    """Those that were measured before samples were kept."""
    found = {
        key: {name: value for name, value in one.items() if name != "right"} for key, one in results(study).items()
    }
    assert found
    assert [*TARGETS[study](found)] == []
