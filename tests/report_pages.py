"""What tests of report pages share: a parser of pages, models with odd names, and evaluations."""

from html.parser import HTMLParser

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.program import TileProgram
from xbarc.eval_report import EvalReport


class Parsed(HTMLParser):
    """Elements of a page, and tables as rows of text with the numbers that they are sorted by."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[tuple[str, str | None]]]] = {}
        self._inside: list[str] = []
        self._caption = ""
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self._inside, f"not closed: {self._inside}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("meta", "img"):
            return
        self._inside.append(tag)
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self.tables[self._caption].append([])
        if tag in ("th", "td"):
            self.tables[self._caption][-1].append(("", dict(attrs).get("data-value")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag
        if tag == "caption":
            self.tables[self._caption] = []

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "caption" in self._inside:
            self._caption += data
        if "th" in self._inside or "td" in self._inside:
            shown, value = self.tables[self._caption][-1][-1]
            self.tables[self._caption][-1][-1] = shown + data, value

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a kind."""
        return [attributes for found, attributes in self.elements if found == tag]


def evaluation(program: TileProgram, **changed: object) -> EvalReport:
    """An evaluation of eight chips."""
    chips = (0.95, 0.96, 0.97, 0.94, 0.95, 0.96, 0.955, 0.965)
    values: dict[str, object] = {
        "model": program.tables.model_name,
        "program_sha256": program.sha256,
        "metric": "accuracy",
        "float": 0.99,
        "ideal": 0.98,
        "chips": chips,
        "mean": sum(chips) / len(chips),
        "std": 0.01,
        "ci95": (0.945, 0.97),
        "worst": 0.94,
        "percentile5": 0.943,
        "good_chips": None,
        "drop": None,
        "drop_ci95": None,
        "failed_devices": 0.0,
        "failed_pairs": 0.0,
        "remapped": False,
        "samples": 360,
        "seed": 4,
        "seconds": 0.0,
        "effects": ("spread",),
        "trim": None,
        "by_layer": (),
        "onnxruntime_segments": {},
        "warnings": (),
    }
    return EvalReport.model_validate(values | changed)


def chain(names: tuple[str, ...]) -> onnx.ModelProto:
    """Products and rectifiers in turn, whose nodes have these names."""
    nodes, weights, last = [], [], "x"
    for number, name in enumerate(names):
        values = np.random.default_rng(number).standard_normal((6, 6)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"h{number}"], name))
        nodes.append(helper.make_node("Relu", [f"h{number}"], [f"r{number}"], f"{name}<b>relu</b>"))
        last = f"r{number}"
    graph = helper.make_graph(
        nodes,
        "<script>alert('model')</script>",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
