"""Published networks and real exports compile, and their programs give what onnxruntime gives."""

import pytest
from exports import EXPORTERS, TORCH_NETWORKS, Exporter, network, sample, sklearn_export, torch_export
from ideal import assert_agrees

from benchmarks.real_models import REAL_MODELS
from runtime.program import TileProgram

pytestmark = pytest.mark.real


def assert_consistent(program: TileProgram) -> None:
    """Totals are the sums of the layers, and every layer counts what its matrices and windows say."""
    report, totals = program.report, program.report.totals
    assert [layer.name for layer in report.layers] == [layer.name for layer in program.tables.layers]
    assert totals.mapped_nodes == len(report.layers) > 0
    for field in ("tiles", "cells", "partial_sums"):
        assert getattr(totals, field) == sum(getattr(layer, field) for layer in report.layers)
    assert totals.mapped_macs == sum(layer.macs for layer in report.layers)
    assert all(node.macs is not None for node in report.digital)
    digital = sum(node.macs or 0 for node in report.digital)
    assert totals.macs == totals.mapped_macs + digital
    assert totals.mapped_macs <= totals.constant_weight_macs <= totals.macs
    assert totals.arrays == program.arrays <= sum(layer.arrays for layer in report.layers)
    for layer in report.layers:
        assert layer.macs == layer.windows * layer.groups * layer.rows * layer.cols
        assert layer.cells == 2 * layer.groups * layer.rows * layer.cols
        assert layer.tiles == len([tile for tile in program.tables.tiles if tile.layer == layer.name])


def mapped_share(program: TileProgram) -> float:
    totals = program.report.totals
    return totals.mapped_macs / totals.constant_weight_macs


@pytest.mark.parametrize("name", REAL_MODELS)
def test_published_network(name: str) -> None:
    model = REAL_MODELS[name]
    program = assert_agrees(model.path, model.feeds(), model.input_shapes)
    assert_consistent(program)
    assert (mapped_share(program) >= 0.99) == (not model.recurrent)
    unmapped = {node.op for node in program.report.digital if node.constant_weight}
    assert unmapped == ({"LSTM"} if model.recurrent else set())


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", TORCH_NETWORKS)
def test_torch_export(name: str, exporter: Exporter) -> None:
    model, x = torch_export(name, exporter), sample(name, batch=3)
    program = assert_agrees(model, {"x": x})
    assert_consistent(program)
    assert mapped_share(program) == 1
    weights = sum(p.numel() for p in network(name).parameters() if p.ndim > 1)
    assert program.report.totals.cells == 2 * weights, "every weight of the network lies on two cells"
    products = [node for node in program.report.digital if node.macs]
    assert len(products) == (4 if name == "transformer" else 0), "attention multiplies activations"


def test_scikit_learn_export() -> None:
    model, x = sklearn_export()
    (info,) = model.graph.input
    program = assert_agrees(model, {info.name: x})
    assert_consistent(program)
    assert mapped_share(program) == 1
    assert [(layer.rows, layer.cols) for layer in program.report.layers] == [(64, 32), (32, 24), (24, 10)]
