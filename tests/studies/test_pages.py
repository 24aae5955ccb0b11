"""The studies' page and the README show the results that are kept, and every picture that is drawn of them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from studies import pages
from studies.kim2020 import CASES
from studies.pages import (
    ALL_RATES,
    IMAGES,
    PICTURES,
    STRUCTURES,
    TABLES,
    kim_drops,
    kim_table,
    readme_table,
    results,
    take_over,
    targets_table,
)
from studies.plot_style import Effort, write

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def between(text: str, name: str) -> str:
    """What is written between the marks of a name."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name} -->")[0].strip()


@pytest.mark.parametrize("study", TABLES)
def test_the_page_shows_the_results_that_are_kept(study: str) -> None:
    assert between(PAGE, study) == TABLES[study](results(study))


def test_the_page_shows_every_target_and_whether_it_is_reached() -> None:
    assert between(PAGE, "targets") == targets_table()


def test_the_readme_shows_the_results_that_are_kept() -> None:
    assert between(README, "studies") == readme_table()


def test_the_page_shows_every_picture_and_no_other() -> None:
    assert sorted(re.findall(r"!\[[^\]]+\]\(images/studies/([\w-]+)\.svg\)", PAGE)) == sorted(PICTURES)
    assert sorted(path.stem for path in IMAGES.iterdir()) == sorted(PICTURES)


@pytest.mark.parametrize("picture", PICTURES)
def test_every_picture_is_drawn(picture: str, tmp_path: Path) -> None:
    study, of_plot = PICTURES[picture]
    write(of_plot(results(study)), Effort(), tmp_path / "one.svg")
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text.count("<path") > 10
    assert len(text) < 100_000


def test_drops_are_points_under_the_baseline_without_defects() -> None:
    """Rates in order; what was not run is left out of curves, and empty in the table."""
    found = {"zero: baseline 0": {"mean": 0.9}, "zero: baseline 0.1": {"mean": 0.6}, "zero: aware 0.1": {"mean": 0.85}}
    drops = kim_drops(found, "zero")
    assert {way: [(rate, round(drop, 9)) for rate, drop in rows] for way, rows in drops.items() if rows} == {
        "baseline": [(0.0, 0.0), (0.1, 30.0)],
        "aware": [(0.1, 5.0)],
    }
    assert "| pair that a failed device turns into 0 | aware |  |  |  |  |  | 5.00 |  |" in kim_table(found)


@pytest.mark.parametrize("case", CASES)
def test_every_case_was_run(case: str) -> None:
    """At every rate, with a program tuned for it and with one that was not."""
    drops = kim_drops(results("kim2020"), case)
    for way in ("baseline", "baseline, re-estimated", "aware"):
        assert tuple(rate for rate, _ in drops[way]) == ALL_RATES, way


def test_curves_of_devices_are_their_drops() -> None:
    """Every case of failed devices is drawn, with what it loses."""
    cases = [case for of_one in STRUCTURES.values() for case in of_one]
    assert sorted(cases) == sorted(name for name, case in CASES.items() if case.state is not None)
    found = results("kim2020")
    figure = PICTURES["kim2020-devices"][1](found)(Effort())
    for axis, of_one in zip(figure.axes, STRUCTURES.values(), strict=True):
        ways = ("baseline, re-estimated", "aware, re-estimated")
        expected = [kim_drops(found, case)[way][1:] for case in of_one for way in ways if kim_drops(found, case)[way]]
        drawn = [np.asarray(line.get_xydata(), np.float64) / (100, 1) for line in axis.lines]
        assert len(drawn) == len(expected)
        for one, other in zip(drawn, expected, strict=True):
            np.testing.assert_allclose(one, other)


def test_results_that_are_taken_over_leave_others_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case's file replaces its own rows; ``results.json`` of a study without cases has plain names."""
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "kept")
    for name, value in (("zero", 1), ("weight-0", 2), ("zero", 3)):
        folder = tmp_path / f"{name}-{value}"
        folder.mkdir()
        (folder / f"{name}.json").write_text(json.dumps({"baseline 0": {"mean": value}}), encoding="utf-8")
        take_over("kim2020", folder)
    assert results("kim2020") == {"zero: baseline 0": {"mean": 3}, "weight-0: baseline 0": {"mean": 2}}
    (tmp_path / "zero-1" / "zero.json").rename(tmp_path / "zero-1" / "results.json")
    take_over("liu2017", tmp_path / "zero-1")
    assert results("liu2017") == {"baseline 0": {"mean": 1}}
