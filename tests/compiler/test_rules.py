"""Every mapped operator computes what onnxruntime computes, whatever its attributes, shapes and constants."""

from hypothesis import HealthCheck, given, settings
from ideal import assert_agrees
from operator_cases import Case, convolutions, gemms, matmuls, transposed_convolutions

some = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])


def check(case: Case) -> None:
    program = assert_agrees(case.model, case.feeds)
    assert [layer.name for layer in program.tables.layers] == [case.node.name]


@some
@given(convolutions())
def test_conv(case: Case) -> None:
    check(case)


@some
@given(transposed_convolutions())
def test_conv_transpose(case: Case) -> None:
    check(case)


@some
@given(gemms())
def test_gemm(case: Case) -> None:
    check(case)


@settings(some, max_examples=150)
@given(matmuls())
def test_matmul(case: Case) -> None:
    check(case)
