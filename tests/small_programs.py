"""Small models on small arrays: what the tests of mappings, programs and engines compile."""

from collections.abc import Mapping as Table
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compiler.compile import CompileOptions, finish, run_compile
from compiler.frontend import load_model
from compiler.mapping import Mapping, Placement
from compiler.passes.assign import Assign
from compiler.passes.emit import emit
from compiler.passes.place import Place
from compiler.passes.predistort import Predistort
from compiler.passes.ranges import Ranges
from compiler.report import build_report
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram

Array = npt.NDArray[Any]

SMALL: Table[str, object] = {"array.rows": 8, "array.cols": 8}
"""Arrays that a layer of a few dozen weights already fills several of."""


@dataclass(frozen=True)
class SmallModel:
    """A model of one weight-stationary node, and the shape of its input but for the batch."""

    proto: onnx.ModelProto
    shape: tuple[int, ...]

    def inputs(self, seed: int, batch: int = 3) -> Array:
        """Normal inputs."""
        values = np.random.default_rng(seed).standard_normal((batch, *self.shape))
        return values.astype(np.float32)


def one_node(
    op: str,
    weight: Array,
    shape: tuple[int, ...],
    *,
    bias: Array | None = None,
    positive: bool = False,
    **attributes: Any,
) -> SmallModel:
    """A model whose only mapped node is `op` with a constant weight; `positive` puts an Abs before it."""
    constants = {"w": weight.astype(np.float32)} | ({} if bias is None else {"b": bias.astype(np.float32)})
    nodes = [helper.make_node("Abs", ["x"], ["a"], "abs")] if positive else []
    nodes.append(helper.make_node(op, ["a" if positive else "x", *constants], ["y"], "layer", **attributes))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return SmallModel(proto, shape)


def matmul(rows: int, cols: int, *, seed: int = 0, positive: bool = False) -> SmallModel:
    """One MatMul by a normal matrix of this size."""
    weight = np.random.default_rng(seed).standard_normal((rows, cols))
    return one_node("MatMul", weight, (rows,), positive=positive)


def two_matmuls() -> SmallModel:
    """Two layers, one after the other, each a square matrix."""
    weights = np.random.default_rng(0).standard_normal((2, 6, 6)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["h"], "first"),
            helper.make_node("MatMul", ["h", "w1"], ["y"], "second"),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, f"w{number}") for number, weight in enumerate(weights)],
    )
    return SmallModel(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), (6,))


@st.composite
def small_models(draw: st.DrawFn) -> SmallModel:
    """Convolutions of one and two dimensions (groups, depthwise, strides, dilations, padding), their transposes, Gemm,
    MatMul and batched MatMul, with and without bias, for signed and for positive inputs."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    op = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul", "MatMul of batches"]))
    positive = draw(st.booleans())
    if op in ("Gemm", "MatMul"):
        rows, cols = draw(st.integers(1, 20)), draw(st.integers(1, 20))
        weight = generator.standard_normal((rows, cols))
        bias = generator.standard_normal(cols) if op == "Gemm" else None
        return one_node(op, weight, (rows,), bias=bias, positive=positive)
    if op == "MatMul of batches":
        batch, rows, cols = draw(st.integers(2, 3)), draw(st.integers(1, 10)), draw(st.integers(1, 10))
        weight = generator.standard_normal((batch, rows, cols))
        return one_node("MatMul", weight, (batch, 2, rows), positive=positive)
    rank = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 3))
    per_in, per_out = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    outer, inner = (groups * per_out, per_in) if op == "Conv" else (groups * per_in, per_out)
    return one_node(
        op,
        generator.standard_normal((outer, inner, *kernel)),
        (groups * per_in, *[draw(st.integers(5, 6)) for _ in range(rank)]),
        bias=generator.standard_normal(groups * per_out) if draw(st.booleans()) else None,
        positive=positive,
        group=groups,
        strides=[draw(st.integers(1, 2)) for _ in range(rank)],
        dilations=[draw(st.integers(1, 2)) for _ in range(rank)],
        pads=[draw(st.integers(0, 1)) for _ in range(2 * rank)],
    )


@st.composite
def small_specs(draw: st.DrawFn) -> HardwareSpec:
    """Small arrays of pairs of devices with uniform levels, and any converters and drivers."""
    return small_spec(
        {
            "array.rows": draw(st.integers(3, 16)),
            "array.cols": 2 * draw(st.integers(2, 8)),
            "array.pairing": draw(st.sampled_from(["two_arrays", "neighbouring_columns"])),
            "device.levels": draw(st.none() | st.integers(2, 32)),
            "periphery.dac_bits": draw(st.none() | st.integers(2, 8)),
            "periphery.adc_bits": draw(st.none() | st.integers(2, 10)),
            "periphery.signed": draw(st.sampled_from(["bipolar", "two_phase"])),
            "periphery.adc_clip_share": draw(st.sampled_from([0.0, 0.001, 0.1])),
        }
    )


@st.composite
def mapped_specs(draw: st.DrawFn) -> HardwareSpec:
    """Every way in which weights become devices and inputs become digits; the rest is that of the preset."""
    return small_spec(draw(_mapped_fields(1e-6, 100e-6)))


@st.composite
def physical_specs(draw: st.DrawFn, *, lines: bool = True, networks: bool = False) -> HardwareSpec:
    """Every effect that a spec can have, each on or off, over all technologies.

    `lines` allows wires and lines that are not grounded; `networks` asks for devices and lines that no matrix
    describes, which are solved for each vector and so get few input codes.
    """
    name = draw(st.sampled_from(sorted(TECHNOLOGIES)))
    low, high, spreads, drifts, noises = TECHNOLOGIES[name]
    fields = draw(_mapped_fields(low * 1e-6, high * 1e-6))
    fields |= draw(_device_fields(spreads, drifts, noises))
    fields |= draw(_failure_fields(high * 1e-6))
    fields |= draw(_periphery_fields(adc=fields["periphery.adc_bits"] is not None))
    if lines and (networks or draw(st.booleans())):
        fields |= draw(_line_fields())
    rows = fields["array.pairing"] == "neighbouring_rows"
    if networks:
        fields |= draw(_network_fields(solved=rows or _resistive(fields) or fields["array.unselected"] != "grounded"))
    elif not rows and not _resistive(fields) and fields.get("array.unselected", "grounded") == "grounded":
        fields |= draw(_law_fields())
    return small_spec(fields)


TECHNOLOGIES: Table[str, tuple[float, float, list[str], list[str], list[str]]] = {
    "generic": (1, 100, ["none", "constant", "relative", "lognormal"], ["none"], ["none", "constant", "proportional"]),
    "wan2022": (1, 40, ["wan2022", "relative"], ["none", "wan2022"], ["none", "proportional"]),
    "milo": (50, 225, ["milo"], ["none"], ["none", "constant"]),
    "cmo_hfox": (9, 88.2, ["cmo_hfox", "constant"], ["none", "cmo_hfox"], ["none", "cmo_hfox"]),
    "pcm": (0.1, 25, ["pcm", "none"], ["none", "pcm"], ["none", "pcm", "constant"]),
}
"""Range of conductances (uS), and the models of spread, drift and read noise that were measured within it."""

EVERY_EFFECT: Table[str, object] = {
    "array.unselected": "third",
    "array.unused": 2e-6,
    "array.r_word": 2.0,
    "array.r_bit": 1.0,
    "array.r_driver": 20.0,
    "array.r_sense": 10.0,
    "device.g_min": 0.1e-6,
    "device.g_max": 25e-6,
    "device.levels": 4,
    "device.r_access": 1e3,
    "device.spread": {"model": "pcm", "sigma": 0.0},
    "device.programming": {"failure_rate": 0.02, "pulses": 5, "tolerance": 0.5e-6, "relative_tolerance": 0.02},
    "device.drift": {"model": "pcm", "activation_energy": 0.2},
    "device.read_noise": {"model": "pcm", "share": 0.0, "correlation": "per_vector"},
    "device.telegraph": {"amplitude": 0.1, "occupancy": 0.3},
    "device.temperature": 60,
    "device.temperature_coefficient": 1e-3,
    "periphery.dac_bits": 3,
    "periphery.input_bits": 6,
    "periphery.signed": "two_phase",
    "periphery.dac_nonlinearity": 0.1,
    "periphery.gain_sigma": 0.05,
    "periphery.offset_sigma": 0.5,
    "periphery.sense_offset_sigma": 2e-3,
    "periphery.saturation": 0.1,
    "periphery.cubic": 0.05,
    "periphery.compliance": 100e-6,
    "periphery.readout_noise": 0.4,
    "periphery.columns_per_adc": 3,
    "periphery.adc_gain_sigma": 0.02,
    "periphery.adc_offset_sigma": 0.5,
    "periphery.adc_inl_sigma": 1.0,
    "periphery.adc_dnl_sigma": 0.3,
    "periphery.trim": {"gain": "column", "offset": True, "when": "read"},
    "failures.stuck_hrs.rate": 0.02,
    "failures.overformed.rate": 0.02,
    "failures.overformed.conductance": 60e-6,
    "failures.retention.state": "unformed",
    "failures.retention.lifetime": 1000.0,
    "failures.allow_unbounded": True,
}
"""All effects at once, but for a law of current and voltage that is not linear."""


@st.composite
def _mapped_fields(draw: st.DrawFn, g_min: float, g_max: float) -> dict[str, Any]:
    pairing = draw(st.sampled_from(["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"]))
    kind = draw(st.sampled_from(["continuous", "uniform", "sliced", "listed"]))
    levels: Any = None
    if kind == "listed":
        inner = sorted(draw(st.sets(st.integers(1, 19), max_size=4)))
        levels = [g_min, *(g_min + (g_max - g_min) * share / 20 for share in inner), g_max]
    elif kind != "continuous":
        levels = draw(st.integers(2, 16))
    dac_bits = draw(st.none() | st.integers(1, 8))
    serial = dac_bits is not None and (dac_bits == 1 or draw(st.booleans()))
    return {
        "device.g_min": g_min,
        "device.g_max": g_max,
        "device.levels": levels,
        "array.rows": 2 * draw(st.integers(2, 8)) if pairing == "neighbouring_rows" else draw(st.integers(3, 16)),
        "array.cols": 2 * draw(st.integers(2, 8)),
        "array.pairing": pairing,
        "array.slices": draw(st.integers(2, 3)) if kind == "sliced" else 1,
        "periphery.dac_bits": dac_bits,
        "periphery.input_bits": draw(st.integers(max(dac_bits or 0, 2), 8)) if serial else None,
        "periphery.signed": "two_phase" if dac_bits == 1 else draw(st.sampled_from(["bipolar", "two_phase"])),
        "periphery.subtract": "before" if pairing == "neighbouring_rows" else draw(_one_of("before", "after")),
        "periphery.adc_bits": draw(st.none() | st.integers(2, 10)),
        "periphery.offset_sigma": 0.0,
        "periphery.adc_clip_share": draw(_one_of(0.0, 0.001, 0.1)),
    }


def _one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@st.composite
def _device_fields(draw: st.DrawFn, spreads: list[str], drifts: list[str], noises: list[str]) -> dict[str, Any]:
    spread, drift, noise = draw(_one_of(*spreads)), draw(_one_of(*drifts)), draw(_one_of(*noises))
    verified = draw(st.booleans())
    return {
        "device.spread": {
            "model": spread,
            "sigma": 1e-6 if spread == "constant" else 0.0,
            "share": 0.1 if spread == "relative" else 0.0,
            "log_sigma": 0.2 if spread == "lognormal" else 0.0,
            "limits": draw(_one_of("zero", "range")),
        },
        "device.programming": {
            "failure_rate": draw(_one_of(0.0, 0.05)),
            "failed_conductance": draw(_one_of(None, 0.5e-6)),
            **({"pulses": 4, "tolerance": 0.5e-6, "relative_tolerance": 0.02} if verified else {}),
        },
        "device.drift": {
            "model": drift,
            "activation_energy": draw(_one_of(0.0, 0.3)) if drift in ("pcm", "cmo_hfox") else 0.0,
        },
        "device.read_noise": {
            "model": noise,
            "sigma": 1e-6 if noise == "constant" else 0.0,
            "share": 0.05 if noise == "proportional" else 0.0,
            "correlation": draw(_one_of("per_read", "per_vector")),
        },
        "device.telegraph": {
            "amplitude": draw(_one_of(0.0, 0.2)),
            "occupancy": 0.3,
            "correlation_time": draw(_one_of(0.0, 10.0)),
        },
        "device.temperature": draw(_one_of(25.0, 60.0, -10.0)),
        "device.temperature_coefficient": draw(_one_of(0.0, 2e-3)),
        "device.r_access": draw(_one_of(0.0, 2e3)),
    }


@st.composite
def _failure_fields(draw: st.DrawFn, g_max: float) -> dict[str, Any]:
    """Few devices that fail in each way, conducting what no good one does too."""
    return {
        "failures.unformed.rate": draw(_one_of(0.0, 0.05)),
        "failures.overformed.rate": draw(_one_of(0.0, 0.05)),
        "failures.overformed.conductance": draw(_one_of(None, 3 * g_max)),
        "failures.lines.bit_failed": draw(_one_of(0.0, 0.1)),
        "failures.retention.state": draw(_one_of(None, "stuck_lrs")),
        "failures.retention.lifetime": 1e4,
        "failures.allow_unbounded": True,
    }


@st.composite
def _periphery_fields(draw: st.DrawFn, *, adc: bool) -> dict[str, Any]:
    fields = {
        "input_coding": draw(_one_of("pulse_width", "amplitude")),
        "dac_nonlinearity": draw(_one_of(0.0, 0.1, -0.2)),
        "gain_sigma": draw(_one_of(0.0, 0.05)),
        "sense_offset_sigma": draw(_one_of(0.0, 2e-3)),
        "saturation": draw(_one_of(0.0, 0.2)),
        "cubic": draw(_one_of(0.0, 0.2, -0.1)),
        "compliance": draw(_one_of(None, 20e-6)),
        "columns_per_adc": draw(st.integers(1, 8)),
        "adc_gain_sigma": draw(_one_of(0.0, 0.03)),
        "trim": {
            "gain": draw(_one_of("none", "tile", "column")),
            "offset": draw(st.booleans()),
            "vectors": 8,
            "when": draw(_one_of("programming", "read")),
        },
    }
    if adc:
        fields |= {
            "offset_sigma": draw(_one_of(0.0, 0.5)),
            "readout_noise": draw(_one_of(0.0, 0.5)),
            "adc_offset_sigma": draw(_one_of(0.0, 0.5)),
            "adc_inl_sigma": draw(_one_of(0.0, 1.0)),
            "adc_dnl_sigma": draw(_one_of(0.0, 0.4)),
        }
    return {f"periphery.{name}": value for name, value in fields.items()}


@st.composite
def _line_fields(draw: st.DrawFn) -> dict[str, Any]:
    unselected = draw(_one_of("grounded", "floating", "half", "third"))
    return {
        "array.unselected": unselected,
        "array.unused": draw(_one_of(0.0, 3e-6)),
        "array.r_word": draw(_one_of(0.0, 2.0)),
        "array.r_bit": draw(_one_of(0.0, 3.0)),
        "array.r_driver": draw(_one_of(0.0, 30.0)),
        "array.r_sense": draw(_one_of(0.0, 20.0)),
        "array.wire_model": draw(_one_of("exact", "closed_form")) if unselected == "grounded" else "exact",
    }


def _resistive(fields: Table[str, Any]) -> bool:
    return any(fields.get(f"array.{name}", 0) for name in ("r_word", "r_bit", "r_driver", "r_sense"))


@st.composite
def _law_fields(draw: st.DrawFn) -> dict[str, Any]:
    model = draw(_one_of("ohmic", "sinh", "cubic"))
    alpha = 0.0 if model == "ohmic" else draw(_one_of(1.0, 6.0))
    asymmetry = draw(_one_of(0.0, 0.3, -0.2))
    bent = {"periphery.sense_offset_sigma": 0.0} if alpha or asymmetry else {}
    return {"device.iv": {"model": model, "alpha": alpha, "asymmetry": asymmetry}, **bent}


@st.composite
def _network_fields(draw: st.DrawFn, *, solved: bool) -> dict[str, Any]:
    """A law that is not linear, wires where nothing else asks for a network, and few codes."""
    found = {"device.iv": {"model": draw(_one_of("sinh", "cubic")), "alpha": 4.0, "asymmetry": draw(_one_of(0.0, 0.2))}}
    bits = draw(_one_of(2, 3))
    serial = {"periphery.dac_bits": bits, "periphery.input_bits": draw(_one_of(None, 4))}
    return found | serial | ({} if solved else {"array.r_word": 2.0})


def small_spec(fields: Table[str, object] | None = None) -> HardwareSpec:
    """The preset `rram-128` with arrays of 8x8, and these fields (or sections, as mappings of their fields)."""
    flat: dict[str, object] = {}
    for path, value in {**SMALL, **(fields or {})}.items():
        flat |= {f"{path}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {path: value}
    return HardwareSpec.preset("rram-128").with_fields(flat)


def compile_small(model: SmallModel, spec: HardwareSpec | None = None, seed: int = 0) -> TileProgram:
    """The program of a model, calibrated on random inputs."""
    return finish(run_compile(load_model(model.proto), spec or small_spec(), CompileOptions(seed=seed), None))


def map_small(model: SmallModel, spec: HardwareSpec, stop_after: str | None = None, seed: int = 0) -> Mapping:
    """The mapping of a model once a pass has run."""
    return run_compile(load_model(model.proto), spec, CompileOptions(seed=seed), None, stop_after=stop_after).mapping


def place_and_emit(
    quantized: Mapping, orders: np.random.Generator | None = None, *, predistort: bool = False
) -> TileProgram:
    """The program of a quantised mapping, its rows and columns in order, or in random orders with random signs."""
    placed = Place().run(quantized)
    if orders is not None:
        shuffled = {
            layer: tuple(_shuffled(placement, orders) for placement in placements)
            for layer, placements in placed.placements.items()
        }
        placed = replace(placed, placements=shuffled)
    mapping = Ranges().run(Predistort(predistort).run(Assign().run(placed)))
    return emit(mapping, build_report(mapping, {}), keep_source=False)


def _shuffled(placement: Placement, generator: np.random.Generator) -> Placement:
    return replace(
        placement,
        row_map=generator.permutation(placement.row_map),
        col_order=generator.permutation(placement.col_order),
        col_sign=generator.choice(np.array([-1, 1], np.int8), len(placement.col_sign)),
    )
