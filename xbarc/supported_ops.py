"""The operators that xbarc supports, read from the rules' docstrings."""

import inspect

from compiler.rules import RULES


def mapped_operators() -> dict[str, str]:
    """Operators that go onto crossbars, with the docstring of their rule."""
    return {op: " ".join((inspect.getdoc(rule) or "").split()) for op, rule in RULES.items()}


def digital_operators() -> tuple[str, ...]:
    """Digital operators that the torch engine translates."""
    from runtime.host_torch import supported_ops

    return supported_ops()


def markdown_page() -> str:
    """The page ``docs/supported-ops.md``."""
    rows = [f"| `{op}` | {text} |" for op, text in mapped_operators().items()]
    names = ", ".join(f"`{op}`" for op in digital_operators())
    return f"""# Supported operators

<!-- made by `make docs`; a test fails when it is stale -->

## On crossbars

An operator with constant weights becomes tiles. The weight may be an initializer, a `Constant`, or anything computed
from constants alone. Opsets 7 and up, as far as onnxruntime goes; older models are converted.

| operator | what is supported |
|---|---|
{chr(10).join(rows)}

## Digital

Everything else that onnxruntime runs stays digital, and the report names each node with its reason. The numpy reference
runs digital segments in onnxruntime. The torch engine translates a segment when it has all of its operators, and
otherwise runs it in onnxruntime too. It has:

{names}
"""
