"""Operators that work element by element, with numpy's broadcasting."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from runtime.host_ops.node_torch import DTYPES, HostNode, only_text, translates, type_name

_ONE_INPUT: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Asin": torch.asin,
    "Atan": torch.atan,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": functional.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,  # half to even, as ONNX
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

_TWO_INPUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}


def _register_plain() -> None:
    """The operators whose torch namesake means the same for every type that ONNX allows."""
    for op, one in _ONE_INPUT.items():
        translates(op)(lambda _, x, one=one: one(x))
    for op, two in _TWO_INPUTS.items():
        translates(op)(lambda _, a, b, two=two: two(a, b))


_register_plain()


@translates("Div")
def div(_: HostNode, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@translates("Mod")
def mod(node: HostNode, a: Tensor, b: Tensor) -> Tensor:
    """``fmod=1`` takes the sign of the dividend, as C does; otherwise the divisor's, as python does."""
    return torch.fmod(a, b) if node.integer("fmod", 0) else torch.remainder(a, b)


@translates("Pow")
def power(_: HostNode, base: Tensor, exponent: Tensor) -> Tensor:
    """The two types may differ; the result has the base's. Integers go through float64."""
    if base.is_floating_point():
        return torch.pow(base, exponent.to(base.dtype))
    return torch.pow(base.double(), exponent.double()).to(base.dtype)


@translates("Clip")
def clip(node: HostNode, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are attributes before opset 11, optional inputs since; the upper one wins where they cross."""
    if node.opset < 11:
        return torch.clamp(x, node.real("min", -math.inf), node.real("max", math.inf))
    return x if low is None and high is None else torch.clamp(x, low, high)


@translates("Max", "Min")
def extremum(node: HostNode, *inputs: Tensor) -> Tensor:
    """Any number of inputs, broadcast against each other."""
    return functools.reduce(torch.maximum if node.op == "Max" else torch.minimum, inputs)


@translates("Sum")
def variadic_sum(_: HostNode, *inputs: Tensor) -> Tensor:
    """Any number of inputs, broadcast against each other since opset 8."""
    return functools.reduce(torch.add, inputs)


@translates("Mean")
def variadic_mean(_: HostNode, *inputs: Tensor) -> Tensor:
    """Any number of inputs, broadcast against each other since opset 8."""
    return functools.reduce(torch.add, inputs) / len(inputs)


@translates("Where")
def where(_: HostNode, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """All three inputs are broadcast against each other."""
    return torch.where(condition, a, b)


@translates("IsInf")
def is_inf(node: HostNode, x: Tensor) -> Tensor:
    """Each sign can be left out."""
    negative = torch.isneginf(x) if node.integer("detect_negative", 1) else torch.zeros_like(x, dtype=torch.bool)
    positive = torch.isposinf(x) if node.integer("detect_positive", 1) else torch.zeros_like(x, dtype=torch.bool)
    return negative | positive


def _refuse_cast(node: HostNode) -> str:
    target = node.integer("to", 0)
    return "" if target in DTYPES else f"a cast to {type_name(target)} is not translated"


@translates("Cast", refuses=_refuse_cast)
def cast(node: HostNode, x: Tensor) -> Tensor:
    """Floats are cut towards zero on the way to integers; anything but zero is true."""
    return x.to(DTYPES[node.integer("to", 0)])


@translates("CastLike")
def cast_like(_: HostNode, x: Tensor, like: Tensor) -> Tensor:
    """As Cast, to the type of the second input."""
    return x.to(like.dtype)


@translates("Gelu", refuses=only_text("approximate", "none", "none", "tanh"))
def gelu(node: HostNode, x: Tensor) -> Tensor:
    """Exact, or by tanh."""
    return functional.gelu(x, approximate=node.text("approximate", "none"))


@translates("HardSigmoid")
def hard_sigmoid(node: HostNode, x: Tensor) -> Tensor:
    """``alpha`` is 0.2 by default, where torch has 1/6."""
    return torch.clamp(node.real("alpha", 0.2) * x + node.real("beta", 0.5), 0.0, 1.0)


@translates("LeakyRelu")
def leaky_relu(node: HostNode, x: Tensor) -> Tensor:
    """Slope 0.01 by default."""
    return functional.leaky_relu(x, node.real("alpha", 0.01))


@translates("PRelu")
def prelu(_: HostNode, x: Tensor, slope: Tensor) -> Tensor:
    """The slope broadcasts as numpy's last axes, not as torch's channels."""
    return torch.where(x < 0, slope * x, x)


@translates("ThresholdedRelu")
def thresholded_relu(node: HostNode, x: Tensor) -> Tensor:
    """Zero at the threshold itself."""
    return torch.where(x > node.real("alpha", 1.0), x, torch.zeros_like(x))


@translates("Elu")
def elu(node: HostNode, x: Tensor) -> Tensor:
    """``alpha (exp(x) - 1)`` below zero."""
    return functional.elu(x, node.real("alpha", 1.0))


@translates("Selu")
def selu(node: HostNode, x: Tensor) -> Tensor:
    """``alpha`` and ``gamma`` are attributes."""
    alpha = node.real("alpha", 1.67326319217681884765625)
    return node.real("gamma", 1.05070102214813232421875) * functional.elu(x, alpha)


@translates("Celu")
def celu(node: HostNode, x: Tensor) -> Tensor:
    """``max(0, x) + min(0, alpha (exp(x / alpha) - 1))``."""
    return functional.celu(x, node.real("alpha", 1.0))


@translates("Shrink")
def shrink(node: HostNode, x: Tensor) -> Tensor:
    """``bias`` is taken off on both sides of the dead zone."""
    bias, limit = node.real("bias", 0.0), node.real("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))
