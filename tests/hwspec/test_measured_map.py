"""Measured maps: every form is read as it says, and what makes no sense is refused by its line or device."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwspec import measured_csv, measured_map
from hwspec.device import Device
from hwspec.errors import ChipError
from hwspec.failures import State, Thresholds
from hwspec.measured_map import classify, read_map
from hwspec.spec import HardwareSpec

ROWS, COLS = 4, 6
SPEC = HardwareSpec.preset("rram-128").with_fields({"array.rows": ROWS, "array.cols": COLS})
DEVICE = Device(g_min=1e-6, g_max=100e-6, levels=16)
GOOD = 50e-6


def npz(path: Path, **arrays: npt.ArrayLike) -> Path:
    np.savez(path / "map.npz", allow_pickle=True, **{name: np.asarray(values) for name, values in arrays.items()})
    return path / "map.npz"


def csv(path: Path, text: str | bytes) -> Path:
    content = text.encode() if isinstance(text, str) else text
    (path / "map.csv").write_bytes(content)
    return path / "map.csv"


def some_states(arrays: int = 2, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 5, (arrays, ROWS, COLS)).astype(np.uint8)


# -- classification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("siemens", "state"),
    [
        (0.0, State.UNFORMED),
        (0.49e-6, State.UNFORMED),
        (0.5e-6, State.STUCK_HRS),
        (0.99e-6, State.STUCK_HRS),
        (1e-6, State.OK),
        (50e-6, State.OK),
        (100e-6, State.OK),
        (101e-6, State.STUCK_LRS),
        (125e-6, State.STUCK_LRS),
        (126e-6, State.OVERFORMED),
        (1.0, State.OVERFORMED),
    ],
)
def test_conductances_are_told_apart_by_the_range_unless_thresholds_are_given(siemens: float, state: State) -> None:
    assert classify(siemens, DEVICE, Thresholds()) == state
    assert classify(np.float32(siemens), DEVICE, Thresholds()) == state, "as float32 files hold it"


@given(
    st.lists(st.floats(0, 1e-3), min_size=4, max_size=4).map(sorted),
    st.lists(st.floats(0, 1e-3), min_size=1, max_size=20),
)
def test_thresholds_say_where_states_end(ends: list[float], siemens: list[float]) -> None:
    unformed, hrs, lrs, overformed = ends
    found = classify(
        siemens, DEVICE, Thresholds(unformed=unformed, stuck_hrs=hrs, stuck_lrs=lrs, overformed=overformed)
    )
    for value, state in zip(siemens, found, strict=True):
        if any(math.isclose(value, end, rel_tol=1e-5) for end in ends):
            continue
        low = State.UNFORMED if value < unformed else State.STUCK_HRS if value < hrs else State.OK
        high = State.OVERFORMED if value > overformed else State.STUCK_LRS if value > lrs else State.OK
        assert state == (low or high)


# -- npz --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int16])
def test_states_alone_get_the_conductances_of_the_spec(tmp_path: Path, dtype: type[np.generic]) -> None:
    spec = SPEC.with_fields({"failures.stuck_hrs.conductance": "2 uS"})
    states = some_states()
    found = read_map(npz(tmp_path, states=states.astype(dtype)), spec)
    np.testing.assert_array_equal(found.faults.states, states)
    nominal = np.array([np.nan, 0.0, 100e-6, 2e-6, 100e-6])
    np.testing.assert_array_equal(found.faults.conductance, nominal[states[states > 0]])
    assert found.seed is None


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_conductances_alone_are_classified(tmp_path: Path, dtype: type[np.generic]) -> None:
    values = np.full((2, ROWS, COLS), GOOD)
    values[0, 1, 2], values[0, 3, 5], values[1, 0, 0], values[1, 2, 4] = 0.0, 0.7e-6, 110e-6, 500e-6
    found = read_map(npz(tmp_path, conductance=values.astype(dtype)), SPEC).faults
    wanted = {(0, 1, 2): 1, (0, 3, 5): 3, (1, 0, 0): 4, (1, 2, 4): 2}
    assert {tuple(place): found.states[tuple(place)] for place in np.argwhere(found.states).tolist()} == wanted
    np.testing.assert_allclose(found.conductance, [0.0, 0.7e-6, 110e-6, 500e-6], rtol=1e-6)


def test_of_both_the_states_count_and_failed_devices_take_their_conductance(tmp_path: Path) -> None:
    states = some_states()
    values = np.random.default_rng(1).random(states.shape) * 1e-3
    values[states == 0] = np.nan  # what is given for good devices is not read
    found = read_map(npz(tmp_path, states=states, conductance=values)).faults
    np.testing.assert_array_equal(found.states, states)
    np.testing.assert_array_equal(found.conductance, values[states > 0])


def test_a_map_of_two_dimensions_is_one_array(tmp_path: Path) -> None:
    states = some_states(1)
    values = np.where(states == 0, GOOD, 1e-3)
    for arrays in ({"states": states}, {"conductance": values}, {"states": states, "conductance": values}):
        flat = read_map(npz(tmp_path, **{name: one[0] for name, one in arrays.items()}), SPEC).faults
        assert flat == read_map(npz(tmp_path, **arrays), SPEC).faults


@pytest.mark.parametrize("arrays", [{"states": np.ones((1, ROWS, COLS), int)}, {"conductance": np.ones((ROWS, COLS))}])
def test_what_only_a_spec_knows_needs_one(tmp_path: Path, arrays: dict[str, Any]) -> None:
    with pytest.raises(ChipError, match=r"does not say .*; give the spec \(--spec\)"):
        read_map(npz(tmp_path, **arrays))


def test_a_map_without_failures_needs_no_spec(tmp_path: Path) -> None:
    assert read_map(npz(tmp_path, states=np.zeros((2, 3, 4), int))).faults.failed == 0


def test_arrays_after_the_last_measured_one_are_good(tmp_path: Path) -> None:
    path = npz(tmp_path, states=some_states())
    found = read_map(path, SPEC, arrays=5).faults
    assert found.shape == (5, ROWS, COLS)
    assert not found.states[2:].any()
    np.testing.assert_array_equal(found.states[:2], some_states())
    with pytest.raises(ChipError, match="at most the 1 arrays of the chip"):
        read_map(path, SPEC, arrays=1)
    with pytest.raises(ChipError, match="at most 268435456 devices"):
        read_map(path, SPEC, arrays=1 << 40)


S = np.ones((2, ROWS, COLS), np.uint8)
G = np.full((2, ROWS, COLS), GOOD)


def at(values: npt.NDArray[Any], value: float) -> npt.NDArray[Any]:
    changed = values.astype(type(value)) if values.dtype == np.uint8 else values.copy()
    changed[1, 2, 3] = value
    return changed


BAD_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "must hold an array 'states' or 'conductance'"),
    "only a seed": ({"seed": np.zeros(4, np.uint32)}, "must hold an array 'states' or 'conductance'"),
    "misspelt": ({"state": S}, "array 'state' is none of a map; did you mean 'states'"),
    "foreign": ({"states": S, "x": S}, "array 'x' is none of a map; a map has states, conductance, seed"),
    "float states": ({"states": S.astype(float)}, "array 'states' must be whole numbers"),
    "bool states": ({"states": S > 0}, "array 'states' must be whole numbers"),
    "names": ({"states": np.array([["ok", "unformed"]])}, "must be an array of numbers"),
    "objects": ({"states": np.array([[None]])}, "never used"),
    "unknown state": ({"states": at(S, 5)}, "device at array 1, row 2, col 3 must have a state from 0 to 4, not 5"),
    "negative state": ({"states": at(S, -1)}, "device at array 1, row 2, col 3 must have a state from 0 to 4, not -1"),
    "state of 256": ({"states": at(S, 256)}, "from 0 to 4, not 256"),
    "flat": ({"states": S.ravel()}, r"must be \(arrays, rows, cols\) or \(rows, cols\)"),
    "four dimensions": ({"conductance": G[None]}, r"array 'conductance' must be \(arrays, rows, cols\)"),
    "no devices": ({"states": np.zeros((0, ROWS, COLS), int)}, "with 1 to 268435456 devices"),
    "negative": ({"conductance": at(G, -1e-9)}, "array 1, row 2, col 3 must have a finite .* 0 S, not -1e-09"),
    "NaN": ({"conductance": at(G, math.nan)}, "array 1, row 2, col 3 must have a finite .*, not nan"),
    "infinite": ({"conductance": at(G, math.inf)}, "array 1, row 2, col 3 must have a finite .*, not inf"),
    "NaN of a failed one": (
        {"states": S, "conductance": at(G, math.nan)},
        "device at array 1, row 2, col 3 must have a finite conductance",
    ),
    "bool conductances": ({"conductance": G > 0}, "array 'conductance' must be numbers"),
    "another shape": ({"states": S, "conductance": G[:1]}, "array 'conductance' must be of the shape of 'states'"),
    "too few packed": ({"states": S, "conductance": np.zeros(3)}, "each of its 48 failed devices, not 3"),
    "seed of two words": ({"states": S, "conductance": G, "seed": np.zeros(2, np.uint32)}, "four words of uint32"),
    "seed of floats": ({"states": S, "conductance": G, "seed": np.zeros(4)}, "four words of uint32"),
    "another array": ({"states": S[:, :3]}, "must have arrays of 4x6 for rram-128, not '3x6'"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_file_of_arrays_that_makes_no_sense_is_refused(tmp_path: Path, case: str) -> None:
    arrays, reason = BAD_NPZ[case]
    with pytest.raises(ChipError, match=reason) as found:
        read_map(npz(tmp_path, **arrays), SPEC)
    assert str(found.value).startswith(f"fault map {tmp_path / 'map.npz'}")
    assert "\n" not in str(found.value)


def test_an_absurd_size_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_map, "MAX_DEVICES", 2 * ROWS * COLS - 1)
    with pytest.raises(ChipError, match="with 1 to 47 devices"):
        read_map(npz(tmp_path, states=S), SPEC)
    with pytest.raises(ChipError, match="line 2, array must be a whole number from 0 to 0"):
        read_map(csv(tmp_path, "array,row,col,state\n1,0,0,1\n"), SPEC)
    monkeypatch.setattr(measured_csv, "MAX_CSV_BYTES", 10)
    with pytest.raises(ChipError, match="at most 10 bytes"):
        read_map(csv(tmp_path, "array,row,col,state\n1,0,0,1\n"), SPEC)


# -- csv --------------------------------------------------------------------------------------------------------------


def test_a_table_lists_devices_and_the_others_are_good(tmp_path: Path) -> None:
    text = "array,row,col,state\n1,3,5,stuck_lrs\n0,0,1,1\n\n0,2,2, ok\n1,0,0,STUCK_HRS\n"
    found = read_map(csv(tmp_path, text), SPEC).faults
    wanted = np.zeros((2, ROWS, COLS), np.uint8)
    wanted[1, 3, 5], wanted[0, 0, 1], wanted[1, 0, 0] = State.STUCK_LRS, State.UNFORMED, State.STUCK_HRS
    np.testing.assert_array_equal(found.states, wanted)
    np.testing.assert_array_equal(found.conductance, [0.0, 1e-6, 100e-6])


def test_columns_come_in_any_order_and_conductances_with_units(tmp_path: Path) -> None:
    text = "\ufeffconductance,col,row,array\r\n4.2 uS,1,0,0\r\n0.2e-6,2,1,0\r\n1 mS,3,0,1\r\n0.7uS,0,0,0\r\n"
    found = read_map(csv(tmp_path, text), SPEC).faults
    states = {(0, 1, 2): State.UNFORMED, (1, 0, 3): State.OVERFORMED, (0, 0, 0): State.STUCK_HRS}
    assert {tuple(place): found.states[tuple(place)] for place in np.argwhere(found.states).tolist()} == states
    np.testing.assert_allclose(found.conductance, [0.7e-6, 0.2e-6, 1e-3])


def test_of_state_and_conductance_either_may_be_left_out_in_a_line(tmp_path: Path) -> None:
    text = "array,row,col,state,conductance\n0,0,0,stuck_hrs,\n0,0,1,,2e-4\n0,0,2,stuck_hrs,3e-6\n0,0,3,ok,9e-4\n"
    found = read_map(csv(tmp_path, text), SPEC).faults
    np.testing.assert_array_equal(found.states[0, 0], [3, 2, 3, 0, 0, 0])
    np.testing.assert_array_equal(found.conductance, [1e-6, 2e-4, 3e-6])


def test_a_table_without_lines_is_a_good_array(tmp_path: Path) -> None:
    assert read_map(csv(tmp_path, "array,row,col,state\n"), SPEC).faults.shape == (1, ROWS, COLS)


def test_a_matrix_is_one_array(tmp_path: Path) -> None:
    values = np.full((ROWS, COLS), GOOD)
    values[1, 2], values[3, 5] = 0.0, 5e-4
    text = "\n".join(",".join(f"{value:g}" for value in row) for row in values)
    found = read_map(csv(tmp_path, text), SPEC).faults
    assert found == read_map(npz(tmp_path, conductance=values), SPEC).faults
    assert found.failed == 2


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.booleans())
def test_tables_and_arrays_say_the_same(tmp_path_factory: pytest.TempPathFactory, seed: int, named: bool) -> None:
    folder = tmp_path_factory.mktemp("maps")
    states = some_states(3, seed)
    states[2, 0, 0] = 1  # the last array is named
    rng = np.random.default_rng(seed)
    values = rng.random(states.shape) * 1e-3
    places = rng.permutation(np.argwhere(states)).tolist()
    lines = [
        f"{a},{r},{c},{State(states[a, r, c]).name.lower() if named else states[a, r, c]},{float(values[a, r, c])!r}"
        for a, r, c in places
    ]
    found = read_map(csv(folder, "\n".join(["array,row,col,state,conductance", *lines])), SPEC)
    assert found.faults == read_map(npz(folder, states=states, conductance=values)).faults


HEADER = "array,row,col,state\n"
BAD_CSV: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "must hold a table of devices or a matrix of conductances, and is empty"),
    "blank": ("\n ,\n\n", "and is empty"),
    "binary": (bytes(range(128, 256)), "must be text in UTF-8"),
    "zeros": (b"array,row\0", "bytes of 0"),
    "an archive": (b"PK\x03\x04\xff\xfe", "must be text in UTF-8"),
    "quotes": ('array,row,col,state\n0,0,0,"ok\n', "line 2 must be lines of cells with commas"),
    "misspelt column": ("array,rwo,col,state\n", r"line 1, column 'rwo' is none .*; did you mean 'row'"),
    "columns of another kind": ("x;y;z\n", "is none of a table of devices; columns are array, row, col"),
    "column twice": ("array,row,row,col,state\n", "column 'row' must be there once"),
    "no place": ("array,row,state\n", "line 1 must have a column 'col'; it has array, row, state"),
    "no value": ("array,row,col\n", "must have a column 'state' or 'conductance'"),
    "short line": (HEADER + "0,0,0,1\n0,0,1\n", "line 3 must have 4 cells as the header has, not 3"),
    "row outside": (HEADER + "0,4,0,1\n", "line 2, row must be a whole number from 0 to 3, not '4'"),
    "col outside": (HEADER + "0,0,6,1\n", "line 2, col must be a whole number from 0 to 5, not '6'"),
    "array outside": (HEADER + "99999999,0,0,1\n", "line 2, array must be a whole number from 0 to "),
    "huge array": (HEADER + "9" * 5000 + ",0,0,1\n", "line 2, array must be a whole number"),
    "negative": (HEADER + "0,-1,0,1\n", "line 2, row must be a whole number"),
    "fraction": (HEADER + "0,1.0,0,1\n", "line 2, row must be a whole number"),
    "no index": (HEADER + "0,,0,1\n", "line 2, row must be a whole number"),
    "unknown state": (HEADER + "0,0,0,unfromed\n", "line 2, state must be ok, .*; did you mean 'unformed'"),
    "unknown code": (HEADER + "0,0,0,5\n", "line 2, state must be ok, .* or a code from 0 to 4, not '5'"),
    "neither": (HEADER + "0,0,0,\n", "line 2 must give a state or a conductance, and gives neither"),
    "twice": (HEADER + "0,0,0,1\n\n0,0,1,1\n0,0,0,1\n", "line 5 must name .*, and line 2 names the same"),
    "negative siemens": ("array,row,col,conductance\n0,0,0,-1e-6\n", "line 2, conductance must be a finite"),
    "NaN siemens": ("array,row,col,conductance\n0,0,0,nan\n", "line 2, conductance must be a finite"),
    "infinite siemens": ("array,row,col,conductance\n0,0,0,inf\n", "line 2, conductance must be a finite"),
    "ohms": ("array,row,col,conductance\n0,0,0,5 kohm\n", "conductance must be a quantity in siemens"),
    "no number": ("array,row,col,conductance\n0,0,0,low\n", "line 2, conductance must be text such as"),
    "ragged matrix": ("1e-6,1e-6\n1e-6\n", "line 2 must have 2 cells as the first line has, not 1"),
    "matrix with a word": ("1e-6,1e-6\n1e-6,x\n", "line 2, cell 2 must be text such as"),
    "matrix with a negative": ("1e-6,1e-6\n-1,1e-6\n", "line 2, cell 1 must be a finite conductance"),
    "matrix with NaN": ("nan,1e-6\n", "line 1, cell 1 must be a finite conductance"),
    "matrix with a gap": ("1e-6,,1e-6\n", "line 1, cell 2 must be"),
    "another size": ("1e-6,1e-6\n1e-6,1e-6\n", "must have arrays of 4x6 for rram-128, not '2x2'"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_text_that_makes_no_sense_is_refused_by_its_line(tmp_path: Path, case: str) -> None:
    text, reason = BAD_CSV[case]
    with pytest.raises(ChipError, match=reason) as found:
        read_map(csv(tmp_path, text), SPEC)
    assert len(str(found.value)) < 600


def test_a_text_needs_a_spec(tmp_path: Path) -> None:
    with pytest.raises(ChipError, match="give the spec"):
        read_map(csv(tmp_path, HEADER))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: folder / "none.npz", "cannot be read"),
        (lambda folder: folder / "none.csv", "cannot be read"),
        (lambda folder: folder, "must be a .npz or .csv file"),
        (lambda folder: folder / "map.txt", "must be a .npz or .csv file, not '.txt'"),
        (lambda folder: csv(folder, b"PK\x03\x04rubbish").rename(folder / "x.npz"), "cannot be read"),
        (lambda folder: csv(folder, b"").rename(folder / "y.npz"), "cannot be read"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    with pytest.raises(ChipError, match=reason):
        read_map(make(tmp_path), SPEC)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([".csv", ".npz"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("maps") / f"map{suffix}"
    path.write_bytes(content)
    said = ""
    try:
        read_map(path, SPEC)
    except ChipError as error:
        said = str(error)
    assert "\n" not in said
