"""Figures of a compiled layer on a chip: each effect alone, and the controller's trim."""

from collections.abc import Mapping

import numpy as np
import onnx
from matplotlib.figure import Figure
from onnx import TensorProto, helper, numpy_helper

from compiler.compile import CompileOptions
from hwspec.chip import Chip
from hwspec.effects import EFFECTS
from hwspec.spec import HardwareSpec
from runtime.physics.spread import DAY
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.quantize import Float64
from runtime.reference import Reference
from studies.plot_style import BLUE, GREY, ORANGE, RED, Effort, label, panels
from xbarc.api import compile_model

EVERYTHING: Mapping[str, object] = {
    "device.spread": {"model": "constant", "sigma": 1e-6},
    "device.programming.failure_rate": 0.002,
    "failures.stuck_hrs.rate": 0.005,
    "failures.retention": {"state": "stuck_hrs", "lifetime": 2e7},
    "device.drift.model": "cmo_hfox",
    "device.temperature": 60.0,
    "device.temperature_coefficient": -0.001,
    "device.r_access": 1000.0,
    "device.levels": None,
    "device.iv": {"model": "sinh", "alpha": 3.0, "asymmetry": 0.05},
    "periphery.input_coding": "amplitude",
    "device.telegraph": {"amplitude": 0.05},
    "array.r_word": 0.5,
    "array.r_bit": 0.5,
    "array.unused": 20e-6,
    "array.unselected": "floating",
    "periphery.dac_nonlinearity": 0.1,
    "periphery.sense_offset_sigma": 2e-4,
    "periphery.saturation": 0.1,
    "periphery.readout_noise": 0.5,
    "periphery.adc_inl_sigma": 1.0,
    "periphery.adc_dnl_sigma": 0.2,
    "device.g_min": 9e-6,
    "device.g_max": 88.2e-6,
}
"""A made-up technology that has every effect."""


def effects(effort: Effort) -> Figure:
    """Error of one layer with each effect alone (``--only NAME``), and with all of them."""
    spec = _spec(effort, EVERYTHING)
    program, x, wanted = _layer(spec)
    sets = {name: {name} for name in EFFECTS if name not in ("adc_errors", "trim")}
    sets |= {"adc, adc_errors": {"adc", "adc_errors"}, "all of them": set(EFFECTS)}
    errors = [100 * _error(program, x, wanted, keep) for keep in sets.values()]
    figure, (axis,) = panels("relative error of a layer with one effect alone", height=4.2)
    places = np.arange(len(errors))[::-1]
    axis.barh(places, errors, color=[BLUE] * (len(errors) - 1) + [RED])
    axis.set_yticks(places, labels=list(sets))
    axis.set_xscale("log")
    axis.set_xlim(0.1, 50)
    axis.set_xticks([0.1, 1, 10], labels=["0.1", "1", "10"])
    for place, error in zip(places, errors, strict=True):
        if error < 0.1:
            axis.text(0.11, place, "below 0.1: alike in both devices of every pair", va="center", color=GREY)
    axis.grid(visible=False, axis="y")
    label(axis, "error of the products, % of their norm", "", legend=None)
    return figure


def trim(effort: Effort) -> Figure:
    """Products of a chip before and after its trim, and what each kind of trim leaves."""
    figure, (left, right) = panels("products of a chip", "error of the products")
    kinds: tuple[tuple[str, dict[str, object]], ...] = (
        ("none", {}),
        ("gain: tile", {"periphery.trim.gain": "tile"}),
        ("gain: column", {"periphery.trim.gain": "column"}),
        ("offset", {"periphery.trim.offset": True}),
        ("column, offset", {"periphery.trim.gain": "column", "periphery.trim.offset": True}),
    )
    base: dict[str, object] = {
        "device.r_access": 1000.0,
        "device.levels": None,
        "periphery.gain_sigma": 0.05,
        "periphery.offset_sigma": 2.0,
        "periphery.trim.vectors": 64,
    }
    errors = []
    for name, fields in kinds:
        program, x, wanted = _layer(_spec(effort, base | fields))
        got = _run(program, x, None)
        errors.append(_relative(got, wanted))
        if name in ("none", "column, offset"):
            colour, text = (GREY, "before") if name == "none" else (ORANGE, "gain a column, offset")
            some = np.s_[:8, ::3]
            left.plot(wanted[some].ravel(), got[some].ravel(), ".", markersize=4, color=colour, label=text)
    left.axline((0, 0), slope=1, color=RED, linewidth=0.8)
    label(left, "wanted", "computed", legend="upper left")
    places = np.arange(len(kinds))[::-1]
    right.barh(places, 100 * np.array(errors), color=[GREY, BLUE, BLUE, BLUE, ORANGE])
    right.set_yticks(places, labels=[name for name, _ in kinds])
    right.grid(visible=False, axis="y")
    label(right, "%", "", legend=None)
    return figure


def _spec(effort: Effort, fields: Mapping[str, object]) -> HardwareSpec:
    side = max(effort.side // 2, 32)
    flat: dict[str, object] = {"array.rows": side, "array.cols": side}
    for path, value in fields.items():
        flat |= {f"{path}.{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {path: value}
    return HardwareSpec.preset("rram-128").with_fields(flat)


def _layer(spec: HardwareSpec) -> tuple[TileProgram, Float64, Float64]:
    """A program of one matrix product that fills most of an array, inputs for it, and their products."""
    return matrix_program(spec, spec.array.rows * 3 // 4)


def matrix_program(spec: HardwareSpec, rows: int) -> tuple[TileProgram, Float64, Float64]:
    """A program of the product with a square matrix, for any chip; inputs for it, and their products."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((rows, rows)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")],
        "one layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    calibration, x = (rng.standard_normal((count, rows)).astype(np.float32).clip(-2, 2) for count in (256, 64))
    # Moved targets would make up for wires that an ablation takes away, raised pairs for its failed devices.
    options = CompileOptions(predistort=False, robust=False)
    program = compile_model(model, spec, {"x": calibration}, options=options)
    return program, x.astype(np.float64), x.astype(np.float64) @ weight


def _run(program: TileProgram, x: Float64, keep: set[str] | None) -> Float64:
    chip = Chip.sample(program.spec, program.arrays, seed=3)
    programmed = program_chip(program, chip, effects=keep, seconds=DAY)
    return np.asarray(Reference(programmed)({"x": x.astype(np.float32)})[0], np.float64)


def _error(program: TileProgram, x: Float64, wanted: Float64, keep: set[str]) -> float:
    return _relative(_run(program, x, keep), wanted)


def _relative(got: Float64, wanted: Float64) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


FIGURES = {"effects": effects, "trim": trim}
"""By the name of their file."""
