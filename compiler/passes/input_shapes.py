"""Static input shapes: which dimensions become fixed, and which stay symbolic as the batch."""

import difflib
from collections.abc import Mapping

import onnx_ir as ir

from compiler.passes.edit import graphs
from hwspec.errors import DataError, ModelError

_ANONYMOUS = frozenset({"", "?"})
"""Names that exporters give to any unknown dimension; two of them need not be equal."""

Dim = int | str | None
"""A dimension: static, named, or unknown."""


def fix_input_shapes(model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    """Give the graph inputs the shapes asked for and forget every shape that was derived from the old ones.

    A given dimension becomes static, with two exceptions that keep the batch free: a leading dimension that the model
    leaves open stays symbolic, and so does every dimension that carries the same name as one of those. A leading
    dimension without a name of its own gets a fresh one. Shapes of all other values are dropped, to be inferred
    again.

    Parameters
    ----------
    model
        The model, changed in place.
    input_shapes
        Shape of any of the graph's inputs, by name.

    Raises
    ------
    DataError
        A name, rank or dimension disagrees with the model or with another given shape.
    ModelError
        An input that needs a shape is not a tensor.
    """
    given = dict(input_shapes or {})
    declared = {_name(value): _declared_dims(value) for value in model.graph.inputs}
    _check_names(given, declared)
    symbols = {dims[0] for dims in declared.values() if dims and isinstance(dims[0], str)}
    bound: dict[str, int] = {}
    for name, shape in given.items():
        _check_shape(name, shape, declared[name], bound)
    names = {dim for dims in declared.values() if dims for dim in dims if isinstance(dim, str)}
    for value in model.graph.inputs:
        name = _name(value)
        if isinstance(value.type, ir.TensorType):
            dims = _resolve(declared[name], given.get(name), symbols, bound)
            if dims is not None:
                if dims and dims[0] is None:
                    dims[0] = _fresh(f"{name}_batch", names)
                value.shape = ir.Shape(dims)
        elif name in given:
            raise ModelError(f"input {name!r}", "is not a tensor and has no shape to set", got=str(value.type))
    _forget_derived_shapes(model)


def _name(value: ir.Value) -> str:
    return value.name or ""


def _declared_dims(value: ir.Value) -> list[Dim] | None:
    """Dimensions as the model declares them, every spelling of unknown as ``None``."""
    if value.shape is None:
        return None
    dims: list[Dim] = []
    for dim in value.shape.dims:
        if isinstance(dim, int):
            dims.append(dim if dim > 0 else None)
        else:
            dims.append(None if dim.value is None or dim.value in _ANONYMOUS else dim.value)
    return dims


def _check_names(given: Mapping[str, tuple[int, ...]], declared: Mapping[str, list[Dim] | None]) -> None:
    for name in given:
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            inputs = ", ".join(sorted(declared)) or "none"
            hint = f"did you mean {close[0]!r}?" if close else f"the inputs are: {inputs}"
            raise DataError("input_shapes", "must name inputs of the model", got=name, hint=hint)


def _check_shape(name: str, shape: tuple[int, ...], dims: list[Dim] | None, bound: dict[str, int]) -> None:
    """Check one given shape against the declared one, and record what each named dimension is bound to."""
    subject = f"the shape of input {name!r}"
    for dim in shape:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise DataError(subject, "must consist of positive integers", got=tuple(shape))
    if dims is None:
        return
    if len(shape) != len(dims):
        raise DataError(subject, f"must have {len(dims)} dimensions", got=tuple(shape))
    for axis, (wanted, declared) in enumerate(zip(shape, dims, strict=True)):
        if isinstance(declared, int) and declared != wanted:
            raise DataError(subject, f"must have {declared} in dimension {axis}, as the model fixes it", got=wanted)
        if isinstance(declared, str) and bound.setdefault(declared, wanted) != wanted:
            raise DataError(
                subject,
                f"must have {bound[declared]} in dimension {axis}, which the model names {declared!r}, as another one",
                got=wanted,
            )


def _resolve(
    dims: list[Dim] | None, given: tuple[int, ...] | None, symbols: set[str], bound: Mapping[str, int]
) -> list[Dim] | None:
    """The dimensions that an input gets."""
    if dims is None:
        return None if given is None else [None, *given[1:]] if given else []
    resolved: list[Dim] = []
    for axis, dim in enumerate(dims):
        if isinstance(dim, int) or (isinstance(dim, str) and dim in symbols):
            resolved.append(dim)
        elif isinstance(dim, str):
            resolved.append(bound.get(dim, dim))
        else:
            resolved.append(None if given is None or axis == 0 else given[axis])
    return resolved


def _fresh(name: str, taken: set[str]) -> str:
    free, attempt = name, 0
    while free in taken:
        attempt += 1
        free = f"{name}_{attempt}"
    taken.add(free)
    return free


def _forget_derived_shapes(model: ir.Model) -> None:
    for graph in graphs(model.graph):
        for node in graph:
            for output in node.outputs:
                output.shape = None
            if node.domain == "" and node.op_type in ("Loop", "Scan"):
                # The first inputs of a Loop's body are its counter and condition, whose shape onnxruntime insists on.
                for value in node.attributes["body"].as_graph().inputs[2 if node.op_type == "Loop" else 0 :]:
                    value.shape = None
