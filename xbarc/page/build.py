"""The page as a whole: one HTML file that asks nothing of any network."""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO

from hwspec.atomic import write_atomically
from hwspec.errors import DataError
from runtime.costing import CostReport, cost
from runtime.program import TileProgram
from runtime.timing import schedule
from xbarc.eval_report import EvalReport
from xbarc.page.chips import chips
from xbarc.page.components import components
from xbarc.page.graph import graph
from xbarc.page.layers import layers
from xbarc.page.markup import Html, element, named, text
from xbarc.page.occupancy import occupancy
from xbarc.page.sources import sources
from xbarc.page.summary import summary
from xbarc.page.sweep import sweep
from xbarc.page.tiles import tiles
from xbarc.sweeping.statistics import SweepReport

_SECTIONS = {
    "summary": "Summary",
    "graph": "Graph",
    "layers": "Layers",
    "tiles": "Tiles",
    "occupancy": "Occupancy",
    "components": "Energy and area",
    "chips": "Chips",
    "sweep": "Sweep",
    "sources": "Sources",
}


def report_page(
    program: TileProgram,
    evaluation: EvalReport | None = None,
    *,
    costs: CostReport | None = None,
    swept: SweepReport | None = None,
) -> str:
    """The report of a program as one HTML page.

    Parameters
    ----------
    program
        The program.
    evaluation
        What `xbarc.evaluate` found of it; without, the page has no section on accuracy.
    costs
        What `xbarc.cost` found of it, where that is at hand.
    swept
        What `xbarc.sweep` found of its model; without, the page has no section on sweeps.

    Raises
    ------
    DataError
        If the evaluation is of another program, or the sweep of another model.
    """
    if swept is not None and swept.model_sha256 != program.tables.model_sha256:
        raise DataError("sweep", f"must be of the model of this program ({program.tables.model_name!r})")
    if evaluation is not None and evaluation.program_sha256 != program.sha256:
        raise DataError(
            "evaluation",
            f"must be of this program ({program.tables.model_name!r}, {program.sha256[:12]})",
            got=f"{evaluation.model} {evaluation.program_sha256[:12]}",
            hint="evaluate this program, or report the one that was evaluated",
        )
    costs = costs or cost(program)
    piped, serial = schedule(program), schedule(program, pipelined=False)
    sections = [
        summary(program, costs),
        graph(program, piped),
        layers(program, costs),
        tiles(program),
        occupancy(program, piped, serial),
        components(costs),
        *([] if evaluation is None else [chips(evaluation)]),
        *([] if swept is None else [sweep(swept)]),
        sources(program, costs),
    ]
    missing = {name for name, one in (("chips", evaluation), ("sweep", swept)) if one is None}
    shown = [name for name in _SECTIONS if name not in missing]
    links = element(
        "ul",
        None,
        *(element("li", None, element("a", {"href": f"#{name}"}, _SECTIONS[name])) for name in shown),
    )
    title = element("h1", None, named(costs.model), " on ", named(costs.spec))
    return "<!DOCTYPE html>\n" + element(
        "html",
        {"lang": "en"},
        _head(f"{costs.model} on {costs.spec}: report of xbarc"),
        element(
            "body",
            None,
            element("header", None, title, element("nav", {"aria-label": "Sections"}, links)),
            element("main", None, *sections),
            element("script", None, _file("sort.js")),
        ),
    )


def save_page(page: str, path: Path) -> None:
    """Write a page to a file, whole or not at all.

    Raises
    ------
    DataError
        If it cannot be written; a file that was there before stays as it was.
    """

    def write(stream: BinaryIO) -> None:
        stream.write(page.encode())

    try:
        write_atomically(path, write)
    except OSError as error:
        raise DataError(f"output {path}", f"cannot be written ({error.strerror})") from None


def _head(title: str) -> Html:
    """Title, style, and a policy that lets nothing be loaded and no script run but the page's own."""
    digest = base64.b64encode(hashlib.sha256(_file("sort.js").encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}'"
    )
    return element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", None, text(title[:200])),
        element("style", None, _file("page.css")),
    )


def _file(name: str) -> Html:
    return Html((files("xbarc.page") / name).read_text(encoding="utf-8"))
