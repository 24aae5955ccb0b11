"""Small networks that classify, their programs and their data: what the tests of fine-tuning train."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from small_programs import small_spec

import xbarc
from runtime.program import TileProgram
from xbarc.data.load import Dataset

FEATURES, HIDDEN, CLASSES = 8, 12, 4
FAULTY: dict[str, object] = {"failures.stuck_hrs.rate": 0.15, "failures.stuck_lrs.rate": 0.02}
SOUND: dict[str, object] = {"failures.stuck_hrs.rate": 0.0, "failures.stuck_lrs.rate": 0.0}
_CENTRES = 1.5 * np.random.default_rng(0).standard_normal((CLASSES, FEATURES))


def blobs(samples: int, seed: int = 0, dims: tuple[int, ...] = (FEATURES,)) -> Dataset:
    """Points about one centre a class; `dims` is the shape of each."""
    generator = np.random.default_rng([1, seed])
    labels = generator.integers(0, CLASSES, samples)
    points = _CENTRES[labels] + generator.standard_normal((samples, FEATURES))
    return Dataset({"x": points.astype(np.float32).reshape(-1, *dims)}, labels.astype(np.int64))


def save(path: Path, data: Dataset) -> None:
    """Write samples to an ``.npz`` file."""
    arrays = dict(data.inputs)
    np.savez(path, **arrays | ({} if data.labels is None else {"labels": data.labels}))  # type: ignore[arg-type]


def classifier(*, softmax: bool = False, dims: tuple[int, ...] = (FEATURES,)) -> onnx.ModelProto:
    """Two layers that tell the classes apart, the second one by least squares; `dims` is the shape of an input."""
    generator = np.random.default_rng(2)
    first = generator.standard_normal((FEATURES, HIDDEN)) / np.sqrt(FEATURES)
    known = blobs(400, 99)
    assert known.labels is not None
    hidden = np.maximum(known.inputs["x"] @ first, 0)
    second, *_ = np.linalg.lstsq(hidden, 4 * np.eye(CLASSES)[known.labels], rcond=None)
    constants = {"w0": first, "b0": np.zeros(HIDDEN), "w1": second, "b1": np.zeros(CLASSES)}
    nodes = [
        *([] if dims == (FEATURES,) else [helper.make_node("Flatten", ["x"], ["f"], "flat")]),
        helper.make_node("Gemm", ["x" if dims == (FEATURES,) else "f", "w0", "b0"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["s" if softmax else "y"], "second"),
        *([helper.make_node("Softmax", ["s"], ["y"], "softmax")] if softmax else []),
    ]
    return _model(nodes, constants, dims)


def regressor() -> onnx.ModelProto:
    """One layer with one output."""
    constants = {"w": np.random.default_rng(3).standard_normal((FEATURES, 1))}
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"], "layer")], constants, (FEATURES,))


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, npt.NDArray[Any]], dims: tuple[int, ...]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *dims])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def program_of(
    fields: dict[str, object] | None = None,
    model: onnx.ModelProto | None = None,
    dims: tuple[int, ...] = (FEATURES,),
) -> TileProgram:
    """The program of a classifier on small arrays of a faulty technology, calibrated on its data."""
    spec = small_spec({**FAULTY, **(fields or {})})
    return xbarc.compile(model or classifier(dims=dims), spec, calibration=blobs(64, 98, dims))


@cache
def program() -> TileProgram:
    """The same, once for all tests."""
    return program_of()


@cache
def mapped() -> TileProgram:
    """The same, mapped around the failed devices of chip 5."""
    return xbarc.remap(program(), xbarc.Chip.sample(program().spec, program().arrays, 5))


def accuracy(program: TileProgram, data: Dataset, chips: list[xbarc.Chip]) -> float:
    """Mean over chips."""
    assert data.labels is not None
    found = [(xbarc.simulate(program, chip)(data.inputs)[0].argmax(1) == data.labels).mean() for chip in chips]
    return float(np.mean(found))
