"""Multiply-accumulates are those that a plain loop over the operator's definition makes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ideal import compile_ideal
from onnx import TensorProto, helper, numpy_helper

from compiler.macs import Shape, count_macs, mac_values


def count(op: str, inputs: Sequence[Shape], outputs: Sequence[Shape], **attributes: Any) -> int:
    """What `count_macs` says of one node with these shapes."""
    names = [f"i{n}" for n in range(len(inputs))], [f"o{n}" for n in range(len(outputs))]
    node = helper.make_node(op, *names, "node", **attributes)
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    shapes = dict(zip(names[0] + names[1], [*inputs, *outputs], strict=True))
    assert set(mac_values(model)) == set(shapes)
    return count_macs(model, shapes)["node"]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_convolutions_count_a_product_for_each_weight_and_window(data: st.DataObject) -> None:
    """With inputs and weights of 1, torch's outputs sum up to the number of products."""
    draw = data.draw
    groups, per_group, results = (draw(st.integers(1, 3)) for _ in range(3))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    stride = draw(st.integers(1, 2))
    size = (draw(st.integers(3, 6)), draw(st.integers(3, 6)))
    x, w = (2, groups * per_group, *size), (groups * results, per_group, *kernel)
    y = torch.nn.functional.conv2d(torch.ones(x), torch.ones(w), stride=stride, groups=groups)
    assert count("Conv", [x, w], [tuple(y.shape)], group=groups) == int(y.sum())
    w = (groups * per_group, results, *kernel)
    y = torch.nn.functional.conv_transpose2d(torch.ones(x), torch.ones(w), stride=stride, groups=groups)
    assert count("ConvTranspose", [x, w], [tuple(y.shape)], group=groups) == int(y.sum())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3,), (3,)),
        ((2, 3), (3, 4)),
        ((3,), (5, 3, 4)),
        ((5, 2, 3), (3,)),
        ((5, 1, 2, 3), (6, 3, 4)),
        ((7, 2, 3), (3, 4)),
    ],
)
def test_matmul_counts_every_product(a: Shape, b: Shape) -> None:
    product = np.ones(a) @ np.ones(b)
    assert count("MatMul", [a, b], [product.shape]) == int(product.sum())


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_counts_every_product(trans: int) -> None:
    a = (3, 2) if trans else (2, 3)
    assert count("Gemm", [a, (3, 4), (4,)], [(2, 4)], transA=trans) == 2 * 3 * 4


@pytest.mark.parametrize(
    ("equation", "shapes", "macs"),
    [
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        ("i,j->ij", [(3,), (4,)], 12),
        ("ij->ji", [(3, 4)], 0),
        ("...ij,jk->...ik", [(6, 7, 2, 3), (3, 4)], 6 * 7 * 2 * 3 * 4),
        ("b...i,...ij->b...j", [(2, 6, 3), (6, 3, 4)], 2 * 6 * 3 * 4),
        (" b i , i j -> b j ", [(2, 3), (3, 4)], 24),
        ("ii,ij->j", [(3, 3), (3, 4)], 12),
        ("...i,...i->...", [(1, 5, 3), (4, 1, 3)], 4 * 5 * 3),
        ("...i,i->...", [(5, 3), (1,)], 15),
    ],
)
def test_einsum_counts_every_combination_of_labels(equation: str, shapes: list[Shape], macs: int) -> None:
    output: Shape = ()
    assert count("Einsum", shapes, [output], equation=equation) == macs


@pytest.mark.parametrize(("op", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_count_both_matrices_at_every_step(op: str, gates: int, directions: int) -> None:
    steps, batch, width, hidden = 5, 2, 3, 4
    inputs = [(steps, batch, width), (directions, gates * hidden, width), (directions, gates * hidden, hidden)]
    macs = count(op, inputs, [(steps, directions, batch, hidden)], hidden_size=hidden)
    assert macs == directions * steps * batch * gates * hidden * (width + hidden)


def test_totals_of_a_program_are_those_of_one_sample() -> None:
    """Attention and a recurrent layer count, but are not mapped; the batch does not."""
    generator = np.random.default_rng(0)
    tensors = {
        "w": generator.standard_normal((3, 3)),
        "k": generator.standard_normal((1, 8, 3)),
        "r": generator.standard_normal((1, 8, 2)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "mapped"),
        helper.make_node("Transpose", ["a"], ["t"], "transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "t"], ["s"], "scores"),
        helper.make_node("LSTM", ["a", "k", "r"], ["l"], "lstm", hidden_size=2, layout=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 5, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("s", "l")],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    report = compile_ideal(model).report
    macs = {node.node: node.macs or 0 for node in report.digital} | {layer.name: layer.macs for layer in report.layers}
    assert macs == {"mapped": 5 * 3 * 3, "transpose": 0, "scores": 5 * 5 * 3, "lstm": 5 * 8 * (3 + 2)}
    totals = report.totals
    assert totals.mapped_macs == macs["mapped"]
    assert totals.constant_weight_macs == macs["mapped"] + macs["lstm"]
    assert totals.macs == sum(macs.values())
    assert report.layers[0].windows == 5
