"""``xbarc chip``: maps are drawn, imported, shown, counted and plotted; errors are one line."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_xbarc
from small_programs import compile_small, matmul

from hwspec.chip import Chip
from hwspec.errors import DoesNotFit, FitReport
from hwspec.failures import State
from hwspec.spec import HardwareSpec
from runtime.archive import save_program
from xbarc.chip_plot import LETTERS, text_picture

FAULTY = HardwareSpec.preset("rram-128-faulty")


def chip(*arguments: object) -> str:
    """What ``xbarc chip`` prints when all is well."""
    code, out, err = run_xbarc("chip", *arguments)
    assert (code, err) == (0, "")
    return out


def told(*arguments: object) -> dict[str, Any]:
    """The JSON that it prints."""
    value = json.loads(chip(*arguments, "--json"))
    assert isinstance(value, dict)
    return value


def refused(*arguments: object) -> str:
    """The one line of an error of the user."""
    code, out, err = run_xbarc("chip", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.glob(".*")), "a temporary file was left"


# -- sample -----------------------------------------------------------------------------------------------------------


def test_a_sampled_map_is_the_chip_of_its_spec_and_seed() -> None:
    out = chip("sample", "--spec", "rram-128-faulty", "--arrays", 3, "--seed", 7, "-o", "map.npz")
    assert "3 arrays of 128x128, seed 7" in out
    assert "written to map.npz" in out
    assert Chip.load("map.npz") == Chip.sample(FAULTY, 3, 7)
    chip("sample", "--spec", "rram-128-faulty", "--arrays", 3, "--output", "other.npz")
    assert Chip.load("other.npz") == Chip.sample(FAULTY, 3, 0)


def test_fields_of_the_spec_can_be_changed() -> None:
    options = ("--set", "failures.stuck_hrs.rate=0.5", "--set", "failures.stuck_lrs.rate=0")
    found = told("sample", "--spec", "rram-128-faulty", "--arrays", 1, *options, "-o", "map.npz")
    assert found["states"]["stuck_lrs"] == {"number": 0, "share": 0.0}
    assert found["states"]["stuck_hrs"]["share"] == pytest.approx(0.5, abs=0.02)


def test_a_program_gives_its_spec_and_its_number_of_arrays() -> None:
    program = compile_small(matmul(20, 20))
    save_program(program, Path("program.xbar"))
    chip("sample", "--for", "program.xbar", "--set", "failures.stuck_hrs.rate=0.2", "--seed", 2, "-o", "map.npz")
    spec = program.spec.with_fields({"failures.stuck_hrs.rate": 0.2})
    assert Chip.load("map.npz") == Chip.sample(spec, program.arrays, 2)
    found = told("sample", "--for", "program.xbar", "--spec", "rram-128-faulty", "-o", "map.npz")
    assert (found["arrays"], found["rows"]) == (program.arrays, 128)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--spec", "rram-128"), "--arrays or --for must be given"),
        (("--spec", "rram-128", "--arrays", 1, "--for", "p.xbar"), "--arrays or --for must be given, and not both"),
        (("--arrays", 1), "--spec must be given with --arrays"),
        (("--spec", "rram", "--arrays", 1), "did you mean 'rram-128'"),
        (("--spec", "rram-128", "--arrays", 1, "--set", "failures.rate=1"), "is no field of the spec"),
        (("--for", "none.xbar"), "must be an existing file"),
    ],
)
def test_a_sample_that_makes_no_sense_is_refused(options: tuple[object, ...], reason: str) -> None:
    assert reason in refused("sample", *options, "-o", "map.npz")
    assert not Path("map.npz").exists()


def test_a_map_is_written_to_an_npz_file() -> None:
    for verb in (("sample", "--spec", "rram-128", "--arrays", 1), ("import", "x.csv", "--spec", "rram-128")):
        assert "must end in .npz, not '.csv'" in refused(*verb, "-o", "map.csv")
        assert "existing folder" in refused(*verb, "-o", "none/map.npz")


# -- import -----------------------------------------------------------------------------------------------------------

CELLS = "array,row,col,conductance\n0,1,2,0.2 uS\n1,127,127,500 uS\n"


def test_a_measured_map_is_imported() -> None:
    Path("measured.csv").write_text(CELLS, encoding="utf-8")
    found = told("import", "measured.csv", "--spec", "rram-128", "-o", "map.npz")
    assert (found["arrays"], found["failed"], found["seed"]) == (2, 2, None)
    loaded = Chip.load("map.npz")
    assert loaded.fault_map.states[0, 1, 2] == State.UNFORMED
    assert loaded.fault_map.states[1, 127, 127] == State.OVERFORMED
    np.testing.assert_allclose(loaded.fault_map.conductance, [0.2e-6, 500e-6])
    assert "written to map.npz" in chip("import", "measured.csv", "--spec", "rram-128", "-o", "map.npz")


def test_an_import_can_be_given_thresholds_arrays_and_a_seed() -> None:
    Path("measured.csv").write_text(CELLS, encoding="utf-8")
    options = ("--arrays", 5, "--seed", 9, "--set", "failures.thresholds.overformed=600 uS")
    found = told("import", "measured.csv", "--spec", "rram-128", *options, "-o", "map.npz")
    assert (found["arrays"], found["seed"]) == (5, 9)
    assert found["states"]["stuck_lrs"]["number"] == 1
    assert Chip.load("map.npz").seed == 9


def test_an_import_that_makes_no_sense_is_refused() -> None:
    Path("measured.csv").write_text("array,row,col,state\n0,0,128,ok\n", encoding="utf-8")
    line = refused("import", "measured.csv", "--spec", "rram-128", "-o", "map.npz")
    assert "line 2, col must be a whole number from 0 to 127, not '128'" in line
    assert "cannot be read" in refused("import", "none.npz", "--spec", "rram-128", "-o", "map.npz")
    Chip.ideal(FAULTY, 1).save("map.npz")
    assert "another file than the input" in refused("import", "map.npz", "--spec", "rram-128", "-o", "map.npz")


# -- show -------------------------------------------------------------------------------------------------------------


def small_map() -> Chip:
    """Two arrays of 8x8 whose states are all there."""
    fields = {"array.rows": 8, "array.cols": 8, "failures.unformed.rate": 0.1, "failures.allow_unbounded": True}
    small = Chip.sample(FAULTY.with_fields({**fields, "failures.overformed.rate": 0.1}), 2, 1)
    small.save("small.npz")
    return small


def test_a_small_array_is_shown_device_by_device() -> None:
    small = small_map()
    lines = chip("show", "small.npz", "--array", 1).splitlines()
    assert lines[0] == "array 1 of 2, 8 word lines x 8 bit lines"
    states = small.fault_map.states[1]
    assert lines[1:9] == ["".join(LETTERS[State(code)] for code in row) for row in states]
    for state, letter in LETTERS.items():
        assert f"{letter} {state.name.lower()} {(states == state).sum()}" in lines[9]
    assert len(set(LETTERS.values())) == len(LETTERS) == len(State)


def test_a_large_array_is_shown_by_blocks() -> None:
    chip("sample", "--spec", "rram-128-faulty", "--arrays", 1, "-o", "map.npz")
    lines = chip("show", "map.npz").splitlines()
    assert "a character stands for 2x1 devices" in lines[1]
    assert len(lines[2:-1]) == 64
    assert {len(line) for line in lines[2:-1]} == {128}


def test_a_block_shows_its_most_frequent_failure() -> None:
    states = np.zeros((5, 4), np.uint8)
    states[0, :3] = State.STUCK_HRS, State.STUCK_LRS, State.STUCK_LRS
    states[1, 1] = State.STUCK_HRS
    states[4, 3] = State.UNFORMED
    assert text_picture(states, 2, 3) == (["hl", "..", ".u"], (2, 2))
    assert text_picture(states, 1, 1)[0] == ["h"]
    assert text_picture(np.zeros((3, 3), np.uint8), 10, 10) == (["..."] * 3, (1, 1))


def test_show_prints_states_as_json() -> None:
    small = small_map()
    found = told("show", "small.npz")
    np.testing.assert_array_equal(found.pop("states"), small.fault_map.states[0])
    assert found == {"array": 0, "arrays": 2, "rows": 8, "cols": 8}


def test_an_array_that_is_not_there_is_refused() -> None:
    small_map()
    for verb in (("show", "small.npz"), ("plot", "small.npz", "-o", "out.svg")):
        assert "array 2 must be from 0 to 1" in refused(*verb, "--array", 2)
        assert run_xbarc("chip", *verb, "--array", -1)[0] == 2


# -- stats ------------------------------------------------------------------------------------------------------------


def test_rates_are_told_by_device_and_by_pair() -> None:
    chip("sample", "--spec", "rram-128-faulty", "--arrays", 10, "-o", "map.npz")
    found = told("stats", "map.npz", "--spec", "rram-128-faulty")
    assert found["devices"] == 10 * 128 * 128
    assert found["pairs"] == 5 * 128 * 128
    assert found["failed_share"] == pytest.approx(0.1079, abs=0.005)
    assert found["failed_pair_share"] == pytest.approx(0.204, abs=0.008)
    assert found["states"]["stuck_hrs"]["share"] == pytest.approx(0.0904, abs=0.004)
    assert found["states"]["unformed"] == {"number": 0, "share": 0.0}
    shares = [one["failed_share"] for one in found["worst_arrays"]]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert found["sha256"] == Chip.load("map.npz").sha256
    text = chip("stats", "map.npz", "--spec", "rram-128-faulty")
    for words in ("stuck_hrs", "failed devices", "failed pairs", f"{found['failed_pair_share']:.2%}", "worst arrays"):
        assert words in text


def test_without_a_spec_devices_alone_are_counted() -> None:
    small_map()
    assert told("stats", "small.npz")["pairs"] is None
    text = chip("stats", "small.npz")
    assert "failed pairs" not in text
    assert "--spec says which devices are pairs" in text
    assert "must have arrays of 128x128" in refused("stats", "small.npz", "--spec", "rram-128")


# -- plot -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "start"), [("out.png", b"\x89PNG"), ("out.svg", b"<?xml"), ("out.pdf", b"%PDF")])
def test_a_map_is_drawn(name: str, start: bytes) -> None:
    small_map()
    assert told("plot", "small.npz", "-o", name, "--array", 1) == {"figure": name, "array": 1}
    first = Path(name).read_bytes()
    assert first.startswith(start)
    assert len(first) > 5000
    assert chip("plot", "small.npz", "-o", name) == f"written to {name}\n"
    assert Path(name).read_bytes() != first, "another array is drawn"


def test_a_map_without_failures_is_drawn() -> None:
    Chip.ideal(FAULTY, 1).save("good.npz")
    chip("plot", "good.npz", "-o", "good.svg")
    assert "0 of 16384 devices failed" in Path("good.svg").read_text(encoding="utf-8")


def test_a_plot_that_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small_map()
    assert "must end in .png, .svg, .pdf" in refused("plot", "small.npz", "-o", "out.gif")
    assert "another file than the input" in refused("plot", "small.npz", "-o", "small.npz")
    for module in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "matplotlib must be installed for plots; pip install xbarc[plots]" in refused(
        "plot", "small.npz", "-o", "out.png"
    )


# -- does not fit -----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_exits_with_4_and_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large() -> list[str]:
        raise DoesNotFit(FitReport(9, 6, 3))

    monkeypatch.setattr(HardwareSpec, "presets", too_large)
    code, out, err = run_xbarc("spec", "list")
    assert (code, out) == (4, "")
    assert err.count("\n") == 1
    code, out, _ = run_xbarc("spec", "list", "--json")
    found = json.loads(out)
    assert (code, found["error"], found["exit_code"]) == (4, "DoesNotFit", 4)
    assert found["message"] == err.removeprefix("error: ").rstrip()
    levers = list(FitReport(9, 6, 3).levers)
    assert found["report"] == {"demand": 9, "bound": 6, "gap": 3, "unit": "arrays", "levers": levers}


def test_help_tells_the_exit_codes() -> None:
    assert "4 does not fit" in run_xbarc("--help")[1].replace("\n", " ").replace("  ", " ")
