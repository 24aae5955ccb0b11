"""Compiles a model for the preset `ideal` and holds its program against onnxruntime on the untouched model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from compiler.compile import CompileOptions, finish, run_compile
from compiler.frontend import load_model
from hwspec.spec import HardwareSpec
from runtime.check import check_program
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.reference import Reference

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

TOLERANCE = 1e-4
"""Of an output's largest magnitude: the bound of `verify` on a spec without quantisation."""


def compile_ideal(
    model: onnx.ModelProto | str | Path, input_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> TileProgram:
    """The program of a model on the preset `ideal`, checked as a loaded one is."""
    options = CompileOptions(input_shapes=dict(input_shapes or {}))
    program = finish(run_compile(load_model(model), HardwareSpec.preset("ideal"), options, None))
    check_program(program)
    return program


def run_program(program: TileProgram, feeds: Feeds) -> list[Any]:
    """Outputs of a program on a perfect chip."""
    return Reference(program_chip(program))(dict(feeds))


def run_onnxruntime(model: onnx.ModelProto | str | Path, feeds: Feeds) -> list[Any]:
    """Outputs of a model in onnxruntime, operator by operator as the standard has them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, dict(feeds))
    return outputs


def assert_close(outputs: Sequence[Any], wanted: Sequence[Any], tolerance: float = TOLERANCE) -> None:
    """Each output has the wanted type and shape, and its values to `tolerance` of their largest magnitude."""
    for got, value in zip(outputs, wanted, strict=True):
        assert got.dtype == value.dtype
        assert got.shape == value.shape
        if value.size:
            scale = float(np.abs(value.astype(np.float64)).max())
            np.testing.assert_allclose(got, value, rtol=0, atol=tolerance * scale)


def assert_agrees(
    model: onnx.ModelProto | str | Path,
    feeds: Feeds,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    tolerance: float = TOLERANCE,
) -> TileProgram:
    """Compile a model, and find that its program gives what onnxruntime gives; returns the program."""
    program = compile_ideal(model, input_shapes)
    assert_close(run_program(program, feeds), run_onnxruntime(model, feeds), tolerance)
    return program
