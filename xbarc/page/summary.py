"""Section: what a program is and takes."""

from runtime.costing import CostReport, Throughput
from runtime.program import TileProgram
from xbarc.page.markup import Cell, Html, count, described, named, paragraph, quantity, section, share, table


def summary(program: TileProgram, costs: CostReport) -> Html:
    """The numbers that are looked for first."""
    totals, rate = program.report.totals, costs.pipelined
    mapped = f"{share(totals.mapped_macs / totals.macs)} of all" if totals.macs else "none counted"
    constant = (
        f", {share(totals.mapped_macs / totals.constant_weight_macs)} of those that have a constant weight"
        if totals.constant_weight_macs
        else ""
    )
    cards = described(
        [
            ("Model", named(costs.model)),
            ("Spec", named(costs.spec)),
            ("Arrays", count(costs.arrays, "array")),
            ("Cores and tiles", f"{count(costs.cores, 'core')}, {count(costs.tiles, 'tile')}"),
            ("Latency", quantity(rate.latency, "s")),
            ("Interval", quantity(rate.interval, "s")),
            ("Bottleneck", named(costs.bottleneck)),
            ("Energy a sample", quantity(rate.energy, "J")),
            ("Power", quantity(rate.power, "W")),
            ("TOPS", f"{rate.tops:.4g}"),
            ("TOPS/W", f"{rate.tops_per_watt:.4g}"),
            ("Area", area(costs.total_area) if costs.total_area else "not given by the spec"),
            ("MACs on arrays", mapped),
        ],
        "cards",
    )
    modes = [costs.pipelined, costs.layer_by_layer]
    columns = ("", "pipelined", "layer by layer")
    rows = [
        _row("interval", modes, "interval", "s"),
        _row("latency", modes, "latency", "s"),
        _row("fill", modes, "fill", "s"),
        _row("energy a sample", modes, "energy", "J"),
        _row("power", modes, "power", "W"),
        _row("TOPS", modes, "tops", ""),
        _row("TOPS/W", modes, "tops_per_watt", ""),
        _row("TOPS/mm²", modes, "tops_per_mm2", ""),
    ]
    counted = (
        f"1 MAC is 2 operations; {costs.macs:,} MACs a sample run on arrays{constant}, and only these count. Figures "
        "above are those of the pipeline."
    )
    return section(
        "summary",
        "Summary",
        cards,
        paragraph(counted),
        table(columns, rows, "Both ways of running", sortable=False),
        *(paragraph(f"Warning: {warning}") for warning in program.report.warnings),
    )


def area(value: float) -> str:
    """An area in square millimetres, or micrometres where it is small."""
    return f"{value * 1e6:.4g}\u00a0mm²" if value >= 1e-9 or not value else f"{value * 1e12:.4g}\u00a0µm²"


def _row(name: str, modes: list[Throughput], field: str, unit: str) -> list[Cell]:
    values: list[float | None] = [getattr(mode, field) for mode in modes]
    cells = [
        Cell("–") if value is None else Cell(quantity(value, unit) if unit else f"{value:.4g}", value)
        for value in values
    ]
    return [Cell(name), *cells]
