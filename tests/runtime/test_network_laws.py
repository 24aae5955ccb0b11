"""Laws of devices: shapes and slopes, the ohmic limit, refusals, and ngspice's solution of the same circuit."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from networks import LAWS, crossbar, off, shape

from hwspec.errors import DataError
from runtime.physics.network import CurrentVoltage, Model, solve_currents

Float64 = npt.NDArray[np.float64]


@pytest.mark.parametrize("model", ["sinh", "cubic"])
def test_a_law_without_curvature_is_ohmic(model: Model) -> None:
    G, rw, rb = crossbar("random", 7, 8, 50.0)
    volts = np.linspace(-0.2, 0.2, 7)
    ohmic = solve_currents(G, volts, r_word=rw, r_bit=rb)
    np.testing.assert_array_equal(solve_currents(G, volts, CurrentVoltage(model), r_word=rw, r_bit=rb), ohmic)
    for alpha in (1e-12, 1e-10, 1e-8, 1e-6):
        found = solve_currents(G, volts, CurrentVoltage(model, alpha), r_word=rw, r_bit=rb)
        assert off(found, ohmic) < max(2 * alpha, 1e-9)


@pytest.mark.parametrize("iv", LAWS)
def test_the_shape_passes_through_the_reference_and_has_its_slope(iv: CurrentVoltage) -> None:
    e = np.linspace(-0.4, 0.4, 33) + 1e-3
    assert iv.current_shape(np.array(iv.v_ref)) == pytest.approx(iv.v_ref, rel=1e-14)
    assert iv.current_shape(np.array(-iv.v_ref)) == pytest.approx(-iv.v_ref * (1 + iv.asymmetry), rel=1e-14)
    assert iv.current_shape(np.array(0.0)) == 0.0
    np.testing.assert_allclose(iv.current_shape(e), shape(iv, e)[0], rtol=1e-12, atol=1e-15)
    step = 1e-5
    differences = (iv.current_shape(e + step) - iv.current_shape(e - step)) / (2 * step)
    np.testing.assert_allclose(iv.slope(e), differences, rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "tanh", "model must be one of ohmic, sinh, cubic, not 'tanh'"),
        ("alpha", -1.0, "alpha must be a finite number of at least 0, not -1"),
        ("alpha", np.nan, "alpha must be a finite number of at least 0, not nan"),
        ("alpha", np.inf, "alpha must be a finite number of at least 0, not inf"),
        ("alpha", "3", "alpha must be a finite number of at least 0, not '3'"),
        ("alpha", 2000.0, "alpha must be at most 200 / v_ref, not 2000"),
        ("asymmetry", -1.0, "asymmetry must be a finite number above -1, not -1"),
        ("asymmetry", True, "asymmetry must be a finite number above -1, not True"),
        ("v_ref", 0.0, "v_ref must be a finite number above 0, not 0"),
    ],
)
def test_bad_laws_are_refused_by_name(field: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        replace(CurrentVoltage("sinh"), **{field: value})  # type: ignore[arg-type]


@pytest.mark.peer
@pytest.mark.parametrize("iv", [*LAWS[1:5], CurrentVoltage("cubic", 20.0, 0.7)])
@pytest.mark.parametrize("floats", [False, True])
def test_ngspice(iv: CurrentVoltage, floats: bool, tmp_path: Path) -> None:
    """At most 1e-7 of the largest current (ngspice's own goal is 1e-9), with virtual grounds that are off."""
    if shutil.which("ngspice") is None:
        pytest.skip("ngspice is not installed")
    rng = np.random.default_rng(12)
    rows, cols = (np.arange(8) % 3 == 1) & floats, (np.arange(8) % 4 == 2) & floats
    for ohms in (1.0, 300.0):
        G = crossbar("shorted", 8, 8, ohms)[0]
        volts, sense = rng.uniform(-0.3, 0.3, 8), rng.uniform(-0.05, 0.05, 8)
        found = solve_currents(
            G,
            volts,
            iv,
            r_word=ohms,
            r_bit=2 * ohms,
            r_driver=3.0,
            r_sense=4.0,
            sense_volts=sense,
            floating_rows=rows,
            floating_cols=cols,
        )
        rw, rb = np.full((8, 8), ohms), np.full((8, 8), 2 * ohms)
        rw[:, 0] += 3.0
        rb[-1] += 4.0
        rw[rows, 0], rb[-1, cols] = np.inf, np.inf
        assert off(found, ngspice(G, rw, rb, volts, sense, iv, tmp_path)) < 1e-7, ohms


def ngspice(
    G: Float64, rw: Float64, rb: Float64, volts: Float64, sense: Float64, iv: CurrentVoltage, folder: Path
) -> Float64:
    m, n = G.shape
    lines = ["crossbar"]
    for i in range(m):
        lines.append(f"Vx{i} x{i} 0 {volts[i]:.17g}")
        for j in range(n):
            before = f"u{i}_{j - 1}" if j else f"x{i}"
            after = f"v{i + 1}_{j}" if i + 1 < m else f"s{j}"
            if rw[i, j] < np.inf:
                lines.append(f"Rw{i}_{j} {before} u{i}_{j} {rw[i, j]:.17g}")
            if rb[i, j] < np.inf:
                lines.append(f"Rb{i}_{j} v{i}_{j} {after} {rb[i, j]:.17g}")
            e = f"v(u{i}_{j},v{i}_{j})"
            if iv.model == "sinh":
                law = f"{iv.v_ref / np.sinh(iv.alpha * iv.v_ref):.17g}*sinh({iv.alpha:.17g}*{e})"
            else:
                law = f"{1 / (1 + iv.alpha * iv.v_ref**2):.17g}*{e}*(1+{iv.alpha:.17g}*{e}*{e})"
            side = f"({e}<0 ? {1 + iv.asymmetry:.17g} : 1)"
            lines.append(f"Bg{i}_{j} u{i}_{j} v{i}_{j} i={G[i, j]:.17g}*{side}*{law}")
    lines += [f"Vs{j} s{j} 0 {sense[j]:.17g}" for j in range(n)]
    lines += [".options gmin=1e-40 rshunt=0 reltol=1e-9 abstol=1e-18 vntol=1e-12 itl1=1000"]
    lines += [".control", "set numdgt=16", "op"]
    lines += [f"print i(vs{j})" for j in range(n)]
    lines += ["quit", ".endc", ".end"]
    netlist = folder / "crossbar.cir"
    netlist.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = subprocess.run(["ngspice", "-b", str(netlist)], capture_output=True, text=True, check=False, timeout=120)
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("i(vs"):
            name, value = line.split(" = ")
            found[int(name[4:-1])] = float(value)
    assert sorted(found) == list(range(n)), done.stdout + done.stderr
    return np.array([found[j] for j in range(n)])
