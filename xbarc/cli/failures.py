"""What verbs print of failed devices and of the mapping around them."""

from collections.abc import Iterable

from runtime.program import TileProgram
from runtime.report import CompileReport, FailureReport
from xbarc.cli.output import say, table


def print_failures(program: TileProgram) -> None:
    """Print what failed devices leave of each layer, or that the program was mapped for no chip in particular."""
    report, spec = program.report, program.spec
    found = [(layer.name, layer.failures) for layer in report.layers if layer.failures is not None]
    if found:
        say("")
        _print_layers(found)
        _print_totals([failures for _, failures in found], report, single=spec.array.pairing == "reference")
    elif spec.failures.at_start:
        raised = "raised where failures then change less" if program.tables.robust else "not raised (--no-robust)"
        say(f"failed devices          mapped for no chip in particular, pairs {raised}")
        say("                        xbarc map PROGRAM -o MAPPED --chip MAP maps it around one chip's failed devices")
    if spec.failures.allow_unbounded and (found or spec.failures.possible):
        low, high = report.reachable
        if low < -1 or high > 1:
            say(f"  reachable weights     failures can push weights to {low:.3g} and {high:.3g} of full scale")


def _print_layers(found: Iterable[tuple[str, FailureReport]]) -> None:
    layers = list(found)
    steps = list(dict.fromkeys(step.step for _, failures in layers for step in failures.steps))
    rows = []
    for name, failures in layers:
        errors = {step.step: f"{step.output_error:.2%}" for step in failures.steps}
        worst = failures.worst_columns[:1]
        rows.append(
            [
                name,
                _share(failures.failed, failures.devices),
                _share(failures.failed_pairs, failures.pairs),
                _share(failures.absorbed, failures.failed_pairs),
                *(errors.get(step, "-") for step in steps),
                *(f"{column.output_error:.2%} ({column.column})" for column in worst),
            ]
        )
    heads = ("failed devices", "of devices", "of pairs", "absorbed", *steps, "worst column")
    table(heads, rows)
    say("absorbed: failed pairs whose weight is as good as on good devices; then the predicted error of the layer's")
    say("outputs by failures and levels, as mapped in order and after each step, and that of its worst column")


def _print_totals(layers: list[FailureReport], report: CompileReport, *, single: bool) -> None:
    devices, failed = (sum(getattr(one, key) for one in layers) for key in ("devices", "failed"))
    pairs, failed_pairs = (sum(getattr(one, key) for one in layers) for key in ("pairs", "failed_pairs"))
    of_pairs = "" if single else f", {_share(failed_pairs, pairs)} of the pairs"
    say(f"failed devices          {_share(failed, devices)} of the devices that hold weights{of_pairs}")
    if report.mapped_for is not None:
        say(f"  mapped for            chip {report.mapped_for[:12]}")
    gated, residue = (sum(getattr(one, key) for one in layers) for key in ("gated", "residue"))
    if gated:
        say(f"  gated off             {gated:,} devices")
    if residue:
        say(f"  residue               {residue:,} weights in digital memory")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"
