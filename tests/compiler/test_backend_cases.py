"""ONNX's own test cases of the mapped operators pass on perfect crossbars, once their weights are constants."""

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from ideal import assert_close, compile_ideal, run_program
from onnx import numpy_helper

from compiler.rules import RULES

CASES = {
    "Conv": (
        "test_basic_conv_with_padding",
        "test_basic_conv_without_padding",
        "test_conv_with_strides_padding",
        "test_conv_with_strides_no_padding",
        "test_conv_with_strides_and_asymmetric_padding",
        "test_conv_with_autopad_same",
    ),
    "ConvTranspose": (
        "test_convtranspose",
        "test_convtranspose_1d",
        "test_convtranspose_3d",
        "test_convtranspose_output_shape",
        "test_convtranspose_pad",
        "test_convtranspose_kernel_shape",
        "test_convtranspose_pads",
        "test_convtranspose_dilations",
        "test_convtranspose_autopad_same",
        "test_convtranspose_group_2",
        "test_convtranspose_group_2_image_3",
    ),
    "Gemm": (
        "test_gemm_default_zero_bias",
        "test_gemm_default_no_bias",
        "test_gemm_default_scalar_bias",
        "test_gemm_default_single_elem_vector_bias",
        "test_gemm_default_vector_bias",
        "test_gemm_default_matrix_bias",
        "test_gemm_transposeA",
        "test_gemm_transposeB",
        "test_gemm_alpha",
        "test_gemm_beta",
        "test_gemm_all_attributes",
    ),
    "MatMul": (
        "test_matmul_2d",
        "test_matmul_3d",
        "test_matmul_4d",
        "test_matmul_bcast",
        "test_matmul_1d_3d",
        "test_matmul_4d_1d",
        "test_matmul_1d_1d",
    ),
}
"""All of onnx 1.23's; none is left out."""


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    """Every case whose model is one node of a mapped operator, by name."""
    with warnings.catch_warnings():  # cases of other operators divide by zero and overflow on purpose
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    nodes = {case.name: case.model.graph.node for case in found if case.model is not None}
    return {
        case.name: case for case in found if [n.op_type for n in nodes.get(case.name, ())] in [[op] for op in RULES]
    }


def frozen(model: onnx.ModelProto, values: list[Any]) -> onnx.ModelProto:
    """The model with all inputs but the first as initializers of these values: the cases pass weights as inputs."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    inputs = list(changed.graph.input)
    del changed.graph.input[1:]
    changed.graph.initializer.extend(
        numpy_helper.from_array(value, info.name) for info, value in zip(inputs[1:], values[1:], strict=True)
    )
    return changed


def test_every_case_of_the_mapped_operators_is_listed(cases: dict[str, Any]) -> None:
    listed = {name: op for op, names in CASES.items() for name in names}
    assert len(listed) == 35
    assert listed == {name: case.model.graph.node[0].op_type for name, case in cases.items()}


@pytest.mark.parametrize("name", [name for names in CASES.values() for name in names])
def test_backend_case(name: str, cases: dict[str, Any]) -> None:
    case = cases[name]
    assert case.data_sets
    for inputs, outputs in case.data_sets:
        program = compile_ideal(frozen(case.model, inputs))
        (layer,) = program.tables.layers
        assert layer.op == case.model.graph.node[0].op_type
        first = case.model.graph.input[0].name
        assert_close(run_program(program, {first: np.asarray(inputs[0])}), outputs)
