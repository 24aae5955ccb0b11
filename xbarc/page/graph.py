"""Section: the instructions of a program in order, what each waits for, and what stays digital and why."""

import onnx

from runtime.program import TileProgram
from runtime.timing import Schedule
from xbarc.page.drawing import number
from xbarc.page.markup import Cell, Html, count, element, named, paragraph, quantity, section, share, shortened, table

_ROW = 46
"""CSS pixels of an instruction; the style sheet has the same."""
_LANE = 12
_LANES = 8


def graph(program: TileProgram, found: Schedule) -> Html:
    """Instructions with their dependencies and shares of the time, and the table of digital nodes."""
    nodes = nodes_of_segments(program)
    told = (
        "Every instruction in order, and lines from those whose results it reads. Bars are shares of the time of all "
        "instructions one after another."
    )
    key = element(
        "p",
        {"class": "key"},
        element("span", {"class": "swatch crossbar"}),
        "layer on crossbars ",
        element("span", {"class": "swatch digital"}),
        "digital segment",
    )
    drawn = element(
        "div",
        {"class": "graph", "role": "region", "tabindex": "0", "aria-label": "Graph of instructions"},
        _edges(program, found),
        element("ol", None, *(_row(program, found, nodes, stage) for stage in range(len(found.stages)))),
    )
    return section("graph", "What runs where", paragraph(told), key, drawn, *_digital(program, nodes))


def nodes_of_segments(program: TileProgram) -> dict[str, list[tuple[str, str]]]:
    """Name and operator of the nodes of each digital segment."""
    return {
        name: [(node.name, node.op_type) for node in onnx.load_model_from_string(data).graph.node]
        for name, data in program.segments.items()
    }


def _row(program: TileProgram, found: Schedule, nodes: dict[str, list[tuple[str, str]]], at: int) -> Html:
    stage, waits = found.stages[at], found.depends[at]
    digital = program.tables.instructions[at].op == "host"
    if digital:
        ops = list(dict.fromkeys(op for _, op in nodes[stage.name]))
        told = ", ".join(ops[:4]) + (f" and {len(ops) - 4} more" if len(ops) > 4 else "")
    else:
        layer = program.layers[stage.name]
        told = f"{layer.op} {layer.rows} × {layer.cols} on {count(len(stage.resources), 'array')}"
    after = "the inputs" if not waits else ", ".join(str(one + 1) for one in waits)
    part = stage.time / found.serial if found.serial else 0.0
    return element(
        "li",
        {"class": "digital" if digital else "crossbar", "data-value": repr(part)},
        element(
            "span",
            {"class": "what"},
            element("span", {"class": "name"}, f"{at + 1}. ", named(stage.name)),
            element("small", None, f"{shortened(told, 60)}; after {shortened(after, 24)}"),
        ),
        element(
            "span",
            {"class": "time"},
            element("span", {"class": "fill", "style": f"width:{100 * part:.2f}%"}),
            element("small", None, f"{share(part)}, {quantity(stage.time, 's')}"),
        ),
    )


def _edges(program: TileProgram, found: Schedule) -> Html:
    """Lines beside the list: straight to the next instruction, around others where one is further down."""
    readers: dict[int, list[int]] = {}
    for at, waits in enumerate(found.depends):
        for one in waits:
            readers.setdefault(one, []).append(at)
    lanes, free = {}, [0] * _LANES
    for start, reading in sorted(readers.items()):
        if (end := max(reading)) > start + 1:
            lane = next((lane for lane in range(_LANES) if free[lane] <= start), _LANES - 1)
            lanes[start] = lane
            free[lane] = max(end, free[lane])
    width = (max(lanes.values(), default=-1) + 2) * _LANE
    main = width - _LANE / 2

    def middle(at: int) -> float:
        return (at + 0.5) * _ROW

    parts = []
    for start, reading in sorted(readers.items()):
        for end in reading:
            if end == start + 1:
                parts.append(f"M{number(main)} {number(middle(start))}V{number(middle(end))}")
            else:
                x, bend = main - (lanes[start] + 1) * _LANE, _ROW / 3
                top, bottom = middle(start), middle(end)
                parts.append(
                    f"M{number(main)} {number(top)}Q{number(x)} {number(top)} {number(x)} {number(top + bend)}"
                    f"V{number(bottom - bend)}Q{number(x)} {number(bottom)} {number(main)} {number(bottom)}"
                )
    dots = [
        element(
            "circle",
            {
                "cx": number(main),
                "cy": number(middle(at)),
                "r": "4",
                "class": "digital" if step.op == "host" else "crossbar",
            },
        )
        for at, step in enumerate(program.tables.instructions)
    ]
    height = len(found.stages) * _ROW
    return element(
        "svg",
        {"width": number(width), "height": height, "viewBox": f"0 0 {number(width)} {height}", "aria-hidden": "true"},
        element("path", {"d": "".join(parts), "class": "edge"}),
        *dots,
    )


def _digital(program: TileProgram, nodes: dict[str, list[tuple[str, str]]]) -> list[Html]:
    heading = element("h3", None, "What stays digital, and why")
    if not program.report.digital:
        return [heading, paragraph("No operator of the model stays digital.")]
    segment_of = {node: segment for segment, inside in nodes.items() for node, _ in inside}
    rows = [
        [
            Cell(named(node.node)),
            Cell(named(node.op)),
            Cell(named(node.reason, 160)),
            Cell(segment_of.get(node.node, "–")),
            Cell("unknown") if node.macs is None else Cell(f"{node.macs:,}", node.macs),
            Cell("unknown") if node.elements is None else Cell(f"{node.elements:,}", node.elements),
            Cell("yes" if node.constant_weight else "no"),
        ]
        for node in program.report.digital
    ]
    columns = ("node", "op", "reason", "segment", "MACs", "elements", "constant weight")
    return [heading, table(columns, rows, "Digital nodes")]
