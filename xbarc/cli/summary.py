"""The summary of a compilation, in the manner of a compiler's report."""

from collections import Counter
from typing import Any

from runtime.program import TileProgram
from runtime.report import CompileReport
from xbarc.cli.failures import print_failures
from xbarc.cli.output import say, table

_HEADS = ("layer", "op", "matrix", "windows", "tiles", "arrays", "used", "sums", "MACs", "weight error", "clipped")


def print_summary(program: TileProgram, *, layers: bool = True) -> None:
    """Print what a program maps, what it takes, and what stayed digital and why."""
    report, array = program.report, program.spec.array
    totals = report.totals
    single = array.pairing == "reference"
    pairs = "single devices" if single else f"pairs on {array.pairing.replace('_', ' ')}"
    say(f"model {report.model}, spec {report.spec}: {array.rows}x{array.cols} arrays, {pairs}")
    if layers:
        rows = [
            [
                layer.name,
                layer.op,
                f"{layer.groups} x {layer.rows} x {layer.cols}" if layer.groups > 1 else f"{layer.rows} x {layer.cols}",
                f"{layer.windows:,}",
                f"{layer.tiles:,}",
                f"{layer.arrays:,}",
                f"{layer.utilisation:.1%}",
                f"{layer.partial_sums:,}",
                f"{layer.macs:,}",
                f"{layer.weight_error:.2%}",
                f"{layer.calibration_clipped:.2%}",
            ]
            for layer in report.layers
        ]
        table(_HEADS, rows)
        say("")
    say(f"operators on crossbars  {totals.mapped_nodes} of {totals.nodes} ({totals.mapped_nodes / totals.nodes:.1%})")
    say(f"MACs on crossbars       {totals.mapped_macs:,} a sample")
    say(f"  of constant-weight    {_share(totals.mapped_macs, totals.constant_weight_macs)}")
    say(f"  of all                {_share(totals.mapped_macs, totals.macs)}{_uncounted(report)}")
    say(f"tiles, arrays, cells    {totals.tiles:,} logical, {totals.arrays:,} physical, {totals.cells:,} devices")
    if program.tables.reload is not None:
        segments = -(-program.tables.written // program.tables.reload)
        say(f"  written again         {segments} segments, one after another, for every batch (xbarc report --batch)")
    if totals.shared_arrays:
        say(f"  shared by layers      {totals.shared_arrays:,} arrays; layers on one array cannot run at the same time")
    say(f"utilisation             {totals.utilisation:.1%}")
    say(f"partial sums            {totals.partial_sums:,} a sample")
    say(f"digital segments        {report.segments}")
    for reason, ops in _reasons(report).items():
        names = ", ".join(f"{op} x {count}" if count > 1 else op for op, count in ops.most_common())
        say(f"  digital: {names}: {reason}")
    _print_wires(report)
    print_failures(program)
    say(f"physical effects        {', '.join(report.effects) or 'none'}")
    say(f"  not modelled          {'; '.join(report.excluded)}")
    for warning in report.warnings:
        say(f"warning: {warning}")


def _print_wires(report: CompileReport) -> None:
    found = [(layer.name, layer.wires) for layer in report.layers if layer.wires is not None]
    if not found:
        return

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3%}"

    say("")
    table(
        ("wires: output error of", "as mapped", "gain a column", "pre-distorted", "headroom", "closed form's error"),
        [
            [
                name,
                shown(wires.error),
                shown(wires.error_with_gain),
                shown(wires.error_predistorted),
                "-" if wires.headroom is None else f"{wires.headroom:.2f}",
                shown(wires.closed_form_error),
            ]
            for name, wires in found
        ],
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%} of {whole:,}" if whole else "none"


def _uncounted(report: CompileReport) -> str:
    count = sum(node.macs is None for node in report.digital)
    return f", and {count} operators whose MACs are known only when they run" if count else ""


def _reasons(report: CompileReport) -> dict[str, Counter[str]]:
    reasons: dict[str, Counter[str]] = {}
    for node in report.digital:
        reasons.setdefault(node.reason, Counter())[node.op] += 1
    return reasons


def report_json(path: str | None, program: TileProgram) -> dict[str, Any]:
    """The machine form of the summary."""
    dumped = program.report.model_dump(mode="json")
    return {"program": path, **dumped}
