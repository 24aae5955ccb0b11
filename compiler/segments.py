"""The digital rest of a graph, cut into segments that run between the layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import onnx

from runtime.tables import Host


@dataclass(frozen=True, eq=False)
class Cut:
    """A digital segment before it becomes a model: its nodes, and the values that cross its border."""

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def call(self) -> Host:
        """The instruction that runs it."""
        return Host(segment=self.name, inputs=self.inputs, outputs=self.outputs)


def reads(node: onnx.NodeProto) -> set[str]:
    """Values that a node reads: its inputs, and what its inner graphs take from outside."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
        for graph in graphs:
            inner = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            for child in graph.node:
                names |= reads(child) - inner
                inner |= set(child.output)
            names |= {output.name for output in graph.output} - inner
    return names


def cut_segments(
    nodes: Sequence[onnx.NodeProto],
    layers: Mapping[str, tuple[str, str]],
    constants: Iterable[str],
    outputs: Sequence[str],
) -> tuple[tuple[Cut, ...], tuple[Host | str, ...]]:
    """Cut the digital nodes into segments, and order segments and layers so that each reads what was written before.

    A node's depth is the number of layers before it on the longest path; a segment is a connected part of one depth,
    which makes it convex and the number of segments small.

    Parameters
    ----------
    nodes
        The digital nodes, in topological order.
    layers
        Source and target of each layer, by its name.
    constants
        Names of initializers: they belong to whichever segment reads them.
    outputs
        The model's outputs.

    Returns
    -------
    The segments, and the order in which segments (as `Host`) and layers (by name) run.
    """
    constant = set(constants)
    producer: dict[str, int | str] = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    producer |= {target: name for name, (_, target) in layers.items()}
    graph: nx.DiGraph[int | str] = nx.DiGraph()
    graph.add_nodes_from(range(len(nodes)))
    graph.add_nodes_from((name, {"source": source}) for name, (source, _) in layers.items())
    for number, node in enumerate(nodes):
        graph.add_edges_from((producer[name], number) for name in sorted(reads(node)) if name in producer)
    graph.add_edges_from((producer[source], name) for name, (source, _) in layers.items() if source in producer)
    depth: dict[int | str, int] = {}
    for item in nx.topological_sort(graph):
        before = max((depth[parent] for parent in graph.predecessors(item)), default=0)
        depth[item] = before + isinstance(item, str)
    by_depth: dict[int, list[int]] = {}
    for number in range(len(nodes)):
        by_depth.setdefault(depth[number], []).append(number)
    members: list[list[int]] = []
    for level in sorted(by_depth):
        parts = nx.connected_components(graph.subgraph(by_depth[level]).to_undirected(as_view=True))
        members += sorted(sorted(part) for part in parts)
    cuts = tuple(_cut(f"seg{index}", part, nodes, graph, constant, set(outputs)) for index, part in enumerate(members))
    return cuts, _order(cuts, layers)


def _cut(
    name: str,
    part: list[int],
    nodes: Sequence[onnx.NodeProto],
    graph: "nx.DiGraph[int | str]",
    constants: set[str],
    model_outputs: set[str],
) -> Cut:
    inside = set(part)
    made = {value for number in part for value in nodes[number].output if value}
    inputs: dict[str, None] = {}
    for number in part:
        inputs |= dict.fromkeys(value for value in sorted(reads(nodes[number])) if value not in made | constants)
    outputs: dict[str, None] = {}
    for number in part:
        outside = [successor for successor in graph.successors(number) if successor not in inside]
        wanted = model_outputs.union(*(_reads_of(successor, nodes, graph) for successor in outside))
        outputs |= dict.fromkeys(value for value in nodes[number].output if value in wanted)
    return Cut(name, tuple(nodes[number] for number in part), tuple(inputs), tuple(outputs))


def _reads_of(item: int | str, nodes: Sequence[onnx.NodeProto], graph: "nx.DiGraph[int | str]") -> set[str]:
    if isinstance(item, int):
        return reads(nodes[item])
    return {graph.nodes[item]["source"]}


def _order(cuts: tuple[Cut, ...], layers: Mapping[str, tuple[str, str]]) -> tuple[Host | str, ...]:
    steps: dict[str, tuple[Host | str, Sequence[str], Sequence[str]]] = {
        f"host {cut.name}": (cut.call, cut.inputs, cut.outputs) for cut in cuts
    }
    steps |= {f"loop {name}": (name, (source,), (target,)) for name, (source, target) in layers.items()}
    writer = {value: key for key, (_, _, outputs) in steps.items() for value in outputs}
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(steps)
    for key, (_, inputs, _) in steps.items():
        graph.add_edges_from((writer[value], key) for value in inputs if value in writer)
    position = {key: index for index, key in enumerate(steps)}
    return tuple(steps[key][0] for key in nx.lexicographical_topological_sort(graph, key=position.__getitem__))
