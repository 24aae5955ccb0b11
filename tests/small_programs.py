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
from compiler.passes.ranges import Ranges
from compiler.report import build_report
from hwspec.spec import HardwareSpec
from runtime.program import TileProgram

Array = npt.NDArray[Any]

SMALL = {"array.rows": 8, "array.cols": 8}
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
    """Small arrays with any levels, converters, drivers and pairing."""
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


def small_spec(fields: Table[str, object] | None = None) -> HardwareSpec:
    """The preset `rram-128` with arrays of 8x8, and these fields."""
    return HardwareSpec.preset("rram-128").with_fields({**SMALL, **(fields or {})})


def compile_small(model: SmallModel, spec: HardwareSpec | None = None, seed: int = 0) -> TileProgram:
    """The program of a model, calibrated on random inputs."""
    return finish(run_compile(load_model(model.proto), spec or small_spec(), CompileOptions(seed=seed), None))


def map_small(model: SmallModel, spec: HardwareSpec, stop_after: str | None = None, seed: int = 0) -> Mapping:
    """The mapping of a model once a pass has run."""
    return run_compile(load_model(model.proto), spec, CompileOptions(seed=seed), None, stop_after=stop_after).mapping


def place_and_emit(quantized: Mapping, orders: np.random.Generator | None = None) -> TileProgram:
    """The program of a quantised mapping, its rows and columns in order, or in random orders with random signs."""
    placed = Place().run(quantized)
    if orders is not None:
        shuffled = {
            layer: tuple(_shuffled(placement, orders) for placement in placements)
            for layer, placements in placed.placements.items()
        }
        placed = replace(placed, placements=shuffled)
    mapping = Ranges().run(Assign().run(placed))
    return emit(mapping, build_report(mapping, {}), keep_source=False)


def _shuffled(placement: Placement, generator: np.random.Generator) -> Placement:
    return replace(
        placement,
        row_map=generator.permutation(placement.row_map),
        col_order=generator.permutation(placement.col_order),
        col_sign=generator.choice(np.array([-1, 1], np.int8), len(placement.col_sign)),
    )
