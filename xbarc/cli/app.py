"""Registers the verbs, bounds memory, and turns errors into one line and an exit code."""

import contextlib
import dataclasses
import logging
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from hwspec.errors import DataError, DoesNotFit, XbarcError
from xbarc.cli import chip, inspect, ops, remap, spec, verify
from xbarc.cli import compile as compile_verb
from xbarc.cli import eval as eval_verb
from xbarc.cli import finetune as finetune_verb
from xbarc.cli import report as report_verb
from xbarc.cli import run as run_verb
from xbarc.cli import sweep as sweep_verb
from xbarc.cli import tune_spec as tune_spec_verb
from xbarc.cli.output import emit_json, say

_NO_MEMORY = "not enough memory; take a smaller --batch, or let XBARC_MEMORY_GIB be larger"

app = typer.Typer(
    name="xbarc",
    help="Compile trained ONNX models onto resistive crossbar tiles, and run the result as the chip would.",
    epilog="Exit codes: 0 done, 1 verification failed, 2 bad usage or input, 3 model not supported, 4 does not fit. "
    "--debug anywhere shows where an error comes from.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compile")(compile_verb.compile_)
app.command("map")(remap.map_)
app.command("run")(run_verb.run)
app.command("verify")(verify.verify)
app.command("eval")(eval_verb.eval_)
app.command("finetune")(finetune_verb.finetune_)
app.command("inspect")(inspect.inspect)
app.command("report")(report_verb.report)
app.command("sweep")(sweep_verb.sweep_)
app.command("tune-spec")(tune_spec_verb.tune_spec_)
app.add_typer(spec.app, name="spec")
app.add_typer(chip.app, name="chip")
app.command("ops")(ops.ops)


def _print_version(asked: bool) -> None:
    if asked:
        from xbarc import __version__

        say(f"xbarc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version


def run(arguments: list[str]) -> int:
    """Run a verb and give its exit code; ``--debug`` anywhere raises errors instead."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        _bound_memory()
        with warnings.catch_warnings():
            if not debug:
                _quieten_libraries()
            result = app(arguments, prog_name="xbarc", standalone_mode=False)
        sys.stdout.flush()
    except XbarcError as error:
        return _fail(error, arguments, error.exit_code, debug=debug)
    except MemoryError as error:
        return _fail(error, arguments, 2, debug=debug, text=_NO_MEMORY)
    except BrokenPipeError:
        return _unread()
    except SystemExit as stop:
        # The command-line library ends with 1 of its own where whoever read our output has gone.
        return _unread() if stop.code == 1 else stop.code if isinstance(stop.code, int) else 0
    except OSError as error:
        subject = f"{error.filename} cannot be used" if error.filename else "reading or writing failed"
        return _fail(error, arguments, 2, debug=debug, text=f"{subject} ({error.strerror or error})")
    except Exception as error:
        shown = getattr(error, "show", None)
        if shown is not None:  # a usage error of the command-line library, which prints itself
            if "--json" in arguments:
                message = getattr(error, "format_message", error.__str__)()
                _emit_error("UsageError", message.splitlines()[0] if message else "a verb must be given", 2)
            shown()
            return int(getattr(error, "exit_code", 2))
        if "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":  # torch's own words for it
            return _fail(error, arguments, 2, debug=debug, text=_NO_MEMORY)
        text = f"internal error ({type(error).__name__}: {error}); --debug shows where. Please report it."
        return _fail(error, arguments, 70, debug=debug, text=text)
    return result if isinstance(result, int) else 0


def _unread() -> int:
    """The exit code when whoever read our output has gone: nothing more to say, and nowhere to say it."""
    _drop_output()
    return 128 + 13  # what a shell makes of SIGPIPE


def _drop_output() -> None:
    """Let what is still to be written to standard output go nowhere, or Python would fail on it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _quieten_libraries() -> None:
    """Keep what libraries warn of and log from users: xbarc's own warnings are part of what a verb prints."""
    warnings.simplefilter("ignore")
    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).addHandler(logging.NullHandler())


def _fail(error: BaseException, arguments: list[str], code: int, *, debug: bool, text: str = "") -> int:
    if debug:
        raise error
    message = text or str(error)
    if "--json" in arguments:
        with contextlib.suppress(OSError):  # the error may be that output cannot be written
            more = {"report": dataclasses.asdict(error.report)} if isinstance(error, DoesNotFit) else {}
            _emit_error(type(error).__name__, message, code, more)
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    print(f"error: {message}", file=sys.stderr)
    return code


def _emit_error(kind: str, message: str, code: int, more: dict[str, Any] | None = None) -> None:
    emit_json({"error": kind, "message": message, "exit_code": code, **(more or {})})


def _bound_memory() -> None:
    """Let an allocation beyond the machine's memory fail here, rather than the whole machine later."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    gib = os.environ.get("XBARC_MEMORY_GIB", "")
    bound = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10
    if gib:
        try:
            bound = int(float(gib) * 2**30)
        except (ValueError, OverflowError):
            bound = 0
        if bound <= 0:
            raise DataError("XBARC_MEMORY_GIB", "must be a positive number of GiB", got=gib)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or bound < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
