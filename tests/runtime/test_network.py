"""Non-ohmic devices, biased and floating lines: against the ohmic march, dense Newton solves and limits."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import KINDS, LAWS, R_DRIVER, R_SENSE, crossbar, nodal, off, shape, with_ends

from hwspec.errors import DataError
from runtime.physics import network
from runtime.physics.network import CurrentVoltage, Model, NetworkCurrents, solve_currents, solve_network
from runtime.physics.wires import effective_matrix

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
NOTHING = 1e-17
"""Amperes that are none, where a network has no others: what rounding leaves of 10 mS at a volt."""
SHAPES = [(1, 1), (1, 6), (6, 1), (5, 9), (9, 6), (8, 8)]


@pytest.fixture(params=["compiled", "numpy"])
def sweeps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of sweeping."""
    _choose(monkeypatch, str(request.param))
    return str(request.param)


def _choose(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    if which == "compiled":
        pytest.importorskip("numba")
        return
    monkeypatch.setattr(network, "kernels", lambda: None)


def balanced(found: NetworkCurrents, tolerance: float = 1e-8) -> bool:
    """Whether what the drivers give is what is sensed."""
    largest = max(np.abs(found.sensed).max(), np.abs(found.driven).max())
    return bool(np.abs(found.sensed.sum(-1) - found.driven.sum(-1)).max() <= tolerance * largest + NOTHING)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ohms", [0.0, 0.1, 1.0, 100.0, 1e4])
@pytest.mark.usefixtures("sweeps")
def test_ohmic_devices_give_the_exact_matrix(kind: str, ohms: float) -> None:
    """Of `wires.effective_matrix`, to the tolerance, and tighter where that is; Kirchhoff's law of the whole array."""
    for m, n in SHAPES:
        G, rw, rb = crossbar(kind, m, n, ohms)
        volts = np.random.default_rng(1).uniform(-0.2, 0.2, (3, m))
        exact = volts @ effective_matrix(G, rw, rb, 3.0, 7.0).T
        found = solve_network(G, volts, r_word=rw, r_bit=rb, r_driver=R_DRIVER, r_sense=R_SENSE)
        assert np.abs(found.sensed - exact).max() <= 1e-8 * np.abs(exact).max(), (m, n)
        if kind != "broken":
            assert balanced(found)
            tight = solve_currents(G, volts, r_word=rw, r_bit=rb, tolerance=1e-12, r_driver=R_DRIVER, r_sense=R_SENSE)
            assert off(tight, exact) < 1e-11, (m, n)


@pytest.mark.parametrize("iv", [CurrentVoltage(), *LAWS])
@pytest.mark.usefixtures("sweeps")
def test_without_resistance_devices_add_up(iv: CurrentVoltage) -> None:
    for kind in ("random", "sparse", "shorted"):
        G = crossbar(kind, 9, 6, 0.0)[0]
        rng = np.random.default_rng(2)
        volts, sense = rng.uniform(-0.3, 0.3, (4, 9)), rng.uniform(-0.1, 0.1, 6)
        found = solve_network(G, volts, iv, r_word=0.0, r_bit=0.0, sense_volts=sense)
        currents = G * shape(iv, volts[:, :, None] - sense)[0]
        assert off(found.sensed, currents.sum(1)) < 1e-14
        assert off(found.driven, currents.sum(2)) < 1e-14


@pytest.mark.parametrize("iv", LAWS)
@pytest.mark.parametrize("ohms", [0.0, 2.0, 1e3])
def test_devices_of_every_law_equal_a_dense_newton_solve(
    iv: CurrentVoltage, ohms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where rows, columns or both float, and every voltage is another; alpha times the voltage is up to 16."""
    rng = np.random.default_rng(3)
    no_rows, no_cols = np.zeros(6, np.bool_), np.zeros(5, np.bool_)
    some_rows, some_cols = np.arange(6) % 3 > 0, np.arange(5) % 2 > 0
    for kind in ("random", "shorted"):
        G, rw, rb = crossbar(kind, 6, 5, ohms, seed=4)
        volts, sense = rng.uniform(-0.3, 0.3, 6), rng.uniform(-0.1, 0.1, 5)
        for rows, cols in ((no_rows, no_cols), (some_rows, no_cols), (no_rows, some_cols), (some_rows, some_cols)):
            sensed, driven = nodal(G, *with_ends(rw, rb, rows, cols), volts, sense, iv)
            for compiled in (network.kernels(), None):
                with monkeypatch.context() as patch:
                    patch.setattr(network, "kernels", lambda compiled=compiled: compiled)
                    found = solve_network(
                        G,
                        volts,
                        iv,
                        r_word=rw,
                        r_bit=rb,
                        r_driver=R_DRIVER,
                        r_sense=R_SENSE,
                        sense_volts=sense,
                        floating_rows=rows,
                        floating_cols=cols,
                    )
                assert off(found.sensed, sensed) < 1e-8, (kind, rows, cols)
                assert off(found.driven, driven) < 1e-8, (kind, rows, cols)
                assert balanced(found)
                assert not found.sensed[cols].any()
                assert not found.driven[rows].any()


@pytest.mark.parametrize("iv", [CurrentVoltage(), CurrentVoltage("sinh", 8.0, 0.2)])
@pytest.mark.parametrize("ohms", [0.0, 5.0])
@pytest.mark.usefixtures("sweeps")
def test_schemes_of_reading_one_device(iv: CurrentVoltage, ohms: float) -> None:
    """Others grounded, floating, at V/2, or rows at V/3 and columns at 2V/3; a sneak path adds to what is read."""
    G, rw, rb = crossbar("random", 6, 5, ohms, seed=5)
    G[2, 1], v = 1e-6, 0.4
    rows, cols = np.arange(6) != 2, np.arange(5) != 1
    none = np.zeros(6, np.bool_), np.zeros(5, np.bool_)
    schemes = {
        "grounded": (0.0, 0.0, *none),
        "floating": (0.0, 0.0, rows, cols),
        "half": (v / 2, v / 2, *none),
        "third": (v / 3, 2 * v / 3, *none),
    }
    read = {}
    for name, (row_volts, col_volts, free_rows, free_cols) in schemes.items():
        volts, sense = np.where(rows, row_volts, v), np.where(cols, col_volts, 0.0)
        expected, _ = nodal(G, *with_ends(rw, rb, free_rows, free_cols), volts, sense, iv)
        found = solve_currents(
            G,
            volts,
            iv,
            r_word=rw,
            r_bit=rb,
            r_driver=R_DRIVER,
            r_sense=R_SENSE,
            sense_volts=sense,
            floating_rows=free_rows,
            floating_cols=free_cols,
        )
        assert off(found, expected) < 1e-8, name
        read[name] = found[1]
    assert read["floating"] > 1.5 * read["grounded"]
    assert read["half"] > read["third"] > read["grounded"]


@pytest.mark.usefixtures("sweeps")
def test_three_devices_around_a_floating_corner_are_in_series() -> None:
    """The textbook's sneak path: one selected device of a 2 x 2 array, no wires, everything else floating."""
    G = np.array([[1e-5, 2e-5], [4e-5, 5e-5]])
    free = np.array([False, True])
    found = solve_currents(G, [0.2, 0.0], r_word=0, r_bit=0, floating_rows=free, floating_cols=free)
    assert found[0] == pytest.approx(0.2 * (1e-5 + 1 / (1 / 2e-5 + 1 / 5e-5 + 1 / 4e-5)), rel=1e-9)
    assert found[1] == 0.0


@pytest.mark.usefixtures("sweeps")
def test_what_hangs_free_carries_nothing() -> None:
    """No end at all, or parts of a network that touch none; a device beyond an open segment."""
    G = crossbar("random", 6, 5, 1.0)[0]
    iv = CurrentVoltage("sinh", 5.0)
    volts = np.linspace(0.1, 0.2, 6)
    all_rows, all_cols = np.ones(6, np.bool_), np.ones(5, np.bool_)
    for r in (0.0, 2.0):
        for rows, cols in ((all_rows, ~all_cols), (~all_rows, all_cols), (all_rows, all_cols)):
            found = solve_network(G, volts, iv, r_word=r, r_bit=r, floating_rows=rows, floating_cols=cols)
            np.testing.assert_array_equal(found.sensed, np.zeros(5))
            if rows.all():
                np.testing.assert_array_equal(found.driven, np.zeros(6))
    dangling = solve_network(G, volts, iv, r_word=2.0, r_bit=np.inf)
    assert np.abs(dangling.driven).max() < 1e-18
    G[:4, :3], G[4:, 3:] = 0.0, 0.0
    apart = np.arange(6) > 3, np.arange(5) < 3
    islands = solve_currents(G, volts, iv, r_word=2.0, r_bit=2.0, floating_rows=apart[0], floating_cols=apart[1])
    assert not islands[:3].any()
    G[4:] = 0.0
    assert off(islands, solve_currents(G, volts, iv, r_word=2.0, r_bit=2.0)) < 1e-9


@pytest.mark.usefixtures("sweeps")
def test_currents_that_are_only_rounding_are_none() -> None:
    """Bit lines that hang free below a voltage that is not theirs at first, with a single driver."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        G, rw, rb = crossbar("random", 4, 5, 300.0, seed)
        G[3], rb[2] = 0.0, np.inf
        G[:3] *= 10 ** rng.uniform(-1, 1, (3, 5))
        free = np.arange(4) != 1
        found = solve_network(G, np.full(4, 0.2), CurrentVoltage("sinh", 5.0), r_word=rw, r_bit=rb, floating_rows=free)
        assert found.sweeps > 0
        assert max(np.abs(found.sensed).max(), np.abs(found.driven).max()) < NOTHING


@pytest.mark.parametrize(
    ("asymmetry", "seeds"), [(-0.999, (45, 112, 403)), (1000.0, (120, 260, 382))], ids=["weak", "strong"]
)
@pytest.mark.usefixtures("sweeps")
def test_rectifiers_converge(asymmetry: float, seeds: tuple[int, ...]) -> None:
    """Networks in which Newton's whole steps go around in circles."""
    iv = CurrentVoltage(asymmetry=asymmetry)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        G, ohms = 10 ** rng.uniform(-7, -3, (6, 5)), 10 ** rng.uniform(-1, 5)
        rows, cols = rng.random(6) < 0.6, rng.random(5) < 0.6
        volts, sense = rng.uniform(-1, 1, 6), rng.uniform(-1, 1, 5)
        found = solve_network(
            G,
            volts,
            iv,
            r_word=ohms,
            r_bit=ohms,
            sense_volts=sense,
            floating_rows=rows,
            floating_cols=cols,
            max_sweeps=400,
        )
        rw, rb = np.full((6, 5), ohms), np.full((6, 5), ohms)
        rw[rows, 0], rb[-1, cols] = np.inf, np.inf
        expected = nodal(G, rw, rb, volts, sense, iv)
        assert off(np.append(found.sensed, found.driven), np.append(*expected)) < 1e-8, seed


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["ohmic", "sinh", "cubic"]),
    st.floats(0, 30),
    st.floats(-0.9, 5),
    st.sampled_from(KINDS[:3]),
    st.integers(1, 7),
    st.integers(1, 7),
    st.floats(-3, 4),
    st.integers(0, 10**6),
)
def test_currents_are_conserved_and_turn_with_the_array(
    model: Model, alpha: float, asymmetry: float, kind: str, m: int, n: int, decade: float, seed: int
) -> None:
    """Drivers and sense nodes exchange their parts: then the same devices see the opposite voltages."""
    iv = CurrentVoltage(model, alpha, asymmetry)
    G, rw, rb = crossbar(kind, m, n, 10**decade, seed)
    rng = np.random.default_rng(seed)
    volts, sense = rng.uniform(-0.5, 0.5, m), rng.uniform(-0.5, 0.5, n)
    rows, cols = rng.random(m) < 0.3, rng.random(n) < 0.3
    found = solve_network(
        G,
        volts,
        iv,
        r_word=rw,
        r_bit=rb,
        r_driver=R_DRIVER,
        r_sense=R_SENSE,
        sense_volts=sense,
        floating_rows=rows,
        floating_cols=cols,
    )
    assert balanced(found)
    # Mirrored, and with the signs of all voltages turned so that every device sees the voltage that it saw.
    turned = solve_network(
        G[::-1, ::-1].T,
        -sense[::-1],
        iv,
        r_word=rb[::-1, ::-1].T,
        r_bit=rw[::-1, ::-1].T,
        r_driver=7.0,
        r_sense=3.0,
        sense_volts=-volts[::-1],
        floating_rows=cols[::-1],
        floating_cols=rows[::-1],
    )
    largest = max(np.abs(found.sensed).max(), np.abs(found.driven).max())
    assert np.abs(turned.driven[::-1] - found.sensed).max() <= 1e-8 * largest + NOTHING
    assert np.abs(turned.sensed[::-1] - found.driven).max() <= 1e-8 * largest + NOTHING


@pytest.mark.parametrize(("size", "ohms"), [(32, 2.0), (64, 1.0)])
@pytest.mark.parametrize("iv", [CurrentVoltage(), CurrentVoltage("sinh", 3.0), CurrentVoltage("cubic", 5.0)])
def test_normal_arrays_take_few_sweeps(size: int, ohms: float, iv: CurrentVoltage) -> None:
    """The figures of ``docs/physics.md``, Wires, 2 to 4 sweeps to 1e-3 and 4 to 9 to 1e-6; an error is as told."""
    G = np.random.default_rng(6).uniform(1e-6, 1e-4, (size, size))
    volts = np.random.default_rng(7).uniform(-0.2, 0.2, (4, size))
    exact = solve_currents(G, volts, iv, tolerance=1e-12, r_word=ohms, r_bit=ohms)
    largest = np.abs(exact).max(1, keepdims=True)
    for tolerance, most in ((1e-3, 4), (1e-6, 9), (1e-9, 12)):
        found = solve_network(G, volts, iv, tolerance=tolerance, max_sweeps=most, r_word=ohms, r_bit=ohms)
        assert found.sweeps.min() >= 2
        assert (np.abs(found.sensed - exact) < tolerance * largest).all()


def hard(m: int) -> Iterator[tuple[Float64, float, Bools]]:
    """Strong shorts, weak wires, all but one of the lines floating."""
    rng = np.random.default_rng(8)
    some = np.arange(m) != m // 3
    for G in (np.where(rng.random((m, m)) < 0.1, 1e-2, rng.uniform(1e-6, 1e-4, (m, m))), np.full((m, m), 1e-2)):
        for ohms in (0.0, 100.0, 1e4):
            yield G, ohms, some
            yield G, ohms, np.zeros(m, np.bool_)


@pytest.mark.parametrize("iv", [CurrentVoltage(), CurrentVoltage("sinh", 40.0, -0.5), CurrentVoltage("cubic", 100.0)])
def test_shorts_and_weak_wires_converge(iv: CurrentVoltage) -> None:
    """As the tolerance tells: a tighter one changes no current by more; alpha times the voltage is up to 40."""
    volts = np.random.default_rng(9).uniform(-0.5, 0.5, 24)
    for G, ohms, free in hard(24):
        found, tight = (
            solve_network(
                G,
                volts,
                iv,
                r_word=ohms,
                r_bit=ohms,
                r_driver=5.0,
                floating_rows=free,
                floating_cols=free[::-1],
                tolerance=tolerance,
            )
            for tolerance in (1e-9, 3e-11)
        )
        largest = max(np.abs(tight.sensed).max(), np.abs(tight.driven).max())
        assert np.abs(found.sensed - tight.sensed).max() < 1e-8 * largest, ohms
        assert balanced(found), ohms


def test_what_does_not_converge_is_no_answer() -> None:
    """Neither way, and the error names the vector, the goal, how far it got and what to do."""
    G, rw, rb = crossbar("shorted", 8, 8, 1e4)
    volts = np.where(np.arange(6) == 5, 0.2, np.zeros((8, 1))).T.reshape(2, 3, 8)
    message = r"^vector \[1, 2\] must converge to 1e-09 of its largest current in 3 sweeps, not \d.*; raise max_sweeps"
    iv = CurrentVoltage("sinh", 3.0)
    with pytest.raises(DataError, match=message):
        solve_currents(G, volts, iv, r_word=rw, r_bit=rb, max_sweeps=3)
    with pytest.raises(DataError, match="network must converge"):
        solve_currents(G, volts[1, 2], iv, r_word=rw, r_bit=rb, tolerance=1e-18, max_sweeps=400)


@pytest.mark.usefixtures("sweeps")
def test_a_batch_is_its_vectors() -> None:
    """Bit for bit, whatever the threads; none gives none."""
    (G, rw, rb), iv = crossbar("random", 7, 9, 50.0), CurrentVoltage("sinh", 5.0)
    volts = np.random.default_rng(10).uniform(-0.2, 0.2, (4, 5, 7))
    found = solve_network(G, volts, iv, r_word=rw, r_bit=rb)
    assert found.sensed.shape == (4, 5, 9)
    assert found.driven.shape == (4, 5, 7)
    assert found.sweeps.shape == (4, 5)
    for threads in (1, 3):
        np.testing.assert_array_equal(solve_currents(G, volts, iv, r_word=rw, r_bit=rb, threads=threads), found.sensed)
    for k in np.ndindex(4, 5):
        np.testing.assert_array_equal(solve_currents(G, volts[k], iv, r_word=rw, r_bit=rb), found.sensed[k])
    assert solve_currents(G, np.zeros((0, 7)), iv, r_word=rw, r_bit=rb).shape == (0, 9)
    np.testing.assert_array_equal(solve_currents(G, np.zeros(7), iv, r_word=rw, r_bit=rb), np.zeros(9))


@pytest.mark.parametrize("iv", [CurrentVoltage(), *LAWS])
@pytest.mark.parametrize("kind", ["random", "shorted"])
def test_compiled_and_numpy_agree(iv: CurrentVoltage, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the number of word lines is no multiple of four, and in the number of sweeps."""
    pytest.importorskip("numba")
    G, rw, rb = crossbar(kind, 19, 13, 20.0)
    volts = np.random.default_rng(11).uniform(-0.3, 0.3, (3, 19))
    free = np.arange(19) % 5 == 0
    compiled = solve_network(G, volts, iv, r_word=rw, r_bit=rb, floating_rows=free, sense_volts=0.05)
    _choose(monkeypatch, "numpy")
    numpy = solve_network(G, volts, iv, r_word=rw, r_bit=rb, floating_rows=free, sense_volts=0.05)
    assert off(numpy.sensed, compiled.sensed) < 1e-9
    assert off(numpy.driven, compiled.driven) < 1e-9
    assert np.abs(numpy.sweeps - compiled.sweeps).max() <= 1


GOOD = np.full((2, 3), 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"G": -GOOD}, "G must be finite conductances of at least 0 siemens, not -1e-05"),
        ({"G": np.zeros((4, 2, 3))}, r"G must have the shape \(M, N\), not \(4, 2, 3\)"),
        ({"volts": [0.1, 0.2, 0.3]}, r"volts must have the shape \(..., 2\), one for each word line, not \(3,\)"),
        ({"volts": 0.1}, r"volts must have the shape \(..., 2\)"),
        ({"volts": [0.1, np.nan]}, "volts must be finite voltages, not nan"),
        ({"volts": [0.1, -np.inf]}, "volts must be finite voltages, not -inf"),
        ({"volts": ["a", "b"]}, "volts must be real numbers in volts"),
        ({"volts": [9.0, 0.0], "iv": CurrentVoltage("sinh", 50.0)}, "volts must span at most 200 / alpha, not 9.0"),
        ({"r_word": -1.0}, "r_word must be at least 0 ohms, not -1"),
        ({"r_bit": np.nan}, "r_bit must be at least 0 ohms, not nan"),
        ({"r_driver": -2.0}, "r_driver must be at least 0 ohms, not -2"),
        ({"r_sense": np.nan}, "r_sense must be at least 0 ohms, not nan"),
        ({"r_word": np.ones((3, 2))}, r"r_word must be one number or broadcast to \(2, 3\)"),
        ({"sense_volts": [0.0, 0.0]}, r"sense_volts must be one number or have the shape \(3,\), not \(2,\)"),
        ({"sense_volts": np.nan}, "sense_volts must be finite voltages, not nan"),
        ({"floating_rows": [True]}, r"floating_rows must be \(2,\) of bool, true where a line floats"),
        ({"floating_cols": [0, 1, 1]}, r"floating_cols must be \(3,\) of bool"),
        ({"tolerance": 0.0}, "tolerance must be above 0 and below 1, not 0.0"),
        ({"tolerance": np.nan}, "tolerance must be above 0 and below 1, not nan"),
        ({"max_sweeps": 0}, "max_sweeps must be at least 1, not 0"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"G": GOOD, "volts": [0.1, 0.2], "r_word": 1.0, "r_bit": 1.0}
    with pytest.raises(DataError, match=f"^{message}"):
        solve_currents(**(good | arguments))  # type: ignore[arg-type]
