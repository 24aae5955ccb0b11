"""``xbarc ops``."""

from typing import Annotated

import typer

from xbarc.cli.arguments import Json
from xbarc.cli.output import emit_json, say, table


def ops(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/supported-ops.md.")] = False,
    json: Json = False,
) -> None:
    """List the operators that go onto crossbars, and the digital ones that the torch engine runs."""
    from xbarc.supported_ops import digital_operators, mapped_operators, markdown_page

    if markdown:
        say(markdown_page().rstrip())
    elif json:
        emit_json({"mapped": mapped_operators(), "digital": list(digital_operators())})
    else:
        table(["on crossbars", "what is supported"], [[op, text] for op, text in mapped_operators().items()])
        say(f"\ndigital, in torch ({len(digital_operators())}): {', '.join(digital_operators())}")
        say("any other operator that onnxruntime runs stays digital and runs there")
