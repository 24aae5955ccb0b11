"""Segments and layers, in the order given, compute every output of any graph, each reading what was written before."""

from collections import Counter
from dataclasses import dataclass, field

import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compiler.segments import Cut, cut_segments, reads
from runtime.tables import Host


@dataclass
class Drawn:
    """A random graph: digital nodes and layers in topological order, and what it reads from and gives to outside."""

    items: list[onnx.NodeProto | str] = field(default_factory=list)
    layers: dict[str, tuple[str, str]] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return [item for item in self.items if isinstance(item, onnx.NodeProto)]

    def cut(self) -> tuple[tuple[Cut, ...], tuple[Host | str, ...]]:
        return cut_segments(self.nodes, self.layers, self.constants, self.outputs)


def branch(name: str, captured: list[str]) -> onnx.GraphProto:
    """A branch that takes values from outside, directly and through a value of its own."""
    nodes = [helper.make_node("Sum", captured, [f"{name}.inner"]), helper.make_node("Neg", [f"{name}.inner"], [name])]
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


@st.composite
def graphs(draw: st.DrawFn) -> Drawn:
    graph = Drawn(inputs=[f"x{n}" for n in range(draw(st.integers(1, 3)))])
    graph.constants = [f"c{n}" for n in range(draw(st.integers(0, 2)))]
    values = list(graph.inputs)
    for number in range(draw(st.integers(1, 14))):
        if draw(st.booleans()):
            name, source, target = f"layer{number}", draw(st.sampled_from(values)), f"y{number}"
            graph.layers[name] = (source, target)
            graph.items.append(name)
            values.append(target)
            continue
        read = draw(st.lists(st.sampled_from([*values, *graph.constants]), min_size=1, max_size=3))
        made = [f"v{number}.{output}" for output in range(draw(st.integers(1, 2)))]
        if draw(st.integers(0, 3)):
            node = helper.make_node("Digital", [*read, ""], made, f"node{number}")
        else:
            branches = {key: branch(f"{key}{number}", read[:2]) for key in ("then_branch", "else_branch")}
            node = helper.make_node("If", read[-1:], made, f"node{number}", **branches)
        graph.items.append(node)
        values += made
    graph.outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True))
    return graph


def apply(node: onnx.NodeProto, values: dict[str, int]) -> None:
    """Symbolic run of a digital node: each output is a hash of its inputs."""
    arguments = tuple(sorted((name, values[name]) for name in reads(node)))
    values.update({name: hash((node.name, position, arguments)) for position, name in enumerate(node.output)})


@settings(deadline=None, max_examples=300)
@given(graphs())
def test_segments_and_layers_in_order_compute_the_graph(graph: Drawn) -> None:
    outside = {name: hash(name) for name in (*graph.inputs, *graph.constants)}
    wanted = dict(outside)
    for item in graph.items:
        if isinstance(item, str):
            source, target = graph.layers[item]
            wanted[target] = hash((item, wanted[source]))
        else:
            apply(item, wanted)

    cuts, order = graph.cut()
    by_name = {cut.name: cut for cut in cuts}
    assert sorted(node.name for cut in cuts for node in cut.nodes) == sorted(node.name for node in graph.nodes)
    assert Counter(step if isinstance(step, str) else step.segment for step in order) == Counter(
        [*graph.layers, *by_name]
    ), "each runs once"
    buffers = {name: outside[name] for name in graph.inputs}
    for step in order:
        if isinstance(step, str):
            source, target = graph.layers[step]
            buffers[target] = hash((step, buffers[source]))
            continue
        # A segment sees its declared inputs and the constants only, and nothing of it stays but its declared outputs.
        inner = {name: buffers[name] for name in step.inputs} | {name: outside[name] for name in graph.constants}
        for node in by_name[step.segment].nodes:
            apply(node, inner)
        buffers |= {name: inner[name] for name in step.outputs}
    assert {name: buffers[name] for name in graph.outputs} == {name: wanted[name] for name in graph.outputs}


@settings(deadline=None, max_examples=100)
@given(graphs())
def test_segments_give_out_only_what_others_read(graph: Drawn) -> None:
    cuts, _ = graph.cut()
    for cut in cuts:
        others = [*graph.outputs, *(source for source, _ in graph.layers.values())]
        others += [name for other in cuts if other is not cut for name in other.inputs]
        assert set(cut.outputs) <= set(others)
        assert not set(cut.inputs) & set(graph.constants)


def test_a_chain_of_digital_nodes_between_two_layers_is_one_segment() -> None:
    nodes = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    cuts, order = cut_segments(nodes, {"first": ("x", "a"), "second": ("c", "y")}, (), ["y"])
    (cut,) = cuts
    assert (cut.inputs, cut.outputs) == (("a",), ("c",))
    assert order == ("first", cut.call, "second")


def test_what_a_branch_makes_itself_is_not_read_from_outside() -> None:
    inner = branch("then_branch", ["a", "b"])
    node = helper.make_node("If", ["cond"], ["y"], then_branch=inner, else_branch=branch("else_branch", ["b"]))
    assert reads(node) == {"cond", "a", "b"}
