"""``xbarc report``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwspec.errors import DataError
from xbarc.cli.arguments import Json, output_path
from xbarc.cli.output import emit_json, note

if TYPE_CHECKING:
    from xbarc.eval_report import EvalReport
    from xbarc.sweeping.statistics import SweepReport


def report(
    programs: Annotated[
        list[str], typer.Argument(metavar="PROGRAM [PROGRAM]", help="One program (.xbar), or two to compare.")
    ],
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write one HTML page that needs nothing else.")
    ] = None,
    evaluated: Annotated[
        str | None,
        typer.Option(
            "--eval", metavar="JSON", help="With --html: what `xbarc eval --json` printed, for accuracy across chips."
        ),
    ] = None,
    swept: Annotated[
        str | None, typer.Option("--sweep", metavar="DB", help="With --html: the results of `xbarc sweep`.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Samples that share the writing of segments, where a program has several.")
    ] = 1,
    json: Json = False,
) -> None:
    """Show what a program takes on its hardware: time, energy, area, and what sets them."""
    from runtime.costing import cost
    from xbarc.cli.costs import print_comparison, print_cost
    from xbarc.loading import load

    if len(programs) > 2:
        raise DataError("programs", "must be one, or two to compare", got=len(programs))
    path, evaluation, sweep = _page_of(programs, html, evaluated, swept)
    loaded = [load(program) for program in programs]
    reports = [cost(program, batch) for program in loaded]
    if path is not None:
        from xbarc.page.build import report_page, save_page

        page = report_page(loaded[0], evaluation, costs=reports[0], swept=sweep)
        save_page(page, path)
    if json:
        dumped = [{"program": path, **one.model_dump(mode="json")} for path, one in zip(programs, reports, strict=True)]
        more = {} if html is None else {"html": html}
        emit_json({**dumped[0], **more} if len(dumped) == 1 else {"programs": dumped})
        return
    if len(reports) == 1:
        print_cost(reports[0])
    else:
        print_comparison(reports, programs)
    if path is not None:
        note(f"written to {html} ({path.stat().st_size / 1e6:.1f} MB)")


def _page_of(
    programs: list[str], html: str | None, evaluated: str | None, swept: str | None
) -> "tuple[Path | None, EvalReport | None, SweepReport | None]":
    """Where the page goes and what it has of an evaluation and of a sweep, checked before any work."""
    if html is None:
        for option, given in (("--eval", evaluated), ("--sweep", swept)):
            if given is not None:
                raise DataError(option, "must be given with --html", hint="it is drawn on the page")
        return None, None, None
    if len(programs) != 1:
        raise DataError("--html", "must be given with one program", got=len(programs), hint="a page is of one program")
    path = output_path(html, keep=programs[0])
    evaluation = sweep = None
    if evaluated is not None:
        from xbarc.eval_report import read_eval

        path, evaluation = output_path(html, keep=evaluated), read_eval(Path(evaluated))
    if swept is not None:
        from xbarc.sweeping.statistics import report_of

        path, sweep = output_path(html, keep=swept), report_of(Path(swept))
    return path, evaluation, sweep
