"""What a program costs, as tables for people."""

from collections.abc import Sequence

from runtime.costing import CostReport, Throughput
from runtime.writing import Reloading
from xbarc.cli.output import say, table
from xbarc.quantities import engineering

MODES = ("pipelined", "layer_by_layer")


def print_cost(report: CostReport) -> None:
    """Print what one program takes: layers, split by component, both modes of running."""
    say(
        f"model {report.model}, spec {report.spec}: {report.arrays:,} arrays in {report.cores:,} cores and "
        f"{report.tiles:,} tiles"
    )
    table(
        ("layer", "starts", "time", "of", "a window", "reads", "conversions", "energy", "ADC bits needed", "clipped"),
        [
            [
                layer.name,
                engineering(layer.start, "s"),
                engineering(layer.time, "s"),
                layer.limit,
                engineering(layer.vector_time, "s"),
                f"{layer.reads:,}",
                f"{layer.conversions:,}",
                engineering(sum(layer.energy.values()), "J"),
                "-" if layer.adc_bits_needed is None else str(layer.adc_bits_needed),
                f"{layer.clipped:.2%}",
            ]
            for layer in report.layers
        ],
    )
    say("")
    total = sum(report.energy.values())
    rows = [
        [name, engineering(value, "J"), f"{value / total:.1%}" if total else "-", *_area(report, name)]
        for name, value in report.energy.items()
    ]
    rows += [[name, "-", "-", *_area(report, name)] for name in report.area if name not in report.energy]
    table(("component", "energy a sample", "share", "area", "share"), rows)
    say("")
    table(("", *MODES), [[name, *values] for name, values in _modes(report)])
    writing = report.programming
    say("")
    say(f"bottleneck    {report.bottleneck}")
    short = [layer for layer in report.layers if (layer.adc_bits_needed or 0) > (report.adc_bits or 64)]
    if report.adc_bits is not None:
        total = sum(layer.conversions for layer in report.layers) or 1
        clipped = sum(layer.clipped * layer.conversions for layer in report.layers) / total
        say(
            f"ADC           {report.adc_bits} bits, too few to tell every sum apart in {len(short)} of "
            f"{len(report.layers)} layers; {clipped:.2%} of conversions clip"
        )
    say(f"area          {report.total_area * 1e6:.4g} mm2")
    say(
        f"programming   {engineering(writing.energy, 'J')} and {engineering(writing.time, 's')}: {writing.devices:,} "
        f"devices, at most {writing.pulses} pulses each"
    )
    if report.reloading is not None:
        _print_reloading(report.reloading)
    say("1 MAC is 2 operations; only MACs on arrays count")
    for path, source in report.sources.items():
        say(f"source        {path}: {source}")
    for reason in report.excluded:
        say(f"left out      {reason}")


def _print_reloading(found: Reloading) -> None:
    say("")
    table(
        ("segment", "layers", "arrays", "devices", "writing", "energy"),
        [
            [
                str(number),
                ", ".join(segment.layers),
                f"{segment.arrays:,}",
                f"{segment.devices:,}",
                engineering(segment.write_time, "s"),
                engineering(segment.energy, "J"),
            ]
            for number, segment in enumerate(found.segments, 1)
        ],
        f"Segments that are written to {found.arrays:,} arrays one after another, for every batch of {found.batch:,}",
    )
    say(
        f"wear          {found.writes} writes of an array for each batch, at most {found.pulses} pulses on a device; "
        f"{engineering(found.energy, 'J')} and {engineering(found.time, 's')}, shared by a batch of {found.batch:,}"
    )


def print_comparison(reports: Sequence[CostReport], names: Sequence[str]) -> None:
    """Print two programs side by side, with the ratio of the second to the first."""
    first, second = reports
    pairs: list[tuple[str, float, float, str]] = [
        ("arrays", first.arrays, second.arrays, ""),
        ("interval", first.pipelined.interval, second.pipelined.interval, "s"),
        ("latency", first.pipelined.latency, second.pipelined.latency, "s"),
        ("energy a sample", first.pipelined.energy, second.pipelined.energy, "J"),
        *((f"  {name}", first.energy[name], second.energy[name], "J") for name in first.energy),
        ("TOPS", first.pipelined.tops, second.pipelined.tops, ""),
        ("TOPS/W", first.pipelined.tops_per_watt, second.pipelined.tops_per_watt, ""),
        ("area, mm2", first.total_area * 1e6, second.total_area * 1e6, ""),
        ("programming", first.programming.energy, second.programming.energy, "J"),
    ]
    rows = [[name, _shown(a, unit), _shown(b, unit), f"{b / a:.3g}" if a else "-"] for name, a, b, unit in pairs]
    table(("", *names, "ratio"), rows)


def _shown(value: float, unit: str) -> str:
    return engineering(value, unit) if unit else f"{value:,.4g}"


def _area(report: CostReport, name: str) -> tuple[str, str]:
    if name not in report.area:
        return "-", "-"
    share = f"{report.area[name] / report.total_area:.1%}" if report.total_area else "-"
    return f"{report.area[name] * 1e6:.4g} mm2", share


def _modes(report: CostReport) -> list[tuple[str, list[str]]]:
    found: list[Throughput] = [getattr(report, mode) for mode in MODES]
    return [
        ("interval", [engineering(one.interval, "s") for one in found]),
        ("latency", [engineering(one.latency, "s") for one in found]),
        ("fill", [engineering(one.fill, "s") for one in found]),
        ("energy a sample", [engineering(one.energy, "J") for one in found]),
        ("power", [engineering(one.power, "W") for one in found]),
        ("TOPS", [f"{one.tops:.4g}" for one in found]),
        ("TOPS/W", [f"{one.tops_per_watt:.4g}" for one in found]),
        ("TOPS/mm2", ["-" if one.tops_per_mm2 is None else f"{one.tops_per_mm2:.4g}" for one in found]),
    ]
