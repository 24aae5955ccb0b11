"""The report as one page: numbers are the cost report's, names stay text, pictures are there, nothing is outside."""

import base64
import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_pages import Parsed, chain, evaluation
from small_programs import compile_small, matmul, small_spec

import xbarc
from hwspec.errors import DataError
from runtime.costing import CostReport
from runtime.program import TileProgram
from runtime.timing import schedule
from xbarc.page.markup import quantity, shortened
from xbarc.page.picture import SHADES
from xbarc.page.tiles import MOST
from xbarc.tile_view import view_tile, worst_tiles

DIGITS = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"
NAMES = (
    '"><script>alert(1)</script>',
    "<img src=x onerror='alert(2)'>",
    "long" * 500,
    "שלום\u202eevil",
    "層一",
    "seg0",
)


@pytest.fixture(scope="module")
def digits() -> TileProgram:
    return xbarc.compile(DIGITS, spec="rram-128")


@pytest.fixture(scope="module")
def costs(digits: TileProgram) -> CostReport:
    return xbarc.cost(digits)


@pytest.fixture(scope="module")
def page(digits: TileProgram) -> str:
    return xbarc.report_page(digits, evaluation(digits))


@pytest.fixture(scope="module")
def parsed(page: str) -> Parsed:
    return Parsed(page)


def test_numbers_of_layers_are_the_cost_reports(digits: TileProgram, costs: CostReport, parsed: Parsed) -> None:
    head, *rows = parsed.tables["Mapped layers"]
    names = [shown for shown, _ in head]
    assert [row[0][0] for row in rows] == [layer.name for layer in costs.layers]
    for row, cost, layer in zip(rows, costs.layers, digits.report.layers, strict=True):
        found = {name: float(value) for name, (_, value) in zip(names, row, strict=True) if value is not None}
        assert found == {
            "matrix": layer.groups * layer.rows * layer.cols,
            "tiles": layer.tiles,
            "arrays": layer.arrays,
            "utilisation": layer.utilisation,
            "windows": layer.windows,
            "start": cost.start,
            "time": cost.time,
            "reads": cost.reads,
            "conversions": cost.conversions,
            "energy": sum(cost.energy.values()),
            "ADC bits needed": cost.adc_bits_needed,
            "clipped": cost.clipped,
            "weight error": layer.weight_error,
        }
        assert dict(zip(names, [shown for shown, _ in row], strict=True))["limit"] == cost.limit


def test_numbers_of_the_summary_and_components(costs: CostReport, parsed: Parsed) -> None:
    modes = {row[0][0]: [value for _, value in row[1:]] for row in parsed.tables["Both ways of running"][1:]}
    for name, field in (("interval", "interval"), ("energy a sample", "energy"), ("TOPS/W", "tops_per_watt")):
        found = [float(value or "nan") for value in modes[name]]
        assert found == [getattr(costs.pipelined, field), getattr(costs.layer_by_layer, field)]
    parts = {row[0][0]: row[1:] for row in parsed.tables["Energy and area"][1:]}
    assert float(parts["ADC"][0][1] or "nan") == costs.energy["adc"]
    assert float(parts["ADC"][2][1] or "nan") == costs.area["adc"]
    assert float(parts["all"][0][1] or "nan") == pytest.approx(costs.pipelined.energy)
    assert float(parts["all"][2][1] or "nan") == pytest.approx(costs.total_area)
    words = " ".join(parsed.words)
    for told in (
        "1 MAC is 2 operations",
        quantity(costs.pipelined.latency, "s"),
        quantity(costs.pipelined.power, "W"),
        f"{costs.pipelined.tops:.4g}",
        costs.bottleneck,
        *costs.sources.values(),
        *costs.excluded,
    ):
        assert told in words, told


def test_the_graph_has_every_instruction_and_its_share(digits: TileProgram, parsed: Parsed) -> None:
    found = schedule(digits)
    items = [item for item in parsed.of("li") if item.get("class") in ("crossbar", "digital")]
    kinds = ["digital" if step.op == "host" else "crossbar" for step in digits.tables.instructions]
    assert [item["class"] for item in items] == kinds
    assert [float(item["data-value"] or "nan") for item in items] == [
        stage.time / found.serial for stage in found.stages
    ]


def test_every_digital_node_has_its_reason(digits: TileProgram, parsed: Parsed) -> None:
    rows = parsed.tables["Digital nodes"][1:]
    assert [(row[0][0], row[1][0], row[2][0]) for row in rows] == [
        (node.node, node.op, node.reason) for node in digits.report.digital
    ]
    assert {row[3][0] for row in rows} == set(digits.segments)


def test_every_picture_is_there(digits: TileProgram, parsed: Parsed) -> None:
    images = parsed.of("img")
    assert len(images) == 2 * len(digits.layers)
    for image in images:
        assert image["alt"]
        source = image["src"] or ""
        assert source.startswith("data:image/png;base64,")
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as opened:
            assert min(opened.size) > 0
    tile = worst_tiles(digits)["node_Conv_36"][0]
    with Image.open(io.BytesIO(base64.b64decode((images[0]["src"] or "").partition(",")[2]))) as opened:
        view = view_tile(digits, tile)
        assert opened.size == (view.tile.cols, view.tile.rows)
        middle = (SHADES - 1) / 2
        assert (np.asarray(opened) == np.rint(view.target * middle + middle)).all()
    drawings = [one for one in parsed.of("svg") if one.get("role") == "img"]
    assert len(drawings) == 5  # both ways of running, energy, area, chips
    assert len(parsed.of("title")) > len(drawings)


def test_nothing_is_asked_of_a_network(page: str, parsed: Parsed) -> None:
    for tag, attributes in parsed.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "data"):
                assert (value or "").startswith(("data:image/png", "#")), (tag, value)
            assert "url(" not in (value or "")
    assert not re.search(r"https?:|@import|url\(", page)
    (policy,) = [one["content"] for one in parsed.of("meta") if one.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert len(page.encode()) < 1e6


def test_sections_come_in_order_under_headings(parsed: Parsed) -> None:
    sections = [one["id"] for one in parsed.of("section")]
    assert sections == ["summary", "graph", "layers", "tiles", "occupancy", "components", "chips", "sources"]
    assert [one["href"] for one in parsed.of("a")] == [f"#{name}" for name in sections]
    assert len(parsed.of("h1")) == len(parsed.of("main")) == 1
    assert len(parsed.of("h2")) == len(sections)
    identities = [one["id"] for _, one in parsed.elements if "id" in one]
    assert len(set(identities)) == len(identities)


def test_names_of_a_model_stay_text() -> None:
    program = xbarc.compile(chain(NAMES))
    page = xbarc.report_page(program)
    parsed = Parsed(page)
    assert len(parsed.of("script")) == 1
    assert not parsed.of("b")
    assert all((one["src"] or "").startswith("data:") for one in parsed.of("img"))
    rows = parsed.tables["Mapped layers"][1:]
    assert [row[0][0] for row in rows] == [shortened(name) for name in NAMES]
    assert any(one.get("title") == NAMES[2] for one in parsed.of("bdi"))
    assert [row[0][0] for row in parsed.tables["Digital nodes"][1:]] == [
        shortened(f"{name}<b>relu</b>") for name in NAMES
    ]


def test_a_layer_may_have_the_name_of_a_segment() -> None:
    program = xbarc.compile(chain(("seg0", "seg1")))
    assert [layer.name for layer in xbarc.cost(program).layers] == ["seg0", "seg1"]


def test_failed_devices_are_drawn_where_they_are_known() -> None:
    spec = xbarc.HardwareSpec.preset("rram-128-faulty")
    program = xbarc.compile(matmul(40, 20).proto, spec=spec)
    mapped = xbarc.remap(program, xbarc.Chip.sample(spec, arrays=program.arrays, seed=1))
    parsed = Parsed(xbarc.report_page(mapped))
    targets, failed, residual = parsed.of("img")
    (name,) = mapped.tiles
    view = view_tile(mapped, name)
    assert "failed devices" in (failed["alt"] or "")
    with Image.open(io.BytesIO(base64.b64decode((failed["src"] or "").partition(",")[2]))) as opened:
        both = np.stack([np.where(off, 5, states) for states, off in zip(view.states, view.gated, strict=True)], 2)
        assert (np.asarray(opened) == both.reshape(40, -1)).all()
    assert targets["width"] == failed["width"] == residual["width"]


def test_the_worst_tile_of_a_layer_is_drawn(digits: TileProgram) -> None:
    for layer, (name, rms) in worst_tiles(digits).items():
        of_layer = [tile.name for tile in digits.tables.tiles if tile.layer == layer]
        errors = {tile: np.sqrt((view_tile(digits, tile).residual ** 2).mean()) for tile in of_layer}
        assert errors[name] == pytest.approx(max(errors.values()))
        assert rms == pytest.approx(errors[name])


def test_more_layers_than_are_drawn() -> None:
    program = xbarc.compile(chain(tuple(f"n{number}" for number in range(MOST + 3))))
    parsed = Parsed(xbarc.report_page(program))
    assert len(parsed.of("figure")) == MOST
    assert f"{MOST} of {MOST + 3} tiles are drawn, 3 are not" in " ".join(parsed.words)


def test_chips_are_points_with_mean_and_interval(digits: TileProgram, page: str, parsed: Parsed) -> None:
    found = evaluation(digits)
    assert sum(one.get("class") == "chip" for one in parsed.of("circle")) == len(found.chips)
    x = [float(one["cx"] or "nan") for one in parsed.of("circle") if one.get("class") == "chip"]
    assert np.corrcoef(x, found.chips)[0, 1] == pytest.approx(1.0, abs=1e-6)
    (mean,) = [float(one["x1"] or "nan") for one in parsed.of("line") if one.get("class") == "mean"]
    (band,) = [one for one in parsed.of("rect") if one.get("class") == "interval"]
    start, width = float(band["x"] or "nan"), float(band["width"] or "nan")
    slope = (x[2] - x[0]) / (found.chips[2] - found.chips[0])
    assert mean == pytest.approx(x[0] + slope * (found.mean - found.chips[0]), abs=0.1)
    assert start == pytest.approx(x[0] + slope * (found.ci95[0] - found.chips[0]), abs=0.1)
    assert start + width == pytest.approx(x[0] + slope * (found.ci95[1] - found.chips[0]), abs=0.1)
    assert f"{100 * found.mean:.2f}\u00a0%" in page
    assert "chips" not in [one["id"] for one in Parsed(xbarc.report_page(digits)).of("section")]


@pytest.mark.parametrize(
    "changed",
    [
        {"chips": (0.5,), "mean": 0.5, "ci95": (0.5, 0.5), "float": 0.5, "ideal": 0.5},
        {"metric": "relative_error", "float": 0.0, "ideal": 0.1, "chips": (7.0, 1e11), "good_chips": (0.0, 0.1)},
        {"drop": 0.1, "drop_ci95": (-0.1, 0.2), "by_layer": ({"layer": "<i>", "value": 0.3},)},
    ],
)
def test_every_evaluation_can_be_drawn(digits: TileProgram, changed: dict[str, object]) -> None:
    found = Parsed(xbarc.report_page(digits, evaluation(digits, **changed)))
    assert not found.of("i")
    for tag in ("rect", "line", "circle"):
        for attributes in found.of(tag):
            for name in ("x", "y", "x1", "x2", "cx", "width"):
                assert 0 <= float(attributes.get(name) or 0) < 1000, attributes


def test_an_evaluation_of_another_program_is_refused(digits: TileProgram) -> None:
    other = xbarc.compile(DIGITS, spec="ideal")
    with pytest.raises(DataError, match="must be of this program"):
        xbarc.report_page(digits, evaluation(other))


def test_the_hash_of_a_program_is_that_of_its_file(digits: TileProgram, tmp_path: Path) -> None:
    digits.save(tmp_path / "p.xbar")
    assert xbarc.load(tmp_path / "p.xbar").sha256 == digits.sha256
    assert xbarc.compile(DIGITS, spec="rram-128", seed=1).sha256 != digits.sha256


def test_pages_of_every_pairing_and_converter() -> None:
    for pairing in ("two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"):
        program = compile_small(matmul(20, 9), small_spec({"array.pairing": pairing, "periphery.adc_bits": None}))
        Parsed(xbarc.report_page(program))


def test_a_page_is_made_in_a_moment(digits: TileProgram) -> None:
    start = time.process_time()
    xbarc.report_page(digits)
    assert time.process_time() - start < 2
