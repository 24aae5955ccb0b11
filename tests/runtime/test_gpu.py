"""The engine, its gradients and fine-tuning on a GPU: as on the CPU. Skipped where there is none."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import tuning_cases as cases
from tuning_cases import blobs

import xbarc
from runtime.teacher_torch import TorchTeacher

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch computes on")
QUIET = ("read_noise",)
OPTIONS = xbarc.TuneOptions(epochs=2, batch=16, learning_rate=0.02, average=0.5, distill=0.5)
Floats = npt.NDArray[np.float64]


def gradients(device: str) -> list[Floats]:
    """Of the loss of a small classifier on a chip without noise, by its parameters."""
    program, data = cases.program(), blobs(64)
    chip = xbarc.Chip.sample(program.spec, program.arrays, 3)
    module = xbarc.to_torch(program, chip, without=QUIET, device=device)
    labels = torch.from_numpy(data.labels).to(device)
    scores = module(torch.from_numpy(data.inputs["x"]).to(device))
    torch.nn.functional.cross_entropy(scores, labels).backward()  # type: ignore[no-untyped-call]
    found: list[Any] = [one.grad for one in module.parameters()]
    return [one.detach().cpu().double().numpy() for one in found]


@GPU
def test_a_gpu_computes_what_the_cpu_computes() -> None:
    program, data = cases.program(), blobs(200)
    chip = xbarc.Chip.sample(program.spec, program.arrays, 3)
    on = {device: xbarc.simulate(program, chip, device=device, without=QUIET) for device in ("cpu", "cuda")}
    cpu, gpu = (one(data.inputs)[0] for one in on.values())
    # Sums in another order may fall on the other side of a tie of the ADC, rarely.
    assert np.mean(np.isclose(cpu, gpu, atol=1e-5)) > 0.99
    assert np.abs(cpu - gpu).max() < 0.05 * np.abs(cpu).max()


@GPU
def test_a_gpu_has_the_gradients_of_the_cpu() -> None:
    for cpu, gpu in zip(gradients("cpu"), gradients("cuda"), strict=True):
        assert np.abs(cpu).max() > 0
        np.testing.assert_allclose(gpu, cpu, atol=0.02 * np.abs(cpu).max())


@GPU
def test_tuning_on_a_gpu_teaches_in_torch_and_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    teach = TorchTeacher.__call__

    def counted(self: TorchTeacher, inputs: Any) -> Any:
        asked.append(inputs)
        return teach(self, inputs)

    monkeypatch.setattr(TorchTeacher, "__call__", counted)
    options = replace(OPTIONS, epochs=8, batch=32)
    result = xbarc.finetune(cases.program(), blobs(400), options=options, device="cuda")
    assert asked
    test = blobs(400, 6)
    chips = [xbarc.Chip.sample(result.program.spec, result.program.arrays, seed) for seed in range(50, 60)]
    assert cases.accuracy(result.program, test, chips) > cases.accuracy(cases.program(), test, chips)


@GPU
def test_a_run_on_a_gpu_goes_on_from_its_checkpoint(tmp_path: Any) -> None:
    def history(path: Any, **more: Any) -> list[float]:
        result = xbarc.finetune(cases.program(), blobs(64), options=OPTIONS, device="cuda", checkpoint=path, **more)
        return [row.loss for row in result.history]

    class StoppedError(Exception):
        pass

    def stop(_told: str, done: int, _total: int | None) -> None:
        if done == 5:
            raise StoppedError

    path = tmp_path / "run.checkpoint"
    with pytest.raises(StoppedError):
        history(path, progress=stop)
    assert history(path) == pytest.approx(history(None), rel=1e-4)


def test_a_teacher_in_torch_gives_what_onnxruntime_gives() -> None:
    from compiler.floatmodel import FloatModel

    model, data = cases.classifier(), blobs(32)
    (truth,) = FloatModel(model).run(data.inputs, ["y"]).values()
    inputs = {"x": torch.from_numpy(data.inputs["x"]).double(), "more": torch.zeros(1)}
    (found,) = TorchTeacher(model, ["y"], "cpu")(inputs)
    np.testing.assert_allclose(found.numpy(), truth, rtol=1e-5, atol=1e-5)
