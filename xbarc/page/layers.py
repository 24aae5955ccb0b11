"""Section: the table of mapped layers."""

from runtime.costing import CostReport
from runtime.program import TileProgram
from xbarc.page.markup import Cell, Html, named, paragraph, quantity, section, share, table, together

COLUMNS = (
    "layer",
    "op",
    "matrix",
    "tiles",
    "arrays",
    "utilisation",
    "windows",
    "start",
    "time",
    "limit",
    "reads",
    "conversions",
    "energy",
    "ADC bits needed",
    "clipped",
    "weight error",
    "shares with",
)


def layers(program: TileProgram, costs: CostReport) -> Html:
    """All that is known of each layer, one a row."""
    mapped = {layer.name: layer for layer in program.report.layers}
    rows = []
    for cost in costs.layers:
        layer = mapped[cost.name]
        size = f"{layer.rows} × {layer.cols}"
        energy = sum(cost.energy.values())
        bits = cost.adc_bits_needed
        rows.append(
            [
                Cell(named(cost.name)),
                Cell(named(layer.op)),
                Cell(f"{layer.groups} × {size}" if layer.groups > 1 else size, layer.groups * layer.rows * layer.cols),
                Cell(f"{layer.tiles:,}", layer.tiles),
                Cell(f"{layer.arrays:,}", layer.arrays),
                Cell(share(layer.utilisation), layer.utilisation),
                Cell(f"{layer.windows:,}", layer.windows),
                Cell(quantity(cost.start, "s"), cost.start),
                Cell(quantity(cost.time, "s"), cost.time),
                Cell(cost.limit),
                Cell(f"{cost.reads:,}", cost.reads),
                Cell(f"{cost.conversions:,}", cost.conversions),
                Cell(quantity(energy, "J"), energy),
                Cell("–") if bits is None else Cell(str(bits), bits),
                Cell(share(cost.clipped), cost.clipped),
                Cell(share(layer.weight_error), layer.weight_error),
                Cell(_names(layer.shares_with)),
            ]
        )
    told = (
        "Times and energies are those of one sample; a layer starts that long after the sample does, in the pipeline. "
        "Energy is without static power and digital operators. The weight error is root-mean-square, relative to the "
        "weights; clipped is the share of conversions beyond the range of the ADC, predicted from calibration inputs. "
        "Headings sort the table."
    )
    return section("layers", "Layers", paragraph(told), table(COLUMNS, rows, "Mapped layers"))


def _names(found: tuple[str, ...]) -> Html | str:
    if not found:
        return "–"
    shown = together(part for name in found[:4] for part in (named(name), ", "))
    return Html(shown.removesuffix(", ")) if len(found) <= 4 else together([shown, f"{len(found) - 4} more"])
