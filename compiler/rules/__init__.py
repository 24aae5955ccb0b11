"""Which operators go onto crossbars, and as what matrix. The docstring of a rule is its row in the documentation.

A rule reads one ONNX node and gives the matrix that it multiplies by, with how input vectors are gathered and results
written back; or it raises `StaysDigital` with the reason. A rule may surround the matrix with digital nodes.
"""

from collections.abc import Callable

import onnx

from compiler.rules.convolutions import conv, conv_transpose
from compiler.rules.lowered import Graph as Graph
from compiler.rules.lowered import Lowered as Lowered
from compiler.rules.lowered import StaysDigital as StaysDigital
from compiler.rules.products import gemm, matmul

Rule = Callable[[onnx.NodeProto, Graph], Lowered]

RULES: dict[str, Rule] = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}
"""Operators of the default domain that are mapped, and their rules."""
