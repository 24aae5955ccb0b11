"""Convolutions and transposed convolutions."""

from math import prod
from typing import Literal

import numpy as np
import onnx
from onnx import helper

from compiler.rules.lowered import Addend, Graph, Lowered, StaysDigital, attribute, weight_of
from runtime.tables import Gather, Scatter

AutoPad = Literal["none", "same_upper", "same_lower"]


def conv(node: onnx.NodeProto, graph: Graph) -> Lowered:
    """1-D, 2-D and 3-D; strides, dilations, groups, depthwise, asymmetric and automatic padding; constant weight."""
    weight = weight_of(node, 1, graph)
    groups, rank = attribute(node, "group", 1), weight.ndim - 2
    added = _bias(node, graph, len(weight), rank)
    kernel = weight.shape[2:]
    per_group = weight.reshape(groups, -1, *weight.shape[1:])
    matrix = np.moveaxis(per_group, (1, 2), (-1, -2)).reshape(groups, prod(kernel) * weight.shape[1], -1)
    strides, dilations, pads, auto_pad = _window_attributes(node, rank)
    channels = weight.shape[1] * groups
    return Lowered(
        weight=matrix,
        initializer=node.input[1],
        bias=added.row,
        gather=Gather(
            name=f"{node.name}.in",
            kind="patches",
            channels=channels,
            groups=groups,
            kernel=kernel,
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto_pad,
        ),
        scatter=Scatter(name=f"{node.name}.out", kind="image", channels=len(weight)),
        source=node.input[0],
        target=added.target,
        before=added.before,
        after=added.after,
        constants=added.constants,
    )


def conv_transpose(node: onnx.NodeProto, graph: Graph) -> Lowered:
    """1-D to 3-D; strides, dilations, groups, output padding and shape, automatic padding; followed by a fold."""
    weight = weight_of(node, 1, graph)
    groups, rank = attribute(node, "group", 1), weight.ndim - 2
    channels = weight.shape[1] * groups
    added = _bias(node, graph, channels, rank)
    per_group = weight.reshape(groups, -1, *weight.shape[1:])
    matrix = np.moveaxis(per_group, 2, -1).reshape(groups, per_group.shape[1], -1)
    strides, dilations, pads, auto_pad = _window_attributes(node, rank)
    ones = (1,) * rank
    return Lowered(
        weight=matrix,
        initializer=node.input[1],
        bias=added.row,
        gather=Gather(
            name=f"{node.name}.in",
            kind="patches",
            channels=len(weight),
            kernel=ones,
            strides=ones,
            dilations=ones,
            pads=(0,) * (2 * rank),
        ),
        scatter=Scatter(
            name=f"{node.name}.out",
            kind="fold",
            channels=channels,
            groups=groups,
            kernel=weight.shape[2:],
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto_pad,
            output_padding=tuple(attribute(node, "output_padding", (0,) * rank)),
            output_shape=tuple(attribute(node, "output_shape", ()))[-rank:],
        ),
        source=node.input[0],
        target=added.target,
        before=added.before,
        after=added.after,
        constants=added.constants,
    )


def _bias(node: onnx.NodeProto, graph: Graph, channels: int, rank: int) -> Addend:
    """Bias of a convolution: constant, absent, or computed at run time and then added by a digital node."""
    name = node.input[2] if len(node.input) > 2 else ""
    constant = graph.constant(name) if name else np.zeros(channels)
    if constant is not None:
        return Addend(constant.astype(np.float64), node.output[0])
    target, column, shape = (graph.fresh(f"{node.name}.{stem}") for stem in ("product", "column", "column.shape"))
    return Addend(
        row=np.zeros(channels),
        target=target,
        before=(helper.make_node("Reshape", [name, shape], [column], column),),
        after=(helper.make_node("Add", [target, column], [node.output[0]], f"{node.name}.add"),),
        constants={shape: np.asarray([-1, *(1,) * rank], np.int64)},
    )


def _window_attributes(
    node: onnx.NodeProto, rank: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], AutoPad]:
    strides = tuple(attribute(node, "strides", (1,) * rank))
    dilations = tuple(attribute(node, "dilations", (1,) * rank))
    pads = tuple(attribute(node, "pads", (0,) * (2 * rank)))
    if any(pad < 0 for pad in pads):
        raise StaysDigital(f"its padding {list(pads)} is negative")
    auto = attribute(node, "auto_pad", b"NOTSET").decode()
    if auto == "VALID":
        return strides, dilations, (0,) * (2 * rank), "none"
    if auto == "SAME_UPPER":
        return strides, dilations, (), "same_upper"
    if auto == "SAME_LOWER":
        return strides, dilations, (), "same_lower"
    return strides, dilations, pads, "none"
