"""A digital node as its translation sees it, and the table of translations from ONNX operators to torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from hwspec.errors import ModelError

OLDEST_OPSET, NEWEST_OPSET = 7, 26
"""Versions of ONNX's own operators that the translations were written and tested for."""

DTYPES: Mapping[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}
"""Element types that are translated; in the others (uint16, bfloat16, strings, ...) torch computes too little."""

Attribute = int | float | str | torch.Tensor | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
Translation = Callable[..., torch.Tensor | Sequence[torch.Tensor]]
_Function = TypeVar("_Function", bound=Translation)
Refusal = Callable[["HostNode"], str]


def type_name(elem_type: int) -> str:
    """The name of an ONNX element type, e.g. ``FLOAT8E4M3FN``."""
    known = elem_type in onnx.TensorProto.DataType.values()
    return str(onnx.TensorProto.DataType.Name(elem_type)) if known else f"number {elem_type}"


def tensor_of(proto: onnx.TensorProto) -> torch.Tensor:
    """A constant of the model as a tensor on the CPU; `ModelError` where torch cannot compute in its type."""
    if proto.data_type not in DTYPES:
        raise ModelError(f"constant {proto.name!r}", f"is of type {type_name(proto.data_type)}, which torch lacks")
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelError(f"constant {proto.name!r}", "lies in another file", hint="load the model with its data")
    try:
        return torch.from_numpy(np.array(numpy_helper.to_array(proto)))
    except ValueError as error:
        raise ModelError(f"constant {proto.name!r}", f"does not hold what its shape says ({error})") from None


_STRAIGHT = "xbarc_straight_through"


def go_straight(whole: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Let what reads whole numbers as `straightened` see the real ones that they equal, with their gradient."""
    if real.requires_grad:
        setattr(whole, _STRAIGHT, real)
    return whole


def straightened(whole: torch.Tensor) -> torch.Tensor | None:
    """The real numbers that `go_straight` put behind these whole ones; None where it did not."""
    found: torch.Tensor | None = getattr(whole, _STRAIGHT, None)
    return found


def follows(value: torch.Tensor) -> bool:
    """Whether a gradient is taken to a value."""
    return value.requires_grad or straightened(value) is not None


@dataclass(frozen=True)
class HostNode:
    """One ONNX node with its attributes parsed.

    Parameters
    ----------
    name
        Name of the node, or of its first output where it has none.
    op, domain, opset
        The operator, its domain (``""`` is ONNX's own) and the version of that domain that the model declares.
    inputs, outputs
        Value names; ``""`` where an optional one is left out.
    attributes
        Parsed values; graphs are not among them.
    constants
        The inputs that are constants of the model, by position.
    """

    name: str
    op: str
    domain: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    constants: Mapping[int, torch.Tensor] = field(default_factory=dict)

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def real(self, name: str, default: float) -> float:
        """A float attribute."""
        value = self.attributes.get(name, default)
        return float(value) if isinstance(value, int | float) else default

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, str) else default

    def integers(self, name: str) -> list[int]:
        """A list of integers; empty where the attribute is left out."""
        value = self.attributes.get(name, ())
        return [int(number) for number in value] if isinstance(value, tuple) else []

    def reals(self, name: str) -> list[float]:
        """A list of floats; empty where the attribute is left out."""
        value = self.attributes.get(name, ())
        return [float(number) for number in value] if isinstance(value, tuple) else []

    def texts(self, name: str) -> list[str]:
        """A list of texts; empty where the attribute is left out."""
        value = self.attributes.get(name, ())
        return [str(text) for text in value] if isinstance(value, tuple) else []

    def has_input(self, position: int) -> bool:
        """Whether the optional input at this position is given."""
        return position < len(self.inputs) and bool(self.inputs[position])

    def error(self, requirement: str) -> ModelError:
        """An error that names this node, for what only the running data can show."""
        return ModelError(f"node {self.name!r} ({self.op})", requirement)


@dataclass(frozen=True)
class Operator:
    """The translation of one ONNX operator.

    Parameters
    ----------
    translate
        ``translate(node, *inputs)`` returns the output, or a sequence of the outputs.
    host
        Positions of the inputs that it takes as lists of python numbers (shapes, axes, repeats), not as tensors.
    refuses
        ``refuses(node)`` says why this very node is not covered, ``""`` where it is.
    """

    translate: Translation
    host: tuple[int, ...] = ()
    refuses: Refusal = lambda _: ""


_OPERATORS: dict[tuple[str, str], Operator] = {}


def translates(
    *ops: str, domain: str = "", host: tuple[int, ...] = (), refuses: Refusal = Operator.refuses
) -> Callable[[_Function], _Function]:
    """Register a function as the translation of these operators; see `Operator`."""

    def register(translate: _Function) -> _Function:
        for op in ops:
            _OPERATORS[domain, op] = Operator(translate, host, refuses)
        return translate

    return register


def operator_of(node: HostNode) -> Operator | None:
    """The translation of a node's operator, if there is one."""
    return _OPERATORS.get((node.domain, node.op))


def translated_ops() -> list[str]:
    """Names of the operators in the table; those of other domains as ``domain.Name``."""
    return [f"{domain}.{op}" if domain else op for domain, op in _OPERATORS]


def refuse_any(*refusals: Refusal) -> Refusal:
    """The first reason that any of these gives."""
    return lambda node: next((reason for refuses in refusals if (reason := refuses(node))), "")


def only_outputs(count: int) -> Refusal:
    """Refuse a node of which more than the first ``count`` outputs are wanted."""
    return lambda node: f"output {count} is not translated" if any(node.outputs[count:]) else ""


def only_text(name: str, default: str, *allowed: str) -> Refusal:
    """Refuse a node whose text attribute is none of these."""

    def refuses(node: HostNode) -> str:
        value = node.text(name, default)
        return "" if value in allowed else f"{name}={value!r} is not translated"

    return refuses


def only_integer(name: str, default: int, *allowed: int) -> Refusal:
    """Refuse a node whose integer attribute is none of these."""

    def refuses(node: HostNode) -> str:
        value = node.integer(name, default)
        return "" if value in allowed else f"{name}={value} is not translated"

    return refuses
