"""A network of ResNet-18's shape and size with random weights, built without a framework."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))


class _Builder:
    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def conv(self, source: str, channels: tuple[int, int], kernel: int, stride: int, name: str) -> str:
        """A convolution with batch normalisation, scaled so that activations keep their size."""
        fan_in = channels[0] * kernel * kernel
        self._add(
            f"{name}.weight",
            self._generator.standard_normal((channels[1], channels[0], kernel, kernel)) * (2 / fan_in) ** 0.5,
        )
        pad = kernel // 2
        self.nodes.append(
            helper.make_node(
                "Conv", [source, f"{name}.weight"], [f"{name}.conv"], name, strides=[stride] * 2, pads=[pad] * 4
            )
        )
        parts = {"scale": 0.7, "shift": 0.0, "mean": 0.0, "var": 1.0}
        for part, value in parts.items():
            self._add(f"{name}.{part}", np.full(channels[1], value))
        inputs = [f"{name}.conv", *(f"{name}.{part}" for part in parts)]
        self.nodes.append(helper.make_node("BatchNormalization", inputs, [f"{name}.out"], f"{name}.bn"))
        return f"{name}.out"

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node with one output."""
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def block(self, source: str, channels: tuple[int, int], stride: int, name: str) -> str:
        """A basic residual block."""
        inner = self.node("Relu", [self.conv(source, channels, 3, stride, f"{name}.conv1")], f"{name}.relu1")
        inner = self.conv(inner, (channels[1], channels[1]), 3, 1, f"{name}.conv2")
        if stride != 1 or channels[0] != channels[1]:
            source = self.conv(source, channels, 1, stride, f"{name}.down")
        return self.node("Relu", [self.node("Add", [inner, source], f"{name}.add")], f"{name}.relu2")

    def _add(self, name: str, value: "np.ndarray") -> None:
        self.weights.append(numpy_helper.from_array(value.astype(np.float32), name))

    def linear(self, source: str, rows: int, cols: int, name: str) -> str:
        """A fully connected layer."""
        self._add(f"{name}.weight", self._generator.standard_normal((rows, cols)) * rows**-0.5)
        self._add(f"{name}.bias", np.zeros(cols))
        return self.node("Gemm", [source, f"{name}.weight", f"{name}.bias"], name)


def build_resnet18(size: int = 224, classes: int = 1000, seed: int = 0) -> onnx.ModelProto:
    """ResNet-18 (11.7 M weights at 1000 classes) on images ``(batch, 3, size, size)``."""
    build = _Builder(seed)
    value = build.node("Relu", [build.conv("image", (3, 64), 7, 2, "stem")], "stem.relu")
    value = build.node("MaxPool", [value], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    before = 64
    for number, (channels, stride) in enumerate(STAGES):
        value = build.block(value, (before, channels), stride, f"layer{number}.0")
        value = build.block(value, (channels, channels), 1, f"layer{number}.1")
        before = channels
    value = build.node("Flatten", [build.node("GlobalAveragePool", [value], "pool")], "flat")
    scores = build.linear(value, before, classes, "fc")
    graph = helper.make_graph(
        build.nodes,
        "resnet18",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info(scores, onnx.TensorProto.FLOAT, ["batch", classes])],
        build.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
