"""Shape arithmetic, followed element by element: a shape may be known in part.

Exporters compute shapes in the graph. With a symbolic batch, ``Shape`` alone is not constant, but most of its elements
are: those become initializers, and a ``Reshape`` whose target is known except for the batch gets a constant target.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from compiler.passes.edit import (
    add_initializer,
    attribute_int,
    constant,
    nodes,
    replace_by_constant,
    static_shape,
)
from compiler.passes.infer import input_symbols

_MAX_TRACKED_ELEMENTS = 64
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)

Element = int | str | None
"""An integer, a symbolic dimension of a graph input, or unknown."""

Elements = tuple[Element, ...]
"""The elements of a scalar or vector of integers."""

Lookup = Callable[[ir.Value | None], Elements | None]


def fold_shapes(model: ir.Model) -> bool:
    """Make initializers of the integers and of the Reshape targets that follow from static dimensions.

    Follows Shape and Size through Gather, Slice, Concat, Squeeze, Unsqueeze, Cast and Identity.

    Returns
    -------
    bool
        Whether anything was folded.
    """
    symbols = input_symbols(model.graph)
    known: dict[ir.Value, Elements] = {}
    changed = False
    for node in nodes(model.graph):
        if node.domain != "" or not node.outputs:
            continue
        if node.op_type == "Reshape":
            changed |= _fix_reshape(model.graph, node, known)
            continue
        if node.op_type in ("Expand", "ConstantOfShape"):
            changed |= _adopt_target(node, known)
            continue
        follow, output = _FOLLOW.get(node.op_type), node.outputs[0]
        if follow is None or (output.is_graph_output() and node.graph is not model.graph):
            continue
        elements = follow(node, lambda value: _elements(value, known))
        if elements is None or len(elements) > _MAX_TRACKED_ELEMENTS:
            continue
        elements = tuple(e if isinstance(e, int) or e in symbols else None for e in elements)
        known[output] = elements
        numbers = [element for element in elements if isinstance(element, int)]
        if len(numbers) == len(elements) and output.dtype in _INTEGERS and output.shape is not None:
            array = np.array(numbers, dtype=output.dtype.numpy())
            replace_by_constant(model.graph, output, ir.tensor(array.reshape([len(numbers)] * len(output.shape))))
            changed = True
    return changed


def _fix_reshape(root: ir.Graph, node: ir.Node, known: dict[ir.Value, Elements]) -> bool:
    """Give a Reshape a constant target if all but one of its elements are known, or are those of the input."""
    if len(node.inputs) < 2 or constant(node.inputs[1]) is not None or attribute_int(node, "allowzero", 0) != 0:
        return False
    data, target = node.inputs[0], node.inputs[1]
    elements = None if target is None else known.get(target)
    if elements is None or target is None:
        return False
    dims = [] if data is None or data.shape is None else [d if isinstance(d, int) else d.value for d in data.shape.dims]
    fixed = []
    for index, element in enumerate(elements):
        if isinstance(element, int):
            fixed.append(element)
        elif element is not None and index < len(dims) and dims[index] == element:
            fixed.append(0)  # copies the dimension of the input
        else:
            fixed.append(-1)
    if fixed.count(-1) > 1 or (-1 in fixed and 0 in elements):
        return False
    name = f"{target.name}_static"
    node.replace_input_with(1, add_initializer(root, name, ir.tensor(np.array(fixed, dtype=np.int64))))
    return True


def _adopt_target(node: ir.Node, known: dict[ir.Value, Elements]) -> bool:
    """Give the result of an Expand or ConstantOfShape the dimensions of its target that are known."""
    target = known.get(node.inputs[-1]) if node.inputs and node.inputs[-1] is not None else None
    result = node.outputs[0]
    if target is None or (result.shape is not None and len(result.shape) != len(target)):
        return False
    dims: list[Element] = list(target)
    if node.op_type == "Expand":
        source = None if node.inputs[0] is None else node.inputs[0].shape
        if source is None or len(source) > len(target):
            return False
        own: list[Element] = [dim if isinstance(dim, int) else dim.value for dim in source.dims]
        padded: list[Element] = [*[1] * (len(target) - len(own)), *own]
        dims = [_broadcast(dim, wanted) for dim, wanted in zip(padded, target, strict=True)]
    if any(isinstance(dim, int) and dim < 0 for dim in dims):
        return False
    before = [None] * len(dims) if result.shape is None else list(result.shape.dims)
    merged = [new if isinstance(old, ir.SymbolicDim | None) else old for old, new in zip(before, dims, strict=True)]
    shape = ir.Shape(merged)
    if result.shape == shape:
        return False
    result.shape = shape
    return True


def _broadcast(dim: Element, wanted: Element) -> Element:
    """The size of an axis expanded to a target, where it follows from what is known."""
    if dim == 1 or dim == wanted:
        return wanted
    return dim if wanted == 1 or isinstance(dim, int) else None


def _elements(value: ir.Value | None, known: dict[ir.Value, Elements]) -> Elements | None:
    if value in known:
        return known[value]
    tensor = constant(value)
    if tensor is None or tensor.dtype not in _INTEGERS:
        return None
    if len(tensor.shape) > 1 or tensor.size > _MAX_TRACKED_ELEMENTS:
        return None
    return tuple(int(element) for element in tensor.numpy().reshape(-1))


def _follow_shape(node: ir.Node, _: Lookup) -> Elements | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    dims: list[Element] = [dim if isinstance(dim, int) else dim.value for dim in value.shape.dims]
    end = attribute_int(node, "end", len(dims))
    return tuple(dims[attribute_int(node, "start", 0) : end])


def _follow_size(node: ir.Node, _: Lookup) -> Elements | None:
    shape = None if node.inputs[0] is None else static_shape(node.inputs[0])
    return None if shape is None else (math.prod(shape),)


def _follow_gather(node: ir.Node, lookup: Lookup) -> Elements | None:
    data, indices = lookup(node.inputs[0]), lookup(node.inputs[1])
    if data is None or indices is None or _rank(node.inputs[0]) != 1 or attribute_int(node, "axis", 0) not in (0, -1):
        return None
    picked: list[Element] = []
    for index in indices:
        if not isinstance(index, int) or not -len(data) <= index < len(data):
            return None
        picked.append(data[index])
    return tuple(picked)


def _follow_slice(node: ir.Node, lookup: Lookup) -> Elements | None:
    data = lookup(node.inputs[0])
    if data is None or _rank(node.inputs[0]) != 1:
        return None
    bounds: list[int] = []
    for position, (key, default) in enumerate((("starts", None), ("ends", None), ("axes", 0), ("steps", 1)), start=1):
        if key in node.attributes:
            found: Sequence[Element] | None = node.attributes[key].as_ints()
        elif position < len(node.inputs) and node.inputs[position] is not None:
            found = lookup(node.inputs[position])
        else:
            found = None if default is None else (default,)
        if found is None or len(found) != 1 or not isinstance(found[0], int):
            return None
        bounds.append(found[0])
    start, end, axis, step = bounds
    return data[start:end:step] if axis in (0, -1) and step > 0 else None


def _follow_concat(node: ir.Node, lookup: Lookup) -> Elements | None:
    joined: list[Element] = []
    for value in node.inputs:
        shape = None if value is None else static_shape(value)
        elements = lookup(value)
        if elements is None and shape is not None and len(shape) == 1 and shape[0] <= _MAX_TRACKED_ELEMENTS:
            elements = (None,) * shape[0]
        if elements is None:
            return None
        joined.extend(elements)
    return tuple(joined)


def _follow_reshaping(node: ir.Node, lookup: Lookup) -> Elements | None:
    """Squeeze, Unsqueeze, Identity and integer Cast keep the elements; the result must stay a scalar or a vector."""
    if node.outputs[0].dtype not in _INTEGERS:
        return None
    return lookup(node.inputs[0]) if _rank(node.outputs[0]) in (0, 1) else None


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


_FOLLOW: dict[str, Callable[[ir.Node, Lookup], Elements | None]] = {
    "Shape": _follow_shape,
    "Size": _follow_size,
    "Gather": _follow_gather,
    "Slice": _follow_slice,
    "Concat": _follow_concat,
    "Squeeze": _follow_reshaping,
    "Unsqueeze": _follow_reshaping,
    "Identity": _follow_reshaping,
    "Cast": _follow_reshaping,
}
