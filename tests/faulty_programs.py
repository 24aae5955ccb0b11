"""Models compiled for chips whose failed devices are known, and what their mappings cost, worked out anew."""

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from small_programs import SmallModel, small_spec

from compiler.compile import CompileOptions, finish, run_compile
from compiler.frontend import load_model
from compiler.mapping import Mapping
from compiler.moments import RIDGE
from hwspec.chip import Chip
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram

Float64 = npt.NDArray[np.float64]


@st.composite
def faulty_specs(draw: st.DrawFn, *, isolations: tuple[str, ...] = ("none", "line", "device")) -> HardwareSpec:
    """Every way in which weights become devices, and devices that fail in every way; converters are ideal."""
    pairing = draw(st.sampled_from(["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"]))
    kind = draw(st.sampled_from(["continuous", "uniform", "sliced", "listed"]))
    levels: Any = draw(st.integers(2, 16))
    if kind == "listed":
        inner = sorted(draw(st.sets(st.integers(1, 19), max_size=4)))
        levels = [1e-6, *(1e-6 + 99e-6 * share / 20 for share in inner), 100e-6]
    share = st.sampled_from([0.0, 0.02, 0.1, 0.2])
    isolation = draw(st.sampled_from([one for one in isolations if one != "device" or pairing != "reference"]))
    fields: dict[str, object] = {
        "device.levels": None if kind == "continuous" else levels,
        "device.r_access": draw(st.sampled_from([0.0, 2e3])),
        "array.rows": 2 * draw(st.integers(2, 6)),
        "array.cols": 2 * draw(st.integers(2, 6)),
        "array.pairing": pairing,
        "array.slices": 2 if kind == "sliced" else 1,
        "array.router": draw(st.booleans()),
        "periphery.dac_bits": None,
        "periphery.adc_bits": None,
        "periphery.residue": draw(st.sampled_from([0.0, 0.02])),
        "array.cell": "2T2R" if isolation == "device" else "1T1R",
        "failures.isolation": isolation,
        "failures.unformed.rate": draw(share),
        "failures.overformed.rate": draw(share),
        "failures.overformed.conductance": draw(st.sampled_from([None, 300e-6])),
        "failures.overformed.isolatable": draw(st.booleans()),
        "failures.stuck_hrs.rate": draw(share),
        "failures.stuck_lrs.rate": draw(share),
        "failures.lines.bit_failed": draw(st.sampled_from([0.0, 0.1])),
        "failures.allow_unbounded": True,
    }
    return small_spec(fields)


def chip_for(program: TileProgram, seed: int, spare_sites: int = 0, replicas: int = 1) -> Chip:
    """A sampled chip that a program fits on, with some sites to spare."""
    arrays = replicas * program.arrays + spare_sites * program.spec.array.arrays_per_site
    return Chip.sample(program.spec, arrays, seed)


def compile_for(
    model: SmallModel, spec: HardwareSpec, chip: Chip | None, options: CompileOptions | None = None
) -> tuple[Mapping, TileProgram]:
    """The mapping of a model for a chip, and its program; calibrated on random inputs."""
    outcome = run_compile(load_model(model.proto), spec, options or CompileOptions(), None, chip)
    return outcome.mapping, finish(outcome)


def weighting(program: TileProgram, layer: str, *, centred: bool) -> Float64:
    """``H`` of the rows of each group, ``(groups, K, K)``, from the calibration record; all covariances are whole."""
    table = program.layers[layer]
    covariance = program.calibration[f"{layer}/covariance"].astype(np.float64)
    mean = program.calibration[f"{layer}/mean"].astype(np.float64).reshape(table.groups, table.rows)
    assert len(covariance) == table.groups
    found = covariance[:, : table.rows, : table.rows]
    if not centred:
        found = found + mean[:, :, None] * mean[:, None, :]
    ridge = RIDGE * np.trace(found, axis1=1, axis2=2) / table.rows
    result: Float64 = found + np.maximum(ridge, 1e-30)[:, None, None] * np.eye(table.rows)
    return result


def column_costs(program: TileProgram, layer: str, *, centred: bool) -> Float64:
    """``e' H e`` of every column of a layer's groups, ``(groups, N)``, from what the program's devices conduct."""
    error = program.decoded_weights(layer) - program.weights[layer].astype(np.float64)
    found: Float64 = np.einsum("gkn,gkl,gln->gn", error, weighting(program, layer, centred=centred), error)
    return found


def block_costs(mapping: Mapping, program: TileProgram, layer: str, *, centred: bool) -> Float64:
    """The same summed over the columns of each column block, ``(groups, column blocks)``."""
    costs = column_costs(program, layer, centred=centred)
    return np.stack([costs[:, cols].sum(1) for cols in mapping.grids[layer].col_blocks], axis=1)
