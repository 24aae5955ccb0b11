"""Fuzzing of the command line: mutated models and programs must be refused in words, or run.

``python tests/fuzz.py --count 1000 --seed 0`` runs mutated files through the real verbs, in worker processes that call
the command line's own entry point. A failure is a traceback or internal error, an exit code other than 0 to 3, a crash
or a hang, something left behind or written by a verb that failed, or an altered program that passes. Every case is
made from its seed and number alone: ``--only 123`` runs one again.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt
import onnx
from fuzz_mutations import mutate_model, mutate_program, pick
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from runtime.tables import Tables

# As pytest has it: the root comes before this folder, or `tests/compiler` would pass for the package.
sys.path.insert(0, str(Path(__file__).parents[1]))

DIGITS = Path(__file__).parents[1] / "models" / "digits-cnn" / "model.onnx"
STEP_SECONDS = 20.0
"""A verb on a small file that takes longer hangs."""

CASES_A_WORKER = 300
"""A worker is replaced after this many: onnxruntime and torch keep what they allocate."""

_START_SECONDS = 120.0
_ENVIRONMENT = {"XBARC_RUN_SECONDS": "5", "XBARC_MEMORY_GIB": "3", "OMP_NUM_THREADS": "1"}
_LARGEST = 1e6
_SENTINEL = b"here before"
_RECORDS = {
    *("model_name", "seed", "calibration", "input_shapes", "digital_nodes", "fuse_batchnorm", "mapping_steps"),
    "tuned",  # verification asks more of a program that says so, and nothing runs otherwise
}
"""Entries of a program's tables that record how it was made, and do not say what runs."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Failure:
    """A case that went wrong."""

    number: int
    what: str
    reason: str


@dataclass
class Summary:
    """Outcome of a run: the exit codes seen by verb, and the failures."""

    cases: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)


# -- what is mutated --------------------------------------------------------------------------------------------------


def _model(nodes: list[onnx.NodeProto], weights: dict[str, Array], shape: list[int | str], opset: int = 18) -> bytes:
    graph = helper.make_graph(
        nodes,
        "fuzzed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(model.SerializeToString())


def base_models() -> dict[str, bytes]:
    """The models that are mutated."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(np.float32)

    node = helper.make_node
    branch = [
        helper.make_graph([node(op, ["c"], [op])], op, [], [helper.make_tensor_value_info(op, TensorProto.FLOAT, None)])
        for op in ("Relu", "Neg")
    ]
    statistics = {"s": normal(6) + 2, "o": normal(6), "m": normal(6), "v": np.abs(normal(6)) + 1}
    return {
        "mlp": _model(
            [
                node("Gemm", ["x", "w", "b"], ["h"], transB=1),
                node("Relu", ["h"], ["r"]),
                node("MatMul", ["r", "u"], ["y"]),
            ],
            {"w": normal(9, 12), "b": normal(9), "u": normal(9, 5)},
            ["N", 12],
        ),
        "conv": _model(
            [
                node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
                node("BatchNormalization", ["c", "s", "o", "m", "v"], ["n"]),
                node("Relu", ["n"], ["r"]),
                node("Conv", ["r", "d"], ["e"], group=6, kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
                node("ConvTranspose", ["e", "t"], ["u"], strides=[2, 2]),
                node("GlobalAveragePool", ["u"], ["g"]),
                node("Flatten", ["g"], ["y"]),
            ],
            {"w": normal(6, 2, 3, 3), **statistics, "d": normal(6, 1, 3, 3), "t": normal(6, 3, 2, 2)},
            ["N", 2, 8, 8],
        ),
        "branches": _model(
            [
                node("MatMul", ["x", "w"], ["c"]),
                node("ReduceMax", ["c"], ["p"], keepdims=0),
                node("Greater", ["p", "zero"], ["q"]),
                node("If", ["q"], ["i"], then_branch=branch[0], else_branch=branch[1]),
                node("Reshape", ["i", "shape"], ["z"]),
                node("Softmax", ["z"], ["y"], axis=1),
            ],
            {"w": normal(2, 4, 3), "zero": np.array(0, np.float32), "shape": np.array([0, -1])},
            ["N", 2, 5, 4],
        ),
        "digits": DIGITS.read_bytes(),
    }


SHAPES = {"mlp": (3, 12), "conv": (3, 2, 8, 8), "branches": (3, 2, 5, 4), "digits": (3, 1, 8, 8)}
SMALL_ARRAYS = ("--set", "array.rows=16", "--set", "array.cols=16")


def make_bases(folder: Path) -> None:
    """Write the models, a program of each, and inputs for them."""
    for name, model in base_models().items():
        (folder / f"{name}.onnx").write_bytes(model)
        inputs = np.random.default_rng(1).standard_normal(SHAPES[name]).astype(np.float32)
        arrays: dict[str, Any] = {"image" if name == "digits" else "x": inputs}
        np.savez(folder / f"{name}.npz", **arrays)
        small = (
            ()
            if name == "digits"
            else (*SMALL_ARRAYS, "--set", f"periphery.signed={'two_phase' if name == 'mlp' else 'bipolar'}")
        )
        spec = "ideal" if name == "branches" else "rram-128"
        model_path, program = str(folder / f"{name}.onnx"), str(folder / f"{name}.xbar")
        outcome = call(["compile", model_path, "-o", program, "--spec", spec, *small])
        if outcome.code != 0:
            raise RuntimeError(f"the base model {name} does not compile: {outcome.text}")


# -- one case, inside a worker ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a verb gave."""

    code: int
    text: str
    output: str


def call(arguments: list[str]) -> Outcome:
    """Run the command line in this process."""
    from xbarc.cli import main

    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["xbarc", *arguments]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else -1
    finally:
        sys.argv = before
    return Outcome(code, err.getvalue(), out.getvalue())


def run_case(seed: int, number: int, bases: Path, folder: Path, tell: Callable[[str], None]) -> Iterator[str]:
    """Run a case in an empty folder; gives a sentence for each thing that is wrong."""
    generator = np.random.default_rng([seed, number])
    name = pick(generator, sorted(SHAPES))
    if generator.random() < 0.5:
        content, how = mutate_model((bases / f"{name}.onnx").read_bytes(), generator)
        tell(f"model {name}: {how}")
        yield from _model_case(content, name, bases, folder, generator, tell)
    else:
        original = (bases / f"{name}.xbar").read_bytes()
        content, how, sealed = mutate_program(original, generator)
        tell(f"program {name}: {how}{' (sealed)' if sealed else ''}")
        if content != original:
            yield from _program_case(content, sealed, name, bases, folder, generator, tell)


def step(
    arguments: list[str], output: Path | None, folder: Path, tell: Callable[[str], None]
) -> Iterator[str | Outcome]:
    """Run a verb; gives what is wrong, and last its outcome."""
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    tell(f"> {' '.join(arguments)}")
    outcome = call(arguments)
    tell(f"= {arguments[0]} {outcome.code}")
    verb = f"{arguments[0]} (exit code {outcome.code}): "
    if outcome.code not in (0, 1, 2, 3) or (outcome.code == 1 and arguments[0] != "verify"):
        yield verb + (outcome.text.strip() or "nothing said")[-600:]
    elif "Traceback" in outcome.text or "internal error" in outcome.text:
        yield verb + outcome.text[-600:]
    elif outcome.code and arguments[0] != "verify" and not outcome.text.startswith("error: "):
        yield verb + "says no error"
    if "--json" in arguments:
        try:
            json.loads(outcome.output)
        except ValueError:
            yield verb + f"prints no JSON object: {outcome.output[:200]!r}"
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    if output is not None and outcome.code == 0:
        after.pop(output.name, None)
        kept.pop(output.name, None)
    if after != kept:
        changed = sorted(set(after.items()) ^ set(kept.items()))
        yield verb + f"wrote or changed {sorted({key for key, _ in changed})}"
    yield outcome


def _model_case(
    content: bytes, name: str, bases: Path, folder: Path, generator: np.random.Generator, tell: Callable[[str], None]
) -> Iterator[str]:
    model, program = folder / "m.onnx", folder / "m.xbar"
    model.write_bytes(content)
    if generator.random() < 0.5:
        program.write_bytes(_SENTINEL)
    spec = pick(generator, ("ideal", "rram-128"))
    code = -1
    for found in step(["compile", str(model), "-o", str(program), "--spec", spec, "--json"], program, folder, tell):
        if isinstance(found, str):
            yield found
        else:
            code = found.code
    if code:
        return
    for found in step(["verify", str(program), "--json"], None, folder, tell):
        if isinstance(found, str):
            yield found
        elif found.code == 1 and _comparable(content):
            yield f"what was compiled does not verify: {json.loads(found.output)['failures']}"
    outputs = folder / "y.npz"
    data = str(bases / f"{name}.npz")
    engine = pick(generator, ("torch", "reference"))
    arguments = ["run", str(program), "--data", data, "-o", str(outputs), "--engine", engine]
    yield from (found for found in step(arguments, outputs, folder, tell) if isinstance(found, str))


def _comparable(content: bytes) -> bool:
    """Whether a model gives the same twice, and holds no numbers so large that others vanish beside them."""
    if any(word in content for word in (b"Random", b"Dropout", b"Bernoulli", b"Multinomial", b"hostile.")):
        return False
    with np.errstate(all="ignore"):
        arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load_model_from_string(content).graph.initializer]
        return all(float(np.abs(a).max(initial=0)) < _LARGEST for a in arrays if a.dtype.kind == "f")


def _program_case(
    content: bytes,
    sealed: bool,
    name: str,
    bases: Path,
    folder: Path,
    generator: np.random.Generator,
    tell: Callable[[str], None],
) -> Iterator[str]:
    program = folder / "p.xbar"
    program.write_bytes(content)
    code = -1
    for found in step(["inspect", str(program), "--json", "--listing"], None, folder, tell):
        if isinstance(found, str):
            yield found
        else:
            code = found.code
    if code:
        return
    if not sealed:
        yield "an altered program loads"
    for found in step(["verify", str(program), "--json"], None, folder, tell):
        if isinstance(found, str):
            yield found
        elif found.code == 0 and not computes_the_same(program, bases / f"{name}.xbar"):
            yield "an altered program verifies"
    outputs, mapped = folder / "y.npz", folder / "q.xbar"
    engine = pick(generator, ("torch", "reference"))
    arguments = ["run", str(program), "--data", str(bases / f"{name}.npz"), "-o", str(outputs), "--engine", engine]
    yield from (found for found in step(arguments, outputs, folder, tell) if isinstance(found, str))
    arguments = ["map", str(program), "-o", str(mapped), "--json"]
    yield from (found for found in step(arguments, mapped, folder, tell) if isinstance(found, str))


def computes_the_same(first: Path, second: Path) -> bool:
    """Whether two programs execute the same: equal tables and segments, and weights but for the rounding of siemens."""
    from runtime.archive import load_program

    a, b = load_program(first), load_program(second)
    if _executed(a.tables) != _executed(b.tables) or dict(a.segments) != dict(b.segments):
        return False
    for layer in a.layers:
        weights = b.decoded_weights(layer)
        if np.abs(a.decoded_weights(layer) - weights).max() > 1e-9 * np.abs(weights).max():
            return False
        if not np.array_equal(a.bias(layer), b.bias(layer)):
            return False
    return True


def _executed(tables: "Tables") -> dict[str, Any]:
    """What of the tables says what runs: not the records, nor where a tile lies."""
    dumped = tables.model_dump(mode="json", exclude=_RECORDS)
    dumped["spec"].pop("sources")
    dumped.pop("reload")
    for tile in dumped["tiles"]:
        tile.pop("array")
    for step in dumped["instructions"]:
        step.pop("windows", None)
    return dumped


# -- workers ----------------------------------------------------------------------------------------------------------


def _work(pipe: Connection, bases: str, log: str) -> None:
    """Run cases until told to stop; runs in a process of its own."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.enable()
    os.environ.update(_ENVIRONMENT)
    import runtime.engine  # noqa: F401  (the slow imports, before anything is timed)
    import xbarc.verification  # noqa: F401

    pipe.send(("ready", ""))
    while True:
        message = pipe.recv()
        if message is None:
            return
        seed, number, folder = message
        try:
            for failure in run_case(seed, number, Path(bases), Path(folder), lambda text: pipe.send(("note", text))):
                pipe.send(("failure", failure))
        except BaseException as error:  # whatever escapes the command line is a failure of it
            import traceback

            pipe.send(("failure", "".join(traceback.format_exception(error))[-1500:]))
        pipe.send(("done", ""))


class _Worker:
    """A worker process, replaced when it crashed, hangs, or has run many cases."""

    def __init__(self, bases: Path, log: Path) -> None:
        self._bases, self._log = bases, log
        self._process: Any = None
        self._cases = 0

    def _start(self) -> None:
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._log.write_bytes(b"")
        self._process = context.Process(target=_work, args=(theirs, str(self._bases), str(self._log)), daemon=True)
        self._process.start()
        theirs.close()
        self._cases = 0
        if not self._pipe.poll(_START_SECONDS):
            raise RuntimeError("a worker does not start")
        self._pipe.recv()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def run(self, seed: int, number: int, summary: Summary, lock: threading.Lock) -> None:
        """Run a case, and add its outcome to the summary."""
        if self._process is None or self._cases >= CASES_A_WORKER:
            self._start()
        self._cases += 1
        folder = Path(tempfile.mkdtemp(prefix="xbarc-fuzz-"))
        what, step = "", ""
        codes: Counter[str] = Counter()
        reasons: list[str] = []
        try:
            self._pipe.send((seed, number, str(folder)))
            while True:
                if not self._pipe.poll(STEP_SECONDS):
                    reasons.append(f"hangs in {step}")
                    self.stop()
                    break
                kind, text = self._pipe.recv()
                if kind == "done":
                    break
                if kind == "failure":
                    reasons.append(text)
                elif text.startswith("> "):
                    step = text[2:]
                elif text.startswith("= "):
                    codes[text[2:]] += 1
                else:
                    what = text
        except (EOFError, OSError):
            self._process.join()
            told = self._log.read_text(errors="replace")[-1500:]
            reasons.append(f"crashes (exit code {self._process.exitcode}) in {step}: {told}")
            self.stop()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        with lock:
            summary.cases += 1
            summary.codes += codes
            summary.failures += [Failure(number, what, reason) for reason in reasons]


def fuzz(
    count: int, seed: int, workers: int = 2, only: int | None = None, report: Callable[[Failure], None] | None = None
) -> Summary:
    """Run `count` cases of a seed, or one of them alone.

    Parameters
    ----------
    count, seed
        Cases to run, and what they are drawn from.
    workers
        Processes.
    only
        The number of one case to run alone.
    report
        Called with each failure as it is found.
    """
    summary, lock = Summary(), threading.Lock()
    numbers = iter(range(count) if only is None else [only])
    with tempfile.TemporaryDirectory(prefix="xbarc-fuzz-bases-") as bases:
        make_bases(Path(bases))

        def work(index: int) -> None:
            worker = _Worker(Path(bases), Path(bases) / f"worker{index}.log")
            try:
                while True:
                    with lock:
                        number = next(numbers, None)
                        known = len(summary.failures)
                    if number is None:
                        return
                    worker.run(seed, number, summary, lock)
                    if report:
                        for failure in [f for f in summary.failures[known:] if f.number == number]:
                            report(failure)
            finally:
                worker.stop()

        threads = [threading.Thread(target=work, args=(index,)) for index in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return summary


def main(arguments: list[str] | None = None, stream: TextIO = sys.stdout) -> int:
    """The command: fuzzes, prints failures and a summary; exits with 1 if there were failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, help="number of one case to run again")
    given = parser.parse_args(arguments)

    def report(failure: Failure) -> None:
        print(f"seed {given.seed} case {failure.number}: {failure.what}\n    {failure.reason}", file=stream, flush=True)

    start = time.monotonic()
    summary = fuzz(given.count, given.seed, given.workers, given.only, report)
    codes = ", ".join(f"{verb} {count}" for verb, count in sorted(summary.codes.items()))
    seconds = time.monotonic() - start
    print(
        f"{summary.cases} cases, {len(summary.failures)} failures, {seconds:.0f} s (exit codes: {codes})", file=stream
    )
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
