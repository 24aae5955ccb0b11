"""Gradients of the torch translations against central differences of onnxruntime.

In float64 where onnxruntime has the operator in that type, else in float32 with a wider step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from host_cases import CASES, Array, Case, conditional, integers, model_of, node_case, normal, scalar, session
from onnxruntime.capi.onnxruntime_pybind11_state import (
    InvalidGraph,
    RuntimeException,
)
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from hwspec.errors import ModelError
from runtime.host_ops.node_torch import HostNode, operator_of
from runtime.host_torch import TorchSegment, supported_ops

_NO_GRADIENT = {
    **dict.fromkeys(("And", "Not", "Or", "Xor"), "takes and gives booleans"),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), "gives booleans"),
    **dict.fromkeys(("IsInf", "IsNaN"), "gives booleans"),
    **dict.fromkeys(("ArgMax", "ArgMin", "NonZero"), "gives indices"),
    **dict.fromkeys(("Shape", "Size"), "gives lengths"),
    "Constant": "takes no input",
    "ConstantOfShape": "takes a shape only",
    "QuantizeLinear": "gives integers",
}
"""Operators that no gradient can pass, with the reason."""


class _Precision(NamedTuple):
    """How differences are taken in an element type: the step of the input, and the error left, of the largest."""

    dtype: type[np.floating]
    step: float
    error: float


_FLOAT64, _FLOAT32 = _Precision(np.float64, 1e-5, 1e-7), _Precision(np.float32, 2e-3, 3e-3)
_TORCH_FLOAT32_ERROR = 1e-5
"""What is left of the largest element where torch computes in float32 and differences were taken in float64."""
_FLOAT32_INSIDE = {
    "GroupNormalization": "its stash_type is float32",
    "Shrink": "onnxruntime computes it in float32 whatever its input",
}
"""Operators that onnxruntime takes in float64 but does not compute in it."""


def _read_as_numbers(case: Case) -> tuple[int, ...]:
    """Places of the inputs that are read as python numbers: shapes, axes, scales, pads."""
    operator = operator_of(HostNode("", case.op, case.domain, case.opset, (), ()))
    return operator.host if operator else ()


def _differentiated(case: Case) -> list[int]:
    """Places of the float inputs that gradients are taken to."""
    numbers = _read_as_numbers(case)
    return [
        place
        for place, array in enumerate(case.inputs)
        if array is not None and array.dtype == np.float32 and place not in numbers and array.size
    ]


def _away_from_kinks(case: Case) -> Case:
    """The case with float inputs moved by up to 0.1: at least 0.02 from multiples of 0.1, and no two of them equal."""
    inputs = list(case.inputs)
    for place in _differentiated(case):
        array = case.inputs[place]
        assert array is not None
        rank = array.ravel().argsort().argsort().reshape(array.shape)
        within = (rank + 0.618 * (place + 1) % 1) / array.size
        inputs[place] = np.asarray(np.floor(array / 0.1) * 0.1 + 0.02 + 0.06 * within, np.float32)
    return replace(case, inputs=tuple(inputs))


def _cast(case: Case, dtype: type[np.floating]) -> Case:
    """The case with its float inputs in another type; scales of a resize are float32 always."""
    fixed = _read_as_numbers(case) if case.op in ("Resize", "Upsample") else ()
    inputs = tuple(
        array.astype(dtype) if array is not None and array.dtype == np.float32 and place not in fixed else array
        for place, array in enumerate(case.inputs)
    )
    return replace(case, inputs=inputs)


def _feeds(case: Case) -> dict[str, Array]:
    return {f"x{place}": array for place, array in enumerate(case.inputs) if array is not None}


def _wide(value: Array) -> bool:
    """Whether differences can be taken of it: float32 or float64."""
    return value.dtype in (np.float32, np.float64)


def _weights(shape: Sequence[int]) -> Array:
    """Weights of an output, whose weighted sum is differentiated; the same for every output of this shape."""
    return np.random.default_rng(5).standard_normal(tuple(shape))


def _central_differences(
    run: ort.InferenceSession, feeds: Mapping[str, Array], names: Sequence[str], step: float
) -> list[Array]:
    """Gradient of the weighted sum of a session's outputs, element by element."""
    weights = [_weights(value.shape) if _wide(value) else None for value in run.run(None, dict(feeds))]
    gradients = []
    for name in names:
        gradient = np.zeros(feeds[name].shape)
        for index in np.ndindex(gradient.shape):
            ends = []
            for sign in (1, -1):
                moved = feeds[name].copy()
                moved[index] += sign * step
                ends.append((moved[index].astype(np.float64), run.run(None, {**feeds, name: moved})))
            (above, high), (below, low) = ends
            changes = (
                (weight * (one.astype(np.float64) - other.astype(np.float64))).sum()
                for weight, one, other in zip(weights, high, low, strict=True)
                if weight is not None
            )
            gradient[index] = sum(changes) / (above - below)
        gradients.append(gradient)
    return gradients


def _truth(case: Case) -> tuple[_Precision, list[Array]]:
    """Central differences of onnxruntime, and the precision in which it computed."""
    names = [f"x{place}" for place in _differentiated(case)]
    wide = _cast(case, np.float64)
    try:
        run = session(model_of(wide).SerializeToString())
        outputs = run.run(None, _feeds(wide))
    except (NoKernel, InvalidGraph, RuntimeException):
        outputs = None  # onnxruntime has no kernel for float64
    if outputs and case.op not in _FLOAT32_INSIDE and all(value.dtype != np.float32 for value in outputs):
        return _FLOAT64, _central_differences(run, _feeds(wide), names, _FLOAT64.step)
    run = session(model_of(case).SerializeToString())
    return _FLOAT32, _central_differences(run, _feeds(case), names, _FLOAT32.step)


def _torch_gradients(
    model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str], device: str = "cpu"
) -> list[torch.Tensor]:
    """Gradient of the same weighted sum through torch; zero where no output depends on an input."""
    segment = TorchSegment(model, device)
    tensors = {name: torch.from_numpy(np.array(feeds[name])).to(device) for name in segment.inputs}
    wanted = [tensors[name].requires_grad_() for name in names]
    outputs = [value for value in segment(tensors).values() if value.requires_grad]
    if not outputs:
        return [torch.zeros_like(tensor) for tensor in wanted]
    total = torch.stack([(torch.from_numpy(_weights(value.shape)).to(value) * value).sum() for value in outputs]).sum()
    return list(torch.autograd.grad(total, wanted, materialize_grads=True))


def _gives_floats(case: Case) -> bool:
    return any(_wide(value) for value in session(model_of(case).SerializeToString()).run(None, _feeds(case)))


_GRADIENT_CASES = [
    case
    for case in map(_away_from_kinks, CASES)
    if _differentiated(case)
    and max(array.size for array in case.inputs if array is not None) <= 500
    and _gives_floats(case)
]


def test_every_operator_has_a_gradient_case_or_a_reason() -> None:
    """Cases are chosen by what they take and give, so a new operator is in neither set until it has one."""
    with_gradient = {f"{case.domain}.{case.op}" if case.domain else case.op for case in _GRADIENT_CASES} | {"If"}
    assert with_gradient.isdisjoint(_NO_GRADIENT)
    assert with_gradient | set(_NO_GRADIENT) == set(supported_ops())


@pytest.mark.parametrize("case", _GRADIENT_CASES, ids=str)
def test_gradient_equals_central_differences_of_onnxruntime(case: Case) -> None:
    """To every float input and of its type, in float64 where onnxruntime has it, and in float32."""
    names = [f"x{place}" for place in _differentiated(case)]
    truth, expected = _truth(case)
    errors = {_FLOAT32: max(truth.error, _TORCH_FLOAT32_ERROR)}
    if truth is _FLOAT64:
        errors[_FLOAT64] = truth.error
    for precision, error in errors.items():
        cast = _cast(case, precision.dtype)
        for want, have in zip(expected, _torch_gradients(model_of(cast), _feeds(cast), names), strict=True):
            assert have.numpy().dtype == precision.dtype
            np.testing.assert_allclose(have.numpy(), want, rtol=0, atol=error * max(np.abs(want).max(), 1e-3))


_DEVICES = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", _DEVICES)
def test_gradients_stay_on_the_device(device: str) -> None:
    """Forward and backward, constants included, also on the device "meta", which fails where data are asked for."""
    for case in _GRADIENT_CASES:
        if device == "meta" and case.op == "Range":
            continue  # its length follows from its data
        places = _differentiated(case)
        model = model_of(case, [place for place in range(len(case.inputs)) if place not in places])
        names = [f"x{place}" for place in places]
        expected = _torch_gradients(model, _feeds(case), names)
        for want, have in zip(expected, _torch_gradients(model, _feeds(case), names, device), strict=True):
            assert have.device.type == device, case
            assert (have.dtype, have.shape) == (want.dtype, want.shape), case
            if device != "meta":
                torch.testing.assert_close(have.cpu(), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_gradient_passes_the_branch_that_the_data_choose(condition: bool, other: bool) -> None:
    """Into an ``If`` and the one inside it, through values from around them."""
    model = conditional()
    feeds = {
        "x": np.asarray([0.7, -0.3, 1.1], np.float32),
        "condition": np.asarray(condition),
        "other": np.asarray([other]),
    }
    (expected,) = _central_differences(session(model.SerializeToString()), feeds, ["x"], _FLOAT32.step)
    (gradient,) = _torch_gradients(model, feeds, ["x"])
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=_FLOAT32.error * np.abs(expected).max())


def test_what_is_read_as_numbers_refuses_a_gradient() -> None:
    """By name, where it would be lost in silence; whether it is computed or a constant to be trained."""
    case = node_case("Pad", normal(3), integers(1, 1), scalar(0.5))
    x, pads, value = (torch.from_numpy(array) for array in case.inputs if array is not None)
    segment = TorchSegment(model_of(case, [1]))
    with pytest.raises(ModelError, match=r"'node' \(Pad\) .*'x2'"):
        segment({"x0": x, "x2": value.clone().requires_grad_()})
    with torch.no_grad():
        segment({"x0": x, "x2": value.clone().requires_grad_()})
    trained = TorchSegment(model_of(case, [1, 2]))
    trained.constants["x2"] = value.clone().requires_grad_()
    with pytest.raises(ModelError, match=r"'node' \(Pad\) .*'x2'"):
        trained({"x0": x, "x1": pads})
