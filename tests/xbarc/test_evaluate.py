"""Evaluation: the metric is what it says, layer by layer and as a whole."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import xbarc
from compiler.compile import CompileOptions
from xbarc.data.load import Dataset, load_data

MODEL = Path(__file__).parents[2] / "models" / "digits-cnn" / "model.onnx"


@pytest.fixture(scope="module")
def data() -> Dataset:
    """The test split of digits."""
    return load_data("digits", xbarc.compile(MODEL, spec="ideal").tables.inputs)


def test_accuracy_is_the_share_of_right_answers(data: Dataset) -> None:
    assert data.labels is not None
    program = xbarc.compile(MODEL, calibration=data)
    report = xbarc.evaluate(program, data, batch=50)
    truth = ort.InferenceSession(str(MODEL)).run(None, data.inputs)[0]
    assert report.metric == "accuracy"
    assert report.samples == len(data) == 360
    assert report.float_ == pytest.approx((truth.argmax(1) == data.labels).mean())
    chip = xbarc.simulate(program)(data.inputs)[0]
    assert report.ideal == pytest.approx((chip.argmax(1) == data.labels).mean())
    assert report.chips == (report.ideal,)
    assert report.ci95[0] <= report.mean <= report.ci95[1]


def test_columns_are_re_estimated_as_a_simulation_does(data: Dataset) -> None:
    failing = {"failures.stuck_hrs.rate": 0.1}
    program = xbarc.compile(MODEL, spec=xbarc.HardwareSpec.preset("rram-128").with_fields(failing), calibration=data)
    few, chip = data.take(np.arange(100)), xbarc.Chip.sample(program.spec, program.arrays, 4)
    report = xbarc.evaluate(program, data, seed=4, batch=len(data), reestimate=few)
    plain, other = (xbarc.simulate(program, chip, seed=4, reestimate=inputs) for inputs in (None, few.inputs))
    shares = [float((one(data.inputs)[0].argmax(1) == data.labels).mean()) for one in (plain, other)]
    assert report.chips[0] == pytest.approx(shares[1], abs=0.01)  # the noise of reads is another
    assert shares[1] > shares[0] + 0.1
    reference = xbarc.simulate(program, chip, seed=4, reestimate=few.inputs, engine="reference")
    assert (reference(few.inputs)[0].argmax(1) == other(few.inputs)[0].argmax(1)).mean() > 0.95


def test_good_chips_and_single_layers_are_re_estimated_too(data: Dataset) -> None:
    """A drop compares like with like: without a failed device it is none, whatever re-estimation gains."""
    spec = xbarc.HardwareSpec.preset("wan2022").with_fields({"failures.stuck_hrs.rate": 1e-9})
    program = xbarc.compile(MODEL, spec=spec, calibration=data, options=CompileOptions(robust=False))
    few, test = data.take(np.arange(100)), data.take(np.arange(100, 300))
    options: dict[str, Any] = {"chips": 2, "seed": 4, "time": 172800.0, "drop": True, "by_layer": True}
    plain, found = (xbarc.evaluate(program, test, **options, reestimate=inputs) for inputs in (None, few))
    assert plain.good_chips == plain.chips
    assert found.good_chips == found.chips
    assert found.chips != plain.chips
    assert [one.value for one in found.by_layer] != [one.value for one in plain.by_layer]


def test_relative_error_without_labels_falls_with_resolution(data: Dataset) -> None:
    plain = Dataset(data.inputs, None, None, data.axes, data.fixed_batch).take(slice(0, 40))
    errors = []
    for bits in (4, 6, 8):
        spec = xbarc.HardwareSpec.preset("rram-128").with_fields({"periphery.adc_bits": bits})
        report = xbarc.evaluate(xbarc.compile(MODEL, spec=spec, calibration=data), plain)
        assert report.metric == "relative_error"
        assert report.float_ == 0
        errors.append(report.ideal)
    assert errors[0] > errors[1] > errors[2] > 0
    exact = xbarc.evaluate(xbarc.compile(MODEL, spec="ideal", calibration=data), plain)
    assert exact.ideal < 1e-5


def test_by_layer_isolates_one_layer(data: Dataset) -> None:
    plain = Dataset(data.inputs, None, None, data.axes, data.fixed_batch).take(slice(0, 40))
    program = xbarc.compile(MODEL, calibration=data)
    report = xbarc.evaluate(program, plain, by_layer=True, chips=0)
    assert [layer.layer for layer in report.by_layer] == list(program.layers)
    assert all(0 < layer.value < report.ideal for layer in report.by_layer)


def test_labels_must_fit_the_output(data: Dataset) -> None:
    program = xbarc.compile(MODEL, spec="ideal")
    assert data.labels is not None
    wrong = Dataset(data.inputs, data.labels + 1, None, data.axes, data.fixed_batch)
    with pytest.raises(xbarc.DataError, match="labels up to 10"):
        xbarc.evaluate(program, wrong)


def test_bootstrap_follows_the_seed(data: Dataset) -> None:
    program = xbarc.compile(MODEL, spec="ideal", calibration=data)
    intervals = [xbarc.evaluate(program, data, seed=seed).ci95 for seed in (0, 0)]
    assert intervals[0] == intervals[1]
    assert np.diff(intervals[0])[0] > 0
