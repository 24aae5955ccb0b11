"""Digital segments in torch: differentiable, on any device, equal to onnxruntime within rounding.

The operators themselves are translated in `runtime.host_ops`; here a graph is checked, prepared once and run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from hwspec.errors import DataError, ModelError
from runtime.gradient_paths import FLAT
from runtime.host_ops import (
    elementwise_torch,
    indexing_torch,
    norms_torch,
    products_torch,
    recurrent_torch,
    reductions_torch,
    resize_torch,
    shapes_torch,
    windows_torch,
)
from runtime.host_ops.node_torch import (
    DTYPES,
    NEWEST_OPSET,
    OLDEST_OPSET,
    Attribute,
    HostNode,
    Operator,
    follows,
    operator_of,
    tensor_of,
    translated_ops,
    type_name,
)

_ROOMS = (  # imported for the operators that they register
    elementwise_torch,
    indexing_torch,
    norms_torch,
    products_torch,
    recurrent_torch,
    reductions_torch,
    resize_torch,
    shapes_torch,
    windows_torch,
)
_CONTROL = ("Constant", "If")
_HINT = "run this segment in onnxruntime"


def supported_ops() -> tuple[str, ...]:
    """Names of the translated operators, sorted; those outside ONNX's own domain as ``domain.Name``."""
    return tuple(sorted([*translated_ops(), *_CONTROL]))


def untranslatable(model: onnx.ModelProto) -> dict[str, str]:
    """What keeps a segment from being translated to torch.

    Parameters
    ----------
    model
        The segment, with its external data loaded.

    Returns
    -------
    dict
        Reason by node name (first output where a node has no name; value name where an input or a constant is of a
        type that is not translated). Empty: `TorchSegment` takes the model.
    """
    return _Preparation(model, torch.device("cpu")).problems


class TorchSegment:
    """A digital segment as torch calls.

    Tensors keep the element types of the model, so results equal onnxruntime's; floats live on ``device``, while
    small integers (shapes, axes, indices) stay on the CPU until an operator meets them with something on the device.

    Parameters
    ----------
    model
        The segment. Its initializers are constants, also where it lists them as inputs.
    device
        Where it computes.

    Raises
    ------
    ModelError
        Naming the node that has no translation; `untranslatable` lists them all.
    """

    def __init__(self, model: onnx.ModelProto, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        preparation = _Preparation(model, self.device)
        for name, reason in preparation.problems.items():
            raise ModelError(f"node {name!r}", f"has no torch translation: {reason}", hint=_HINT)
        self._plan = preparation.plan
        self.inputs: Mapping[str, torch.dtype] = preparation.inputs
        """Element type of each input, by name."""
        self.outputs: tuple[str, ...] = self._plan.outputs
        """Names of the outputs."""
        self.gradient_ends: dict[str, str] = {}
        """Nodes at which a gradient ended in what was run so far, with their operators."""

    @property
    def constants(self) -> dict[str, Tensor]:
        """The constants by name; put a tensor that requires a gradient in place of one to train it."""
        return self._plan.constants

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the segment.

        Parameters
        ----------
        inputs
            A tensor for each of `inputs`, of its element type, on any device; other names are ignored.

        Returns
        -------
        dict
            The outputs by name, on the segment's device.

        Raises
        ------
        DataError
            If an input is missing or of another element type.
        ModelError
            If torch cannot run a node on these inputs, or a gradient is wanted of what a node reads as numbers (pads,
            scales, shapes); names the node.
        """
        values: dict[str, Tensor] = {}
        for name, dtype in self.inputs.items():
            if name not in inputs:
                raise DataError(f"input {name!r}", "is missing", hint=f"the segment wants {', '.join(self.inputs)}")
            if inputs[name].dtype != dtype:
                raise DataError(f"input {name!r}", f"must be of type {dtype}", got=inputs[name].dtype)
            values[name] = inputs[name].to(self.device)
        results = _run(self._plan, values, self.device, self.gradient_ends)
        return {name: value.to(self.device) for name, value in zip(self.outputs, results, strict=True)}


@dataclass(frozen=True)
class _Step:
    """A node ready to run: constant python values by position, its branches if it is an ``If``, what it frees."""

    node: HostNode
    operator: Operator | None
    known: Mapping[int, object]
    branches: tuple["_Plan", ...] = ()
    frees: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """A graph ready to run."""

    steps: tuple[_Step, ...]
    constants: dict[str, Tensor]
    outputs: tuple[str, ...]


class _Preparation:
    """Checks a model and prepares its plan; problems are collected by node name."""

    def __init__(self, model: onnx.ModelProto, device: torch.device) -> None:
        self.device = device
        self.problems: dict[str, str] = {}
        self.opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
        self.inputs: dict[str, torch.dtype] = {}
        held = {proto.name for proto in model.graph.initializer}
        for value in model.graph.input:
            if value.name not in held:
                self._declare_input(value)
        self.plan = self._graph(model.graph, {})

    def _declare_input(self, value: onnx.ValueInfoProto) -> None:
        elem_type = value.type.tensor_type.elem_type
        if elem_type in DTYPES:
            self.inputs[value.name] = DTYPES[elem_type]
        else:
            kind = type_name(elem_type) if value.type.HasField("tensor_type") else "no tensor"
            self.problems[value.name] = f"input {value.name!r} is {kind}, which is not translated"

    def _graph(self, graph: onnx.GraphProto, outer: Mapping[str, Tensor]) -> _Plan:
        """The plan of a graph; ``outer`` holds the constants of the graphs around it."""
        constants = {proto.name: tensor for proto in graph.initializer if (tensor := self._constant(proto)) is not None}
        for sparse in graph.sparse_initializer:
            self.problems[sparse.values.name] = "sparse constants are not translated"
        visible = {**outer, **constants}
        steps = []
        for proto in graph.node:
            if proto.op_type == "Constant" and not _domain(proto.domain):
                self._constant_node(proto, constants, visible)
            else:
                steps.append(self._step(proto, visible))
        outputs = tuple(value.name for value in graph.output)
        moved = {name: self._placed(value) for name, value in constants.items()}
        return _Plan(_with_frees(steps, outputs, graph), moved, outputs)

    def _constant(self, proto: onnx.TensorProto) -> Tensor | None:
        try:
            return tensor_of(proto)
        except ModelError as error:
            self.problems[proto.name] = str(error)
            return None

    def _constant_node(self, proto: onnx.NodeProto, constants: dict[str, Tensor], visible: dict[str, Tensor]) -> None:
        name = proto.output[0]
        attributes = self._attributes(proto)
        value = next(iter(attributes.values()), None)
        if isinstance(value, int | float | tuple) and not any(isinstance(v, str) for v in _each(value)):
            floating = next(iter(attributes)).startswith("value_float")
            value = torch.tensor(value, dtype=torch.float32 if floating else torch.int64)
        if isinstance(value, Tensor):
            constants[name] = visible[name] = value
        else:
            self.problems.setdefault(_name(proto), "only tensors and numbers are translated as constants")

    def _attributes(self, proto: onnx.NodeProto) -> dict[str, Attribute]:
        parsed = {}
        for attribute in proto.attribute:
            try:
                parsed[attribute.name] = _attribute(attribute)
            except ModelError as error:
                self.problems[_name(proto)] = str(error)
        return parsed

    def _step(self, proto: onnx.NodeProto, visible: Mapping[str, Tensor]) -> _Step:
        domain, name = _domain(proto.domain), _name(proto)
        is_if = proto.op_type == "If" and not domain
        node = HostNode(
            name=name,
            op=proto.op_type,
            domain=domain,
            opset=self.opsets.get(domain, 0),
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            attributes={} if is_if else self._attributes(proto),
            constants={place: visible[value] for place, value in enumerate(proto.input) if value in visible},
        )
        operator = operator_of(node)
        reason = _refusal(node, operator, control=is_if)
        if reason:
            self.problems[name] = reason
        if is_if:
            graphs = {attribute.name: attribute.g for attribute in proto.attribute}
            branches = tuple(self._graph(graphs[key], visible) for key in ("then_branch", "else_branch"))
            return _Step(node, None, {}, branches)
        host = operator.host if operator else ()
        return _Step(
            node,
            operator,
            {place: node.constants[place].flatten().tolist() for place in host if place in node.constants},
        )

    def _placed(self, value: Tensor) -> Tensor:
        """Small integers stay on the CPU, where shapes and axes are read."""
        return value if value.ndim <= 1 and value.dtype in (torch.int32, torch.int64) else value.to(self.device)


def _refusal(node: HostNode, operator: Operator | None, *, control: bool) -> str:
    """Why this node cannot be translated, ``""`` if it can."""
    if not node.domain and not OLDEST_OPSET <= node.opset <= NEWEST_OPSET:
        return f"opset {node.opset} is outside {OLDEST_OPSET} to {NEWEST_OPSET}"
    if control:
        return ""
    if operator is None:
        return f"operator {node.domain and node.domain + '.'}{node.op} has no translation"
    return operator.refuses(node)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _name(proto: onnx.NodeProto) -> str:
    return proto.name or next(filter(None, proto.output), proto.op_type)


def _each(value: object) -> Iterable[object]:
    return value if isinstance(value, tuple) else (value,)


def _attribute(proto: onnx.AttributeProto) -> Attribute:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, onnx.TensorProto):
        return tensor_of(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, int | float):
        return value
    if isinstance(value, Sequence) and all(isinstance(entry, int | float | bytes) for entry in value):
        return tuple(entry.decode() if isinstance(entry, bytes) else entry for entry in value)
    raise ModelError(f"attribute {proto.name!r}", "holds what is not translated: a graph, a type or sparse data")


def _with_frees(steps: Sequence[_Step], outputs: tuple[str, ...], graph: onnx.GraphProto) -> tuple[_Step, ...]:
    """Each step with the values of this graph that no later one reads."""
    own = {name for step in steps for name in step.node.outputs} | {value.name for value in graph.input}
    needed, freed = set(outputs), []
    for step in reversed(steps):
        touched = set(step.node.outputs).union(_reads(step)) & own
        freed.append(_Step(step.node, step.operator, step.known, step.branches, tuple(sorted(touched - needed - {""}))))
        needed |= touched
    return tuple(reversed(freed))


def _reads(step: _Step) -> set[str]:
    """The values that a step reads, with those that its branches take from around them."""
    names = set(step.node.inputs)
    for branch in step.branches:
        names = names.union(branch.outputs, *map(_reads, branch.steps))
    return names


def _run(plan: _Plan, values: dict[str, Tensor], device: torch.device, ends: dict[str, str]) -> list[Tensor]:
    """Run a plan; ``values`` holds inputs and outer values, and is used up; ``ends`` gets where gradients end."""
    values.update(plan.constants)
    for step in plan.steps:
        results = _apply(step, values, device, ends)
        values.update(zip(step.node.outputs, results, strict=False))  # optional outputs may be left out
        for name in step.frees:
            values.pop(name, None)
    return [values[name] for name in plan.outputs]


def _apply(step: _Step, values: dict[str, Tensor], device: torch.device, ends: dict[str, str]) -> Sequence[Tensor]:
    """The outputs of one step."""
    if step.operator is None:
        taken = step.branches[0 if values[step.node.inputs[0]].item() else 1]
        return _run(taken, dict(values), device, ends)
    host = step.operator.host
    tensors = [values[name] if name else None for name in step.node.inputs]
    computed = [tensor for place, tensor in enumerate(tensors) if tensor is not None and place not in host]
    mixed = any(tensor.device != computed[0].device for tensor in computed)
    arguments: list[object] = []
    for place, tensor in enumerate(tensors):
        if tensor is None:
            arguments.append(None)
        elif place in host:
            if tensor.requires_grad and torch.is_grad_enabled():
                raise step.node.error(f"reads {step.node.inputs[place]!r} as numbers, which takes no gradient")
            arguments.append(step.known[place] if place in step.known else tensor.flatten().tolist())
        else:
            arguments.append(tensor.to(device) if mixed else tensor)
    try:
        results = step.operator.translate(step.node, *arguments)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, ModelError):
            raise
        if "allocate memory" in str(error):  # what torch's allocator says on the CPU
            raise MemoryError from error
        raise step.node.error(f"cannot run in torch on these inputs: {error}") from error
    found = (results,) if isinstance(results, Tensor) else results
    passes = step.node.op not in FLAT and any(map(follows, found))
    if torch.is_grad_enabled() and not passes and any(map(follows, computed)):
        ends[step.node.name] = step.node.op
    return found
