"""Every real network verifies on both presets: end to end on `ideal`, tile by tile and layer by layer on `rram-128`."""

import pytest
from exports import EXPORTERS, TORCH_NETWORKS, Exporter, sample, sklearn_export, torch_export

import xbarc
from benchmarks.real_models import REAL_MODELS

pytestmark = pytest.mark.real
SPECS = ("ideal", "rram-128")


@pytest.mark.parametrize("name", REAL_MODELS)
def test_published_network(name: str) -> None:
    model = REAL_MODELS[name]
    feeds = model.feeds()
    for spec in SPECS:
        program = xbarc.compile(model.path, spec, feeds, input_shapes=model.input_shapes)
        report = xbarc.verify(program, model.path, feeds)
        assert report.passed, report.failures
        assert len(report.layers) == len(program.report.layers)
        if spec == "ideal":
            assert report.bound == 1e-4 >= report.max_error


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", TORCH_NETWORKS)
def test_torch_export(name: str, exporter: Exporter) -> None:
    model, feeds = torch_export(name, exporter), {"x": sample(name, batch=2)}
    for spec in SPECS:
        report = xbarc.verify(xbarc.compile(model, spec, feeds), model, feeds)
        assert report.passed, report.failures


@pytest.mark.parametrize("zipmap", [False, True])
def test_scikit_learn_export(zipmap: bool) -> None:
    model, x = sklearn_export(zipmap=zipmap)
    name = model.graph.input[0].name
    for spec in SPECS:
        report = xbarc.verify(xbarc.compile(model, spec, {name: x}), model, {name: x})
        assert report.passed, report.failures
