"""Inlining: model-local functions, and If nodes whose condition is known."""

from collections.abc import Iterable

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from compiler.passes.edit import constant, nodes, remove_node, replace_value, subgraphs
from hwspec.errors import ModelError

MAX_INLINED_NODES = 1_000_000
"""Functions that call functions grow exponentially; beyond this the model is refused."""


def inline_functions(proto: onnx.ModelProto) -> ir.Model:
    """The model as an onnx_ir model without model-local functions.

    Raises
    ------
    ModelError
        A function calls itself, or the inlined graph would have more than a million nodes.
    """
    model = ir.from_proto(proto)
    if not model.functions:
        return model
    _check_growth(model)
    for function in model.functions.values():
        _separate_outputs(function)
    try:
        InlinePass()(model)
    except Exception:
        # A function may import another opset than the model; onnx's inliner converts it, so start again from the file.
        model = ir.from_proto(onnx.inliner.inline_local_functions(proto, convert_version=True))
    model.functions.clear()
    return model


def _check_growth(model: ir.Model) -> None:
    sizes: dict[ir.OperatorIdentifier, int] = {}
    open_calls: set[ir.OperatorIdentifier] = set()

    def size(body: Iterable[ir.Node]) -> int:
        total = 0
        for node in body:
            name = node.op_identifier()
            total += 1 if name not in model.functions else function_size(name)
            if total > MAX_INLINED_NODES:
                raise ModelError("the model", f"has more than {MAX_INLINED_NODES} nodes after inlining its functions")
        return total

    def function_size(name: ir.OperatorIdentifier) -> int:
        if name in open_calls:
            raise ModelError(f"function {name[1]!r}", "must not call itself", hint="the file is corrupt")
        if name not in sizes:
            open_calls.add(name)
            sizes[name] = size(model.functions[name].all_nodes())
            open_calls.remove(name)
        return sizes[name]

    size(model.graph.all_nodes())


def _separate_outputs(function: ir.Function) -> None:
    """Give a function output that is also an input, or listed twice, an Identity: inlining renames outputs."""
    seen: set[ir.Value] = set()
    for index, output in enumerate(function.outputs):
        if output.producer() is None or output in seen:
            identity = ir.node("Identity", [output])
            function.append(identity)
            function.outputs[index] = identity.outputs[0]
        seen.add(output)


def inline_constant_ifs(root: ir.Graph) -> bool:
    """Put the branch that runs in the place of every If whose condition is an initializer.

    Values that a branch promotes to the graph take the name of the If's output, so that a name means what it meant in
    the model as given.

    Returns
    -------
    bool
        Whether any If was inlined. Conditions inside the promoted branches may need another round of folding.
    """
    changed = False
    for node in nodes(root):
        if node.domain != "" or node.op_type != "If" or node.graph is None:
            continue
        condition = constant(node.inputs[0])
        if condition is None or condition.size != 1:
            continue
        taken = "then_branch" if bool(condition.numpy().reshape(-1)[0]) else "else_branch"
        _inline_branch(root, node, node.attributes[taken].as_graph())
        changed = True
    return changed


def _inline_branch(root: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"node {node.name!r} is in no graph")
    results, promoted = list(branch.outputs), list(branch)
    renamed: set[ir.Value] = set()
    branch.outputs.clear()
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        root.register_initializer(value)
    branch.remove(promoted)
    graph.insert_before(node, promoted)
    for old, new in zip(node.outputs, results, strict=True):
        name = old.name or ""
        if new.producer() in promoted and new not in renamed:
            old.name = f"{name}_if"
            replace_value(old, new)
            new.name = name
            renamed.add(new)
        elif old.is_graph_output():
            identity = ir.node("Identity", [new], name=f"{node.name}_{name}")
            graph.insert_before(node, identity)
            old.name = f"{name}_if"
            identity.outputs[0].type, identity.outputs[0].shape = old.type, old.shape
            replace_value(old, identity.outputs[0])
            identity.outputs[0].name = name
        else:
            replace_value(old, new)
    remove_node(node)


def holds_graphs(node: ir.Node) -> bool:
    """Whether a node has a graph among its attributes."""
    return next(subgraphs(node), None) is not None
