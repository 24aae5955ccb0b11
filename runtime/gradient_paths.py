"""Which layers a loss teaches, by the way that gradients take back through a program."""

from collections.abc import Iterable, Mapping

import onnx

from hwspec.errors import ProgramError
from runtime.program import TileProgram
from runtime.tables import Host, Load, Store

FLAT = ("Ceil", "Floor", "Round", "Sign")
"""Operators whose slope is 0 wherever they have one."""


def check_taught(program: TileProgram, outputs: Iterable[str], ends: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse to train a program whose layers get no gradient, though its outputs depend on them.

    Parameters
    ----------
    program
        The program.
    outputs
        Names of the outputs that are taught.
    ends
        Of each digital segment, the nodes at which gradients end, with their operators.

    Raises
    ------
    ProgramError
        Naming the first layer that outputs depend on through such nodes alone, and the nodes; or the outputs, where
        they depend on no layer.
    """
    taught = list(outputs)
    known = _reached(program, taught, {})
    if not known:
        names = ", ".join(map(repr, taught))
        raise ProgramError(f"outputs {names}", "depend on no layer, so there is nothing that they could teach")
    cut_off = known - _reached(program, taught, ends)
    for layer in program.layers:
        if layer in cut_off:
            nodes = ", ".join(f"{name!r} ({op})" for segment in ends.values() for name, op in segment.items())
            hint = f"no gradient passes {nodes}; cut the model there, or replace what has no slope"
            raise ProgramError(f"layer {layer!r}", "gets no gradient, and would not be trained", hint=hint)


def _reached(program: TileProgram, outputs: Iterable[str], ends: Mapping[str, Mapping[str, str]]) -> set[str]:
    """Names of the layers that are met on the way back from outputs, past no end."""
    needed, layers = set(outputs), set[str]()
    for step in reversed(program.tables.instructions):
        if isinstance(step, Host):
            graph = onnx.load_model_from_string(program.segments[step.segment]).graph
            _walk_back(graph, needed, ends.get(step.segment, {}))
            continue
        if any(isinstance(one, Store) and one.buffer in needed for one in step.body):
            layers.add(step.layer)
            needed.update(one.buffer for one in step.body if isinstance(one, Load))
    return layers


def _walk_back(graph: onnx.GraphProto, needed: set[str], ends: Mapping[str, str]) -> None:
    """Add what the needed values of a segment are made of."""
    for node in reversed(graph.node):
        name = node.name or next(filter(None, node.output), node.op_type)
        ended = name in ends or bool(ends and node.op_type in FLAT)  # a branch may not have been run yet
        if not ended and needed.intersection(filter(None, node.output)):
            needed.update(filter(None, node.input))
            for branch in (one.g for one in node.attribute if one.type == onnx.AttributeProto.GRAPH):
                needed.update(output.name for output in branch.output)
                _walk_back(branch, needed, ends)
