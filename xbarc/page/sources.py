"""Section: where constants come from, and what neither numbers nor physics count."""

from runtime.costing import CostReport
from runtime.program import TileProgram
from xbarc.page.markup import Html, described, element, named, paragraph, section


def sources(program: TileProgram, costs: CostReport) -> Html:
    """Sources of constants, physical effects, and what is left out."""
    report = program.report
    constants = described(((named(path), source) for path, source in costs.sources.items()), "sources")
    facts = described(
        [
            ("Model, sha256", element("code", None, program.tables.model_sha256)),
            ("Spec, sha256", element("code", None, program.tables.spec_sha256)),
            ("Program, sha256", element("code", None, program.sha256)),
            ("Ranges", "from calibration data" if report.calibration == "data" else "from random inputs"),
            ("Mapped for", element("code", None, report.mapped_for) if report.mapped_for else "any chip"),
            ("Physical effects", ", ".join(report.effects) or "none"),
        ],
        "sources",
    )
    return section(
        "sources",
        "Sources, and what is left out",
        element("h3", None, "Constants of time, energy and area"),
        constants,
        element("h3", None, "Not counted in time, energy and area"),
        _items(costs.excluded),
        element("h3", None, "Physics that is not modelled"),
        _items(report.excluded),
        element("h3", None, "What this page is of"),
        facts,
    )


def _items(found: tuple[str, ...]) -> Html:
    return element("ul", None, *(element("li", None, one) for one in found)) if found else paragraph("nothing")
