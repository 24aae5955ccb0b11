"""Parts of report pages: text, evaluations that are read, drawings and pictures."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_pages import evaluation

import xbarc
from hwspec.errors import DataError
from runtime.program import TileProgram
from runtime.timing import Stage, plan, schedule
from xbarc.eval_report import read_eval
from xbarc.page.drawing import ticks
from xbarc.page.markup import element, quantity, share, shortened, text
from xbarc.page.occupancy import busy_parts, groups_of
from xbarc.page.picture import SHADES, scale, shades, strongest

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"


@pytest.fixture(scope="module")
def digits() -> TileProgram:
    return xbarc.compile(DIGITS, spec="rram-128")


def test_text_is_escaped_wherever_it_stands() -> None:
    assert text("<a&\"'>") == "&lt;a&amp;&quot;&#x27;&gt;"
    assert text("nul\x00\x07\ud800") == "nul\ufffd\ufffd\ufffd"
    assert (
        element("p", {"title": '">'}, "<i>", element("b", None, "x")) == '<p title="&quot;&gt;">&lt;i&gt;<b>x</b></p>'
    )
    assert shortened("a" * 100, 9) == "aaaaa…aaa"


def test_an_evaluation_is_read_in_any_unicode(digits: TileProgram, tmp_path: Path) -> None:
    found = evaluation(digits)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "e.json").write_text(json.dumps(found.model_dump(mode="json"), indent=2), encoding=encoding)
        assert read_eval(tmp_path / "e.json") == found


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "eval --json"),
        ("{}", "model"),
        ('{"error": "DataError", "message": "labels must fit", "exit_code": 2}', "labels must fit"),
        ({"mean": None}, "mean"),
        ({"chips": []}, "at least one chip"),
        ({"chips": ["0.5"]}, "chips.0"),
        ({"worst": -0.5}, "from 0 to 1"),
        ({"std": 7.0}, "from 0 to 1"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_no_evaluation_is_refused(
    digits: TileProgram, tmp_path: Path, content: str | dict[str, object], words: str
) -> None:
    if not isinstance(content, str):
        content = json.dumps(evaluation(digits).model_dump(mode="json") | content)
    (tmp_path / "e.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        read_eval(tmp_path / "e.json")
    assert str(caught.value).startswith(f"eval {tmp_path / 'e.json'}")
    assert "xbarc eval PROGRAM" in str(caught.value)


def test_a_missing_evaluation_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nosuch.json"):
        with pytest.raises(DataError, match="existing file"):
            read_eval(path)


def test_occupancy_adds_up_to_the_schedules(digits: TileProgram) -> None:
    found = schedule(digits)
    for arrays in groups_of(found, 3):
        parts = list(busy_parts(found, arrays, found.interval))
        busy = sum((part.stop - part.start) * part.part for part in parts) / found.interval
        assert busy == pytest.approx(np.mean([found.occupancy[array] for array in arrays]))
        assert all(0 <= part.start < part.stop <= found.interval * (1 + 1e-9) for part in parts)


def test_what_goes_on_beyond_the_interval_starts_anew() -> None:
    stages = [Stage("a", 2.0, {0: 2.0}, 1.0, "array"), Stage("b", 3.0, {1: 3.0}, 1.0, "array")]
    found = plan(stages, [(), (0,)], pipelined=True)
    assert [(part.stage, part.start, part.stop) for part in busy_parts(found, [1], found.interval)] == [
        (1, 2.0, 3.0),
        (1, 0.0, 2.0),
    ]


def test_arrays_are_grouped_by_what_runs_on_them() -> None:
    stages = [
        Stage("a", 2.0, dict.fromkeys(range(40), 2.0), 1.0, "array"),
        Stage("b", 3.0, dict.fromkeys(range(30, 100), 3.0), 1.0, "array"),
    ]
    found = plan(stages, [(), (0,)], pipelined=True)
    assert groups_of(found, 100) == [[array] for array in range(100)]
    assert [(group[0], group[-1]) for group in groups_of(found, 99)] == [(0, 29), (30, 39), (40, 99)]
    assert [(group[0], group[-1]) for group in groups_of(found, 2)] == [(0, 39), (40, 99)]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1.28e-5) == pytest.approx([0, 2e-6, 4e-6, 6e-6, 8e-6, 1e-5, 1.2e-5])
    for low, high in ((0.0, 1.0), (0.9871, 0.9932), (0.0, 1e11), (1.0, 1.0)):
        found = ticks(low, high)
        assert 1 <= len(found) <= 10
        assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in found)


def test_colours_of_values() -> None:
    colours = scale(((0, 0, 0), (100, 100, 100), (200, 0, 0)))
    assert len(colours) == SHADES
    codes = shades(np.array([[-2.0, -1.0, 0.0, 1.0]]), 1.0)
    assert codes.tolist() == [[0, 0, SHADES // 2, SHADES - 1]]
    assert colours[SHADES // 2] == (100, 100, 100)


def test_large_matrices_are_drawn_in_blocks() -> None:
    values = np.zeros((600, 10))
    values[599, 9], values[0, 0] = -3.0, 2.0
    found = strongest(values)
    assert found.shape == (200, 10)
    assert found[-1, -1] == -3
    assert found[0, 0] == 2
    assert np.count_nonzero(found) == 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.125, "12.5 %"), (0.75, "75.0 %"), (1e-9, "<0.01 %"), (0.0333, "3.33 %")],
)
def test_shares(value: float, shown: str) -> None:
    assert share(value).replace("\u00a0", " ") == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.25e-6, "1.25 µJ"), (0.9999e-3, "1 mJ"), (999.4e-6, "999 µJ"), (0.0, "0 J"), (2e13, "20 TJ"), (3e-13, "0.3 pJ")],
)
def test_quantities(value: float, shown: str) -> None:
    assert quantity(value, "J").replace("\u00a0", " ") == shown
