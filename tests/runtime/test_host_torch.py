"""Torch translations of digital operators give what onnxruntime gives, and refuse by name what they do not cover."""

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from host_cases import (
    CASES,
    Array,
    Case,
    conditional,
    floats,
    graph_model,
    integers,
    model_of,
    node_case,
    normal,
    positive,
    scalar,
    session,
)
from onnx import TensorProto, helper, numpy_helper

from hwspec.errors import DataError, ModelError
from runtime.host_torch import TorchSegment, supported_ops, untranslatable


def _in_torch(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> list[Array]:
    segment = TorchSegment(model)
    with torch.no_grad():
        results = segment({name: torch.from_numpy(np.array(array)) for name, array in inputs.items()})
    return [value.numpy() for value in results.values()]


def _assert_equal(expected: Sequence[Array], got: Sequence[Array], rtol: float = 2e-5, share: float = 2e-6) -> None:
    """Same types and shapes; values within ``rtol`` of each or ``share`` of the largest."""
    for want, have in zip(expected, got, strict=True):
        assert want.dtype == have.dtype
        assert want.shape == have.shape
        largest = np.abs(want[np.isfinite(want)]).max(initial=0) if want.dtype.kind == "f" else 0
        np.testing.assert_allclose(have, want, rtol=rtol, atol=share * largest)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_equals_onnxruntime(case: Case) -> None:
    """Values, shapes and types agree, whether the later inputs arrive at run time or are constants."""
    given = {f"x{place}": array for place, array in enumerate(case.inputs) if array is not None}
    later = range(1, len(case.inputs))
    expected = session(model_of(case).SerializeToString()).run(None, given)
    for frozen in [(), *([later] if later else [])]:
        model = model_of(case, frozen)
        assert untranslatable(model) == {}
        inputs = {value.name: given[value.name] for value in model.graph.input}
        _assert_equal(expected, _in_torch(model, inputs))


def test_every_supported_operator_has_a_case() -> None:
    covered = {f"{case.domain}.{case.op}" if case.domain else case.op for case in CASES}
    assert covered | {"If"} == set(supported_ops())  # If has its own test


_BACKEND_EXCEPTIONS = {
    "test_attention_4d_causal_fp16_expanded",  # float16 rounds otherwise
    "test_resize_downsample_scales_linear_align_corners",  # onnxruntime takes the whole output length, as we do
    "test_resize_downsample_scales_cubic_align_corners",
    "test_reduce_max_empty_set",  # refused by torch with an error
    "test_reduce_max_empty_set_bool",
    "test_reduce_min_empty_set",
}


def test_onnx_backend_cases() -> None:
    """ONNX's own single-node tests, as far as all their operators are translated, give ONNX's own results."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    checked = 0
    for case in cases:
        model, data = case.model, case.data_sets
        assert model is not None
        assert data is not None
        if case.name in _BACKEND_EXCEPTIONS or not _lower_opset(model) or untranslatable(model):
            continue
        for inputs, outputs in data:
            segment = TorchSegment(model)
            arrays = [np.asarray(value) for value in (*inputs, *outputs)]
            if any(array.dtype.kind not in "fiub" for array in arrays):
                continue
            tensors = {
                name: torch.from_numpy(array.copy()) for name, array in zip(segment.inputs, arrays, strict=False)
            }
            for want, have in zip(arrays[len(inputs) :], segment(tensors).values(), strict=True):
                assert want.dtype == have.numpy().dtype, case.name
                rtol, atol = case.rtol or 1e-3, case.atol or 1e-7
                np.testing.assert_allclose(have.numpy(), want, rtol, atol, err_msg=case.name)
                checked += 1
    assert checked > 1000


def _lower_opset(model: onnx.ModelProto) -> bool:
    """Declare opset 26, the newest translated, where none of the operators is newer; false where one is."""
    for entry in model.opset_import:
        if entry.domain == "" and entry.version > 26:
            ops = {node.op_type for node in model.graph.node if node.domain == ""}
            if any(onnx.defs.has(op) and onnx.defs.get_schema(op, entry.version).since_version > 26 for op in ops):
                return False
            entry.version = 26
    return True


@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_if_runs_the_branch_that_the_data_choose(condition: bool, other: bool) -> None:
    model = conditional()
    inputs = {"x": normal(3), "condition": np.asarray(condition), "other": np.asarray([other])}
    expected = session(model.SerializeToString()).run(None, inputs)
    assert untranslatable(model) == {}
    _assert_equal(expected, _in_torch(model, inputs))


def test_an_operator_inside_a_branch_counts() -> None:
    assert list(untranslatable(conditional("BitShift"))) == ["deep_product"]


_REFUSED = [
    node_case("Det", normal(2, 2)),
    node_case("Cast", normal(2), to=TensorProto.FLOAT8E4M3FN, opset=19),
    node_case("Cast", normal(2), to=TensorProto.STRING),
    node_case("BatchNormalization", normal(2, 3), *[positive(3)] * 4, training_mode=1),
    node_case("Dropout", normal(2), scalar(0.5), np.asarray(True)),
    node_case("MaxPool", normal(1, 1, 4, 4), kernel_shape=[2, 2], outputs=2),
    node_case("AveragePool", normal(1, 1, 9), kernel_shape=[2], strides=[3], auto_pad="SAME_UPPER"),
    node_case("Pad", normal(4), integers(-1, 2), mode="reflect"),
    node_case("Resize", normal(1, 1, 4, 4), None, floats(1, 1, 0.5, 0.5), mode="linear", antialias=1, opset=18),
    node_case(
        "Resize", normal(1, 1, 4, 4), None, floats(1, 1, 2, 2), coordinate_transformation_mode="tf_crop_and_resize"
    ),
    node_case("ScatterND", normal(3), np.asarray([[0]]), normal(1), reduction="add", opset=16),
    node_case("ScatterElements", normal(3), integers(0), normal(1), reduction="max"),
    node_case("QuantizeLinear", normal(4, 4), positive(2, 4), opset=21, axis=0, block_size=2),
    node_case("LSTM", normal(1, 1, 2), normal(1, 8, 2), normal(1, 8, 2), hidden_size=2, clip=1.0),
    node_case(
        "LSTM", normal(1, 1, 2), normal(1, 8, 2), normal(1, 8, 2), None, np.asarray([1], np.int32), hidden_size=2
    ),
    node_case("LSTM", normal(1, 1, 2), normal(1, 8, 2), normal(1, 8, 2), hidden_size=2, activations=["Relu"] * 3),
    node_case("GRU", normal(1, 1, 2), normal(1, 6, 2), normal(1, 6, 2), hidden_size=2, layout=1),
    node_case("ReduceL1", normal(3), opset=18, noop_with_empty_axes=1),
    node_case("LRN", normal(1, 4, 2, 2), size=2),
    node_case("Relu", normal(2), opset=6),
    node_case("Relu", normal(2), opset=27),
    Case("Gelu", (normal(2),), domain="com.microsoft"),
]


@pytest.mark.parametrize("case", _REFUSED, ids=str)
def test_what_is_not_covered_is_refused_by_name(case: Case) -> None:
    """In advance, and never computed some other way."""
    model = model_of(case, range(1, len(case.inputs)))
    assert list(untranslatable(model)) == ["node"]
    with pytest.raises(ModelError, match="'node'"):
        TorchSegment(model)


def test_types_that_torch_lacks_are_refused() -> None:
    text = graph_model([helper.make_node("Identity", ["x"], ["y"])], {"x": TensorProto.STRING}, ["y"])
    assert "STRING" in untranslatable(text)["x"]
    held = model_of(node_case("Add", normal(2), normal(2)), [1])
    held.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.asarray([1, 2], np.uint16), "x1"))
    assert "UINT16" in untranslatable(held)["x1"]


def test_inputs_are_checked() -> None:
    segment = TorchSegment(model_of(node_case("Add", normal(2), normal(2))))
    with pytest.raises(DataError, match="'x1' is missing"):
        segment({"x0": torch.zeros(2)})
    with pytest.raises(DataError, match="must be of type"):
        segment({"x0": torch.zeros(2), "x1": torch.zeros(2, dtype=torch.float64)})
    with pytest.raises(ModelError, match=r"node 'node' \(Add\)"):
        segment({"x0": torch.zeros(2), "x1": torch.zeros(3)})


def test_constants_can_be_trained() -> None:
    """A constant replaced by a tensor with a gradient receives one."""
    x, w = normal(3, 4), normal(4, 2)
    segment = TorchSegment(model_of(node_case("MatMul", x, w), [1]))
    segment.constants["x1"] = torch.from_numpy(w).requires_grad_()
    total = segment({"x0": torch.from_numpy(x)})["y0"].sum()
    (gradient,) = torch.autograd.grad(total, [segment.constants["x1"]])
    np.testing.assert_allclose(gradient.numpy(), np.repeat(x.sum(0)[:, None], 2, 1), rtol=1e-6)


def test_inputs_are_left_alone() -> None:
    """No translation writes into its inputs or into a constant."""
    for case in CASES[:: max(len(CASES) // 100, 1)]:
        model = model_of(case, range(1, len(case.inputs)))
        segment = TorchSegment(model)
        given = {name: torch.from_numpy(np.array(case.inputs[int(name[1:])])) for name in segment.inputs}
        before = {name: value.clone() for name, value in {**given, **segment.constants}.items()}
        segment(given)
        for name, value in {**given, **segment.constants}.items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def _published(package: str, pattern: str) -> Path:
    """A model file of an installed package, found without importing the package."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return next(Path(found.submodule_search_locations[0]).rglob(pattern))


def _page(height: int, width: int) -> Array:
    """Dark text on a light page, as the text detector expects it: ``(1, 3, height, width)`` in -1 ... 1."""
    from PIL import Image, ImageDraw

    page = Image.new("L", (width, height), 230)
    ImageDraw.Draw(page).text((8, height // 2 - 6), "resistive crossbar", fill=20)
    grey = np.asarray(page, np.float32) / 127.5 - 1
    return np.ascontiguousarray(np.broadcast_to(grey, (1, 3, height, width)))


_RATE = {16: np.asarray(16000), 8: np.asarray(8000)}
_PUBLISHED: list[tuple[str, str, dict[str, Array]]] = [
    ("rapidocr_onnxruntime", "*cls_infer.onnx", {"x": np.concatenate([_page(48, 192)] * 2)}),
    ("rapidocr_onnxruntime", "*det_infer.onnx", {"x": _page(64, 160)}),
    ("rapidocr_onnxruntime", "*rec_infer.onnx", {"x": _page(48, 128)}),
    (
        "silero_vad",
        "silero_vad_16k_op15.onnx",
        {"input": 0.1 * normal(2, 576), "state": normal(2, 2, 128), "sr": _RATE[16]},
    ),
    ("silero_vad", "silero_vad.onnx", {"input": 0.1 * normal(1, 288), "state": normal(2, 1, 128), "sr": _RATE[8]}),
    (
        "silero_vad",
        "silero_vad_op18_ifless.onnx",
        {"input": 0.1 * normal(2, 576), "state": normal(2, 2, 128), "sr": _RATE[16]},
    ),
]


@pytest.mark.parametrize(
    ("package", "pattern", "inputs"), _PUBLISHED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_published_networks_equal_onnxruntime(package: str, pattern: str, inputs: dict[str, Array]) -> None:
    """Whole networks, control flow and shape arithmetic included, to 1e-4 of an output's largest magnitude."""
    path = _published(package, pattern)
    expected = session(str(path)).run(None, inputs)
    model = onnx.load(path)
    assert untranslatable(model) == {}
    for want, have in zip(expected, _in_torch(model, inputs), strict=True):
        assert want.shape == have.shape
        assert np.abs(want - have).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize(
    ("package", "pattern", "inputs"), _PUBLISHED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_gradient_of_published_networks_is_that_of_onnxruntime(
    package: str, pattern: str, inputs: dict[str, Array]
) -> None:
    """Along each float input's gradient, onnxruntime's outputs change by its norm; 5 % are kinks and rounding."""
    path, step = _published(package, pattern), 3e-3
    run = session(str(path))
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
    wanted = [name for name, value in tensors.items() if value.is_floating_point()]
    leaves = [tensors[name].requires_grad_() for name in wanted]
    outputs = list(TorchSegment(onnx.load(path))(tensors).values())
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(value.shape).astype(np.float32) for value in outputs]
    terms = [(torch.from_numpy(weight) * value).sum() for weight, value in zip(weights, outputs, strict=True)]
    for name, gradient in zip(wanted, torch.autograd.grad(torch.stack(terms).sum(), leaves), strict=True):
        norm = float(gradient.norm())
        ends = []
        for sign in (1, -1):
            moved = inputs[name] + sign * step * gradient.numpy() / np.float32(norm)
            values = run.run(None, {**inputs, name: moved.astype(np.float32)})
            ends.append(sum(float((w * v).sum(dtype=np.float64)) for w, v in zip(weights, values, strict=True)))
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), norm, rtol=0.05)


def test_shapes_are_computed_beside_the_device() -> None:
    """On a device that holds no data at all, shape arithmetic still runs: it never leaves the CPU."""
    model = onnx.load(_published("rapidocr_onnxruntime", "*rec_infer.onnx"))
    result = TorchSegment(model, device="meta")({"x": torch.zeros(2, 3, 48, 64)})
    (output,) = result.values()
    assert output.device.type == "meta"
    assert output.shape == (2, 8, 6625)
