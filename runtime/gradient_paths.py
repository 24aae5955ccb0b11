"""Which layers a loss teaches, by the way that gradients take back through a program."""

from collections.abc import Iterable, Mapping

import onnx

from hwspec.errors import ProgramError
from runtime.program import TileProgram
from runtime.tables import Host, Load, Store


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
        Naming the first layer that outputs depend on through such nodes alone, and the nodes.
    """
    taught = list(outputs)
    cut_off = _reached(program, taught, {}) - _reached(program, taught, ends)
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
        if name not in ends and needed.intersection(filter(None, node.output)):
            needed.update(filter(None, node.input))
