"""The command line: every verb and option does what its help says, errors are one line, codes and JSON are fixed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from runtime.archive import load_program
from runtime.listing import parse_listing
from xbarc.cli import main
from xbarc.cli.app import app

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits-cnn" / "model.onnx"
XBARC = [sys.executable, "-m", "xbarc"]

LAYER_KEYS = {"name", "op", "rows", "cols", "windows", "tiles", "arrays", "cells"}
TOTAL_KEYS = {"tiles", "arrays", "cells", "macs", "mapped_macs", "constant_weight_macs"}


@dataclass(frozen=True)
class Done:
    """What a verb gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Run = Callable[..., Done]


@pytest.fixture
def xbarc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["xbarc", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        told = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Done(stop.value.code, told.out, told.err)

    return run


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits-cnn on rram-128, calibrated on 64 digits."""
    path = tmp_path_factory.mktemp("programs") / "digits.xbar"
    done = shell("compile", DIGITS, "-o", path, "--calib", "digits", "--split", "train", "--limit", "64")
    assert done.returncode == 0, done.stderr
    return path


def shell(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own."""
    command = [*XBARC, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def write_model(path: Path, shape: list[int | str], *, normalised: bool = False, op: str = "Relu") -> Path:
    """A small convolution, batch normalisation after it or not, and a digital operator."""
    generator = np.random.default_rng(0)
    weights = {"w": generator.standard_normal((4, 1, 3, 3)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv")]
    if normalised:
        weights |= {name: np.abs(generator.standard_normal(4)).astype(np.float32) for name in "sbmv"}
        nodes.append(helper.make_node("BatchNormalization", ["c", *"sbmv"], ["n"], "norm"))
    nodes.append(helper.make_node(op, ["n" if normalised else "c"], ["y"], "last"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model of one small convolution."""
    return write_model(tmp_path / "small.onnx", ["N", 1, 6, 6], normalised=True)


def digits_npz(path: Path, count: int = 6, **more: Any) -> Path:
    arrays: dict[str, Any] = {"image": np.random.default_rng(0).random((count, 1, 8, 8), dtype=np.float32), **more}
    np.savez(path, **arrays)
    return path


def refusal(done: Done, code: int, *words: str) -> None:
    """The verb failed with this code and one line that holds these words."""
    assert done.code == code, (done.out, done.err)
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert "internal error" not in done.err
    for word in words:
        assert word in done.err


# -- compile ----------------------------------------------------------------------------------------------------------


def test_compile_writes_beside_the_model_unless_told(xbarc: Run, small: Path) -> None:
    done = xbarc("compile", small)
    assert done.code == 0
    assert small.with_suffix(".xbar").is_file()
    assert "operators on crossbars  1 of 2" in done.out
    assert "no calibration data" in done.out
    assert "--calib" in done.err
    other = small.parent / "other.bin"
    assert xbarc("compile", small, "--output", other).code == 0
    assert load_program(other).tables == load_program(small.with_suffix(".xbar")).tables


def test_compile_json_is_one_object(xbarc: Run, small: Path) -> None:
    told = xbarc("compile", small, "-o", "p.xbar", "--json").json
    assert set(told) >= {"program", "layers", "totals", "digital", "seconds"}
    assert told["program"] == "p.xbar"
    assert [set(layer) >= LAYER_KEYS for layer in told["layers"]] == [True]
    assert set(told["totals"]) >= TOTAL_KEYS
    assert {"node": "last", "op": "Relu"}.items() <= told["digital"][0].items()
    assert set(told["digital"][0]) >= {"node", "op", "reason"}
    assert next(iter(told["seconds"])) == "clean"
    layer = told["layers"][0]
    assert (layer["rows"], layer["cols"], layer["windows"], layer["tiles"], layer["arrays"]) == (9, 4, 16, 1, 2)
    assert told["totals"]["macs"] == told["totals"]["mapped_macs"] == 9 * 4 * 16


def test_compile_spec_by_preset_or_file_and_set(xbarc: Run, small: Path, tmp_path: Path) -> None:
    assert xbarc("compile", small, "--spec", "ideal", "-o", "a.xbar").code == 0
    assert load_program(Path("a.xbar")).spec.name == "ideal"
    text = xbarc("spec", "show", "rram-128").out
    (tmp_path / "mine.yaml").write_text(text.replace("name: rram-128", "name: mine"))
    fields = ["--set", "periphery.adc_bits=5", "--set", "array.rows=8", "--set", "device.g_max=50 uS"]
    assert xbarc("compile", small, "--spec", "mine.yaml", *fields, "-o", "b.xbar").code == 0
    loaded = load_program(Path("b.xbar"))
    assert (loaded.spec.name, loaded.spec.periphery.adc_bits, len(loaded.tables.tiles)) == ("mine", 5, 2)
    assert loaded.spec.device.g_max == pytest.approx(50e-6)


def test_compile_calibration_options(xbarc: Run, tmp_path: Path) -> None:
    digits = ("compile", DIGITS, "-o", "p.xbar", "--calib", "digits")
    ranges = []
    for more in (("--split", "train"), ("--split", "test"), ("--split", "train", "--normalize", "0.5,0.5")):
        assert xbarc(*digits, *more, "--limit", "32").code == 0
        loaded = load_program(Path("p.xbar"))
        assert loaded.tables.calibration == "data"
        ranges.append(loaded.tables.tiles[0].adc_range)
        low = loaded.calibration[f"{loaded.tables.layers[0].name}/range"][0]
        assert (low < 0) == ("--normalize" in more)
    assert len(set(ranges)) == 3
    assert xbarc(*digits, "--split", "train", "--limit", "8").code == 0
    assert load_program(Path("p.xbar")).tables.tiles[0].adc_range not in ranges
    for number in range(4):
        (tmp_path / "images" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number * 60).save(tmp_path / "images" / "cat" / f"{number}.png")
    assert xbarc("compile", DIGITS, "-o", "p.xbar", "--calib", "images").code == 0


def test_compile_input_shape(xbarc: Run, tmp_path: Path) -> None:
    model = write_model(tmp_path / "open.onnx", ["N", 1, "H", "W"])
    refusal(xbarc("compile", model), 2, "open dimensions", "--input-shape")
    assert xbarc("compile", model, "--input-shape", "x=1,1,5,7", "-o", "p.xbar").code == 0
    loaded = load_program(Path("p.xbar"))
    assert loaded.tables.inputs[0].shape == ("N", 1, 5, 7)
    assert loaded.report.layers[0].windows == 3 * 5
    refusal(xbarc("compile", model, "--input-shape", "x:1,1"), 2, "--input-shape")
    refusal(xbarc("compile", model, "--input-shape", "x=0,1,5,7"), 2, "positive")
    refusal(xbarc("compile", model, "--input-shape", "xx=1,1,5,7"), 2, "did you mean 'x'")


def test_compile_digital(xbarc: Run) -> None:
    names = [layer["name"] for layer in xbarc("compile", DIGITS, "-o", "p.xbar", "--json").json["layers"]]
    arguments = ("--digital", names[0], "--digital", names[2])
    told = xbarc("compile", DIGITS, "-o", "p.xbar", *arguments, "--json").json
    assert [layer["name"] for layer in told["layers"]] == [name for name in names if name not in arguments]
    kept = {node["node"]: node["reason"] for node in told["digital"] if node["node"] in names}
    assert kept == dict.fromkeys((names[0], names[2]), "kept digital by request")
    assert told["totals"]["mapped_macs"] < told["totals"]["constant_weight_macs"]
    refusal(xbarc("compile", DIGITS, "--digital", "nosuch", "-o", "q.xbar"), 2, "nosuch", names[0])


def test_compile_switches(xbarc: Run, small: Path) -> None:
    fused = xbarc("compile", small, "-o", "a.xbar", "--json").json
    apart = xbarc("compile", small, "-o", "b.xbar", "--no-fuse-batchnorm", "--json").json
    assert [node["op"] for node in fused["digital"]] == ["Relu"]
    assert [node["op"] for node in apart["digital"]] == ["BatchNormalization", "Relu"]
    shared = xbarc("compile", DIGITS, "-o", "c.xbar", "--json").json["totals"]
    alone = xbarc("compile", DIGITS, "-o", "d.xbar", "--no-share-arrays", "--json").json["totals"]
    assert shared["tiles"] == alone["tiles"]
    assert shared["arrays"] < alone["arrays"] == 2 * alone["tiles"]
    assert xbarc("compile", small, "-o", "e.xbar", "--share-arrays").code == 0
    assert xbarc("compile", small, "-o", "e.xbar", "--no-source").code == 0
    assert load_program(Path("e.xbar")).source is None
    refusal(xbarc("verify", "e.xbar"), 2, "--model")
    assert xbarc("verify", "e.xbar", "--model", small).code == 0


def test_who_shares_arrays(xbarc: Run, program: Path) -> None:
    """Of one layer or of all; the summary says how many arrays are shared by layers, and verify holds it to that."""
    wide = ("--set", "array.rows=256", "--set", "array.cols=256")
    told = {}
    for share in ("none", "inputs", "layer", "all"):
        assert xbarc("compile", DIGITS, "-o", f"{share}.xbar", "--share", share, *wide).code == 0
        told[share] = load_program(Path(f"{share}.xbar")).report.totals
    assert told["all"].arrays < told["layer"].arrays <= told["inputs"].arrays <= told["none"].arrays
    assert [told[share].shared_arrays > 0 for share in told] == [False, False, False, True]
    assert xbarc("verify", "all.xbar").code == 0
    line = f"shared by layers      {told['all'].shared_arrays} arrays; layers on one array cannot run at the same time"
    assert line in xbarc("inspect", "all.xbar").out
    assert "shared by layers" not in xbarc("inspect", "layer.xbar").out
    mapped = xbarc("map", program, "-o", "m.xbar", "--share", "all", "--json").json
    assert mapped["totals"]["shared_arrays"] > 0
    assert any(layer["shares_with"] for layer in mapped["layers"])
    assert xbarc("map", "m.xbar", "-o", "n.xbar", "--share", "layer").code == 0
    assert load_program(Path("n.xbar")).tables == load_program(program).tables
    around = xbarc("compile", DIGITS, "-o", "c.xbar", "--share", "all", *wide, "--chip-seed", "1", "--json").json
    assert around["totals"]["arrays"] == told["all"].arrays
    refusal(
        xbarc("compile", DIGITS, "-o", "x.xbar", "--share", "layers"),
        2,
        "none, inputs, layer, all",
        "did you mean 'layer'",
    )
    for verb in (("compile", DIGITS), ("map", program)):
        for switch in ("--share-arrays", "--no-share-arrays"):
            done = xbarc(*verb, "-o", "x.xbar", "--share", "all", switch)
            refusal(done, 2, f"--share and {switch} must not be given together")


def test_copies_share_out_windows(xbarc: Run) -> None:
    """A number for every layer, numbers by layer, or what makes the pipeline fastest within a budget."""
    names = [layer.name for layer in load_program(Path(xbarc_digits(xbarc, "a.xbar"))).tables.layers]
    told = {}
    for copies in (("--copies", "2"), ("--copies", f"{names[0]}=3", "--copies", f"{names[1]}=2")):
        told[copies] = xbarc("compile", DIGITS, "-o", "b.xbar", *copies, "--json").json["layers"]
    assert [[layer["copies"] for layer in layers[:3]] for layers in told.values()] == [[2, 2, 2], [3, 2, 1]]
    balanced = xbarc("compile", DIGITS, "-o", "c.xbar", "--copies", "balance", "--array-budget", "40")
    assert balanced.code == 0
    assert xbarc("verify", "c.xbar").code == 0
    assert load_program(Path("c.xbar")).arrays <= 40
    faster, one = (xbarc("report", name, "--json").json["pipelined"]["interval"] for name in ("c.xbar", "a.xbar"))
    assert faster < one
    around = xbarc("compile", DIGITS, "-o", "d.xbar", "--copies", "balance", "--array-budget", "40", "--chip-seed", "1")
    assert around.code == 0
    for given, hints in (
        (("many",), ("LAYER=NUMBER, or balance",)),
        (("2", "3"), ("LAYER=NUMBER",)),
        ((f"{names[0]}=2", f"{names[0]}=3"), ("each layer once",)),
        (("balance",), ("--array-budget",)),
        (("conv=2",), ("must be of a layer of the model",)),
    ):
        options = [part for text in given for part in ("--copies", text)]
        refusal(xbarc("compile", DIGITS, "-o", "x.xbar", *options), 2, *hints)


def test_too_few_arrays_are_written_segment_after_segment(xbarc: Run) -> None:
    few = ("--set", "chip.tiles=1", "--set", "chip.cores_per_tile=1", "--set", "chip.arrays_per_core=12")
    refusal(xbarc("compile", DIGITS, "-o", "x.xbar", *few), 4, "--reload, which writes it in 2 segments")
    assert xbarc("compile", DIGITS, "-o", "a.xbar", *few, "--reload").code == 0
    assert load_program(Path("a.xbar")).arrays == 12
    assert xbarc("compile", DIGITS, "-o", "b.xbar", "--reload", "--array-budget", "12").code == 0
    assert load_program(Path("b.xbar")).tables.reload == 12
    assert xbarc("verify", "a.xbar").code == 0
    told = xbarc("report", "a.xbar", "--batch", "100").out
    for part in ("Segments that are written to 12 arrays", "wear", "2 writes of an array for each batch"):
        assert part in told
    assert xbarc("report", "a.xbar", "--batch", "7", "--html", "a.html").code == 0
    page = Path("a.html").read_text(encoding="utf-8")
    assert "for every 7" in page
    assert "&lt;bdi" not in page
    assert "2\u00a0writes" in page or "2 writes" in page
    one, many = (xbarc("report", "a.xbar", "--batch", batch, "--json").json for batch in ("1", "100"))
    assert one["reloading"]["batch"] == 1
    assert many["energy"]["write"] == one["energy"]["write"] / 100
    assert many["pipelined"]["interval"] < one["pipelined"]["interval"]
    refusal(xbarc("compile", DIGITS, "-o", "x.xbar", "--reload"), 2, "--array-budget")
    refusal(xbarc("compile", DIGITS, "-o", "x.xbar", "--array-budget", "4"), 2, "--reload")
    balanced = ("--reload", "--copies", "balance", "--array-budget", "12")
    refusal(xbarc("compile", DIGITS, "-o", "x.xbar", *balanced), 2, "cannot be balanced")


def xbarc_digits(xbarc: Run, name: str) -> str:
    assert xbarc("compile", DIGITS, "-o", name).code == 0
    return name


def test_compile_seed(xbarc: Run, small: Path) -> None:
    contents = []
    for seed in (0, 0, 1):
        assert xbarc("compile", small, "-o", "p.xbar", "--seed", seed).code == 0
        contents.append(load_program(Path("p.xbar")).tables)
    assert contents[0] == contents[1] != contents[2]
    assert contents[2].seed == 1
    assert xbarc("compile", small, "--seed", "-1").code == 2


def test_compile_stages(xbarc: Run, small: Path) -> None:
    done = xbarc("compile", small, "--stop-after", "lower", "--save-stages", "deep/stages")
    assert done.code == 0
    assert done.out == "stopped after lower; passes run: clean, lower\n"
    names = sorted(path.name for path in Path("deep/stages").iterdir())
    assert names == ["1-clean.json", "1-clean.onnx", "2-lower.json", "2-lower.onnx"]
    assert not small.with_suffix(".xbar").exists()
    told = xbarc("compile", small, "--stop-after", "quantize", "--json").json
    assert told["program"] is None
    assert told["stopped_after"] == "quantize"
    assert list(told["seconds"]) == ["clean", "lower", "partition", "calibrate", "quantize"]
    assert xbarc("compile", small, "--save-stages", "all").code == 0
    assert len(list(Path("all").glob("*.json"))) == 10
    onnxruntime.InferenceSession("all/2-lower.onnx")
    refusal(xbarc("compile", small, "--stop-after", "nosuch"), 2, "must be one of clean, lower")
    Path("file").write_text("")
    refusal(xbarc("compile", small, "--save-stages", "file"), 2, "--save-stages")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--spec", "rram128"], "did you mean 'rram-128'"),
        (["--spec", "nosuch.yaml"], "nosuch.yaml"),
        (["--set", "periphery.adc_bit=6"], "did you mean 'periphery.adc_bits'"),
        (["--set", "periphery.adc_bits"], "FIELD=VALUE"),
        (["--set", "periphery.adc_bits=many"], "adc_bits"),
        (["--set", "periphery.adc_bits=[1"], "YAML"),
        (["--calib", "nosuch.npz"], "nosuch.npz"),
        (["--calib", "digit"], "digits"),
        (["--normalize", "a,b", "--calib", "digits"], "MEAN,STD"),
        (["-o", "missing/p.xbar"], "mkdir -p missing"),
        (["-o", "."], "folder"),
        (["-o", "small.onnx"], "another file than the input"),
        (["-o", "/dev/null"], "regular file"),
        (["-o", "a" * 300], "name too long"),
    ],
)
def test_compile_refuses(xbarc: Run, small: Path, arguments: list[str], words: str) -> None:
    before = small.read_bytes()
    refusal(xbarc("compile", small, *arguments), 2, words)
    assert [path.name for path in small.parent.iterdir()] == ["small.onnx"]
    assert small.read_bytes() == before


def test_models_that_cannot_be_read(xbarc: Run, program: Path, tmp_path: Path) -> None:
    refusal(xbarc("compile", "nosuch.onnx"), 2, "does not exist")
    refusal(xbarc("compile", tmp_path), 2, "directory")
    refusal(xbarc("compile", program), 2, "tile program, which is compiled already")
    Path("empty.onnx").write_bytes(b"")
    refusal(xbarc("compile", "empty.onnx"), 2, "empty")
    Path("text.onnx").write_text("hello")
    refusal(xbarc("compile", "text.onnx"), 2, "not an ONNX model")
    os.mkfifo("pipe")
    for verb in ("compile", "inspect", "verify"):
        refusal(xbarc(verb, "pipe"), 2, "file")
    Path("cut.onnx").write_bytes(DIGITS.read_bytes()[:-100])
    refusal(xbarc("compile", "cut.onnx"), 2, "cut.onnx")


def test_models_that_are_not_supported(xbarc: Run, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "relu.onnx")
    refusal(xbarc("compile", "relu.onnx"), 3, "nothing to map")
    done = xbarc("compile", "relu.onnx", "--json")
    assert done.code == 3
    assert done.json == {"error": "ModelError", "message": done.err[7:-1], "exit_code": 3}
    write_model(tmp_path / "custom.onnx", ["N", 1, 6, 6], op="NoSuchOperator")
    assert xbarc("compile", "custom.onnx").code == 3


def test_a_failure_keeps_what_was_there(xbarc: Run, small: Path) -> None:
    Path("p.xbar").write_text("before")
    refusal(xbarc("compile", small, "-o", "p.xbar", "--digital", "nosuch"), 2)
    assert Path("p.xbar").read_text() == "before"
    Path("link.xbar").symlink_to("p.xbar")
    assert xbarc("compile", small, "-o", "link.xbar").code == 0
    assert Path("link.xbar").is_symlink()
    assert load_program(Path("p.xbar")).report.layers


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(xbarc: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refusal(xbarc("compile", small, "-o", "locked/p.xbar"), 2, "may not write")


def test_malformed_nodes_are_bad_files(xbarc: Run, tmp_path: Path) -> None:
    model = onnx.load(write_model(tmp_path / "a.onnx", ["N", 1, 6, 6]))
    model.graph.node[0].attribute.append(helper.make_attribute("strides", [0, -1]))
    onnx.save(model, "a.onnx")
    refusal(xbarc("compile", "a.onnx"), 2, "'conv'", "malformed")
    del model.graph.node[0].attribute[:]
    model.graph.node[0].name = "n" * 5000
    onnx.save(model, "a.onnx")
    refusal(xbarc("compile", "a.onnx"), 2, "letters")


# -- map --------------------------------------------------------------------------------------------------------------


def test_map(xbarc: Run, program: Path) -> None:
    told = xbarc("map", program, "-o", "m.xbar", "--json").json
    assert set(told) >= {"program", "layers", "totals", "digital", "seconds"}
    before = load_program(program)
    assert load_program(Path("m.xbar")).tables == before.tables
    done = xbarc("map", program, "-o", "n.xbar", "--no-share-arrays")
    assert done.code == 0
    assert "written to n.xbar" in done.out
    assert load_program(Path("n.xbar")).arrays > before.arrays
    assert xbarc("verify", "n.xbar").code == 0
    refusal(xbarc("map", program, "-o", "missing/m.xbar"), 2, "mkdir")
    assert xbarc("map", program).code == 2


# -- run --------------------------------------------------------------------------------------------------------------


def test_run_on_both_engines(xbarc: Run, program: Path, tmp_path: Path) -> None:
    data = digits_npz(tmp_path / "x.npz")
    outputs = {}
    for engine in ("torch", "reference"):
        arguments = ["run", program, "--data", data, "-o", f"{engine}.npz", "--engine", engine, "--chips", 0]
        told = xbarc(*arguments, "--json").json
        assert set(told) >= {"outputs", "seconds"}
        assert (told["outputs"], told["samples"], told["engine"]) == (f"{engine}.npz", 6, engine)
        reported = xbarc("report", program, "--json").json["pipelined"]
        assert told["hardware"] == {part: reported[part] for part in ("latency", "interval")}
        with np.load(f"{engine}.npz") as found:
            assert list(found) == ["scores"]
            outputs[engine] = found["scores"]
    assert outputs["torch"].shape == (6, 10)
    truth = onnxruntime.InferenceSession(str(DIGITS)).run(None, dict(np.load(data)))[0]
    between = np.abs(outputs["torch"] - outputs["reference"]).mean()
    assert between < 0.05 * np.abs(outputs["reference"] - truth).mean()
    alone = ["--batch", 1, "--engine", "reference", "--chips", 0]
    assert xbarc("run", program, "--data", data, "-o", "small.npz", *alone).code == 0
    with np.load("small.npz") as found:
        np.testing.assert_allclose(found["scores"], outputs["reference"], rtol=1e-5, atol=1e-5)


def test_run_options_on_data(xbarc: Run, program: Path) -> None:
    shapes = []
    for number, more in enumerate(
        (
            ["--limit", 5],
            ["--limit", 5, "--seed", 1],
            ["--limit", 5, "--split", "train"],
            ["--limit", 5, "--normalize", "0,2"],
        )
    ):
        done = xbarc("run", program, "--data", "digits", "-o", f"{number}.npz", *more)
        assert done.code == 0
        assert "5 samples" in done.out
        with np.load(f"{number}.npz") as found:
            shapes.append(found["scores"])
    assert {value.shape for value in shapes} == {(5, 10)}
    assert len({value.tobytes() for value in shapes}) == 4


def test_run_refuses(xbarc: Run, program: Path, tmp_path: Path) -> None:
    data = digits_npz(tmp_path / "x.npz")
    np.savez("empty.npz")
    np.savez("wrong.npz", imge=np.zeros((1, 1, 8, 8), np.float32))
    np.savez("none.npz", image=np.zeros((0, 1, 8, 8), np.float32))
    np.savez("shape.npz", image=np.zeros((2, 1, 8, 9), np.float32))
    for name, words in (
        ("empty.npz", "missing: image"),
        ("wrong.npz", "did you mean 'image'"),
        ("none.npz", "at least one sample"),
        ("shape.npz", "8"),
        ("nosuch.npz", "nosuch.npz"),
        (str(program), ".npz"),
    ):
        refusal(xbarc("run", program, "--data", name, "-o", "y.npz"), 2, words)
    run = ("run", program, "--data", data)
    refusal(xbarc(*run, "-o", data), 2, "another file")
    refusal(xbarc(*run, "-o", "missing/y.npz"), 2, "mkdir")
    refusal(xbarc(*run, "-o", tmp_path), 2, "folder")
    for device in ("cuda:99", "nosuch", "meta"):
        refusal(xbarc(*run, "-o", "y.npz", "--device", device), 2, "device must be one", "cpu")
    assert xbarc(*run, "-o", "y.npz", "--engine", "numpy").code == 2
    refusal(xbarc("run", DIGITS, "--data", data, "-o", "y.npz"), 2, "compile it first")
    assert not Path("y.npz").exists()
    os.mkfifo("pipe.npz")
    refusal(xbarc("run", program, "--data", "pipe.npz", "-o", "y.npz"), 2)


# -- verify -----------------------------------------------------------------------------------------------------------


def test_verify_passes_with_random_inputs_or_data(xbarc: Run, program: Path) -> None:
    done = xbarc("verify", program)
    assert done.code == 0
    assert done.out.endswith("verified\n")
    told = xbarc("verify", program, "--json").json
    assert set(told) == {"passed", "max_error", "bound", "outputs", "layers", "failures"}
    assert told["passed"] is True
    assert told["max_error"] <= told["bound"] == 1
    assert [output["name"] for output in told["outputs"]] == ["scores"]
    assert xbarc("verify", program, "--json", "--seed", 1).json["outputs"] != told["outputs"]
    counts = []
    for more in ([], ["--limit", 2], ["--limit", 2, "--split", "train"], ["--limit", 2, "--normalize", "0.1,0.5"]):
        told = xbarc("verify", program, "--data", "digits", *more, "--json").json
        assert told["passed"]
        counts.append((told["layers"][0]["conversions"], told["outputs"][0]["error"]))
    assert [count for count, _ in counts] == [4 * 64 * 16] + 3 * [2 * 64 * 16]
    assert len(set(counts)) == 4


def test_verify_fails_on_an_altered_program(xbarc: Run, program: Path) -> None:
    loaded = load_program(program)
    name = f"{loaded.tables.layers[0].name}/bias"
    loaded.tensors[name][0] += 1
    loaded.save("bad.xbar")
    done = xbarc("verify", "bad.xbar")
    assert done.code == 1
    assert "FAILED: layer 'node_" in done.out
    assert done.out.endswith("verification failed\n")
    told = xbarc("verify", "bad.xbar", "--json")
    assert told.code == 1
    assert told.json["passed"] is False
    assert told.json["failures"]
    other = xbarc("verify", program, "--model", write_model(Path("other.onnx"), ["N", 1, 6, 6]), "--json")
    assert other.code == 1
    assert other.json["max_error"] is None  # infinite, which JSON does not have


def test_programs_that_cannot_be_read(xbarc: Run, program: Path, tmp_path: Path) -> None:
    refusal(xbarc("verify", "nosuch.xbar"), 2, "nosuch.xbar")
    refusal(xbarc("verify", tmp_path), 2, "file")
    refusal(xbarc("verify", DIGITS), 2, "ONNX model", "xbarc compile")
    content = program.read_bytes()
    Path("cut.xbar").write_bytes(content[:-1000])
    refusal(xbarc("inspect", "cut.xbar"), 2, "truncated")
    Path("flip.xbar").write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    refusal(xbarc("inspect", "flip.xbar"), 2, "altered", "program.json")
    with zipfile.ZipFile("other.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    refusal(xbarc("inspect", "other.zip"), 2, "tile program")


# -- eval -------------------------------------------------------------------------------------------------------------


def test_eval_with_labels(xbarc: Run, program: Path) -> None:
    told = xbarc("eval", program, "--data", "digits", "--limit", 100, "--batch", 7, "--json").json
    assert set(told) >= {"metric", "float", "ideal", "chips", "mean", "std", "ci95", "samples"}
    assert (told["metric"], told["samples"], told["std"]) == ("accuracy", 100, 0)
    assert told["float"] > 0.95
    assert told["chips"] == [told["mean"]]
    assert told["ci95"][0] <= told["mean"] <= told["ci95"][1]
    again = xbarc("eval", program, "--data", "digits", "--limit", 100, "--json").json
    assert again["ci95"] == told["ci95"]
    done = xbarc("eval", program, "--data", "digits", "--split", "train", "--limit", 50, "--seed", 3)
    assert re.search(r"float +[\d.]+% accuracy \(50 samples\)", done.out)
    assert (
        xbarc("eval", program, "--data", "digits", "--limit", 50, "--normalize", "0.5,9", "--json").json["ideal"] < 0.9
    )


def test_eval_without_labels_by_layer(xbarc: Run, program: Path, tmp_path: Path) -> None:
    data = digits_npz(tmp_path / "x.npz")
    told = xbarc("eval", program, "--data", data, "--by-layer", "--chips", 0, "--json").json
    assert (told["metric"], told["float"], told["samples"]) == ("relative_error", 0, 6)
    assert [layer["layer"] for layer in told["by_layer"]] == list(load_program(program).layers)
    assert all(0 < layer["value"] < told["ideal"] for layer in told["by_layer"])
    done = xbarc("eval", program, "--data", data, "--by-layer")
    assert "relative error" in done.out
    assert "node_linear" in done.out


def test_eval_refuses(xbarc: Run, program: Path, tmp_path: Path) -> None:
    for labels, words in (([1, 2], "samples"), ([1] * 5 + [77], "labels up to 77"), ([-1] * 6, "from 0 up")):
        data = digits_npz(tmp_path / "x.npz", labels=np.array(labels))
        refusal(xbarc("eval", program, "--data", data), 2, words)
    data = digits_npz(tmp_path / "x.npz")
    refusal(xbarc("eval", program, "--data", data, "--device", "cuda:99"), 2, "device")
    refusal(xbarc("eval", program, "--data", data, "--model", "nosuch.onnx"), 2, "does not exist")
    done = xbarc("eval", program, "--data", data, "--model", "nosuch.onnx", "--json")
    assert done.json["exit_code"] == 2
    bare = load_program(program)
    xbarc("compile", DIGITS, "--no-source", "-o", "bare.xbar")
    refusal(xbarc("eval", "bare.xbar", "--data", data), 2, "--model")
    assert bare.source is not None
    assert xbarc("eval", "bare.xbar", "--data", data, "--model", DIGITS).code == 0


# -- inspect, ops -----------------------------------------------------------------------------------------------------


def test_inspect(xbarc: Run, program: Path) -> None:
    loaded = load_program(program)
    text = xbarc("inspect", program, "--listing").out
    assert parse_listing(text) == loaded.tables
    summary = xbarc("inspect", program).out
    assert "input   image  float32 (batch, 1, 8, 8)" in summary
    assert loaded.tables.model_sha256 in summary
    told = xbarc("inspect", program, "--json").json
    assert set(told) >= {"program", "layers", "totals", "digital", "seconds"}
    assert "tables" not in told
    assert xbarc("inspect", program, "--json", "--listing").json["tables"]["layers"]


def test_ops(xbarc: Run) -> None:
    told = xbarc("ops", "--json").json
    assert "Conv" in told["mapped"]
    assert "Relu" in told["digital"]
    assert "ConvTranspose" in xbarc("ops").out
    assert xbarc("ops", "--markdown").out.startswith("#")


# -- the whole --------------------------------------------------------------------------------------------------------


def test_every_option_is_in_this_file() -> None:
    """A new option needs a test of the command line that shows what it does."""
    from typer.main import get_command

    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_cli*.py"))
    command: Any = get_command(app)
    for verb, found in command.commands.items():
        for part in (found, *getattr(found, "commands", {}).values()):
            for option in part.params:
                names = [name for name in (*option.opts, *option.secondary_opts) if name.startswith("-")]
                shown = any(f'"{name}"' in text or f"{name}=" in text for name in names)
                assert not names or shown or set(names) & {"-o"}, (verb, names)


def test_usage_errors(xbarc: Run, small: Path) -> None:
    for arguments in (["nosuch"], ["compile"], ["compile", small, "--calbi", "x"], ["verify", "a", "b"]):
        done = xbarc(*arguments)
        assert done.code == 2
        assert "Usage: xbarc" in done.err
        told = xbarc(*arguments, "--json")
        assert told.code == 2
        assert told.json["error"] == "UsageError"
    assert "--calib" in xbarc("compile", small, "--calbi", "x").err
    assert xbarc().code == 2


def test_help_and_version(xbarc: Run) -> None:
    from xbarc import __version__

    assert xbarc("--version").out == f"xbarc {__version__}\n"
    for verb in ([], ["compile"], ["map"], ["run"], ["verify"], ["eval"], ["inspect"], ["spec"], ["ops"]):
        done = xbarc(*verb, "--help")
        assert done.code == 0
        assert done.out.startswith("Usage: xbarc")
        assert xbarc(*verb, "-h").out == done.out


def test_environment_is_checked(xbarc: Run, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("much", "-1", "0", "nan", "inf"):
        monkeypatch.setenv("XBARC_MEMORY_GIB", wrong)
        refusal(xbarc("spec", "list"), 2, "XBARC_MEMORY_GIB")
    monkeypatch.delenv("XBARC_MEMORY_GIB")
    done = shell("verify", program, env={**os.environ, "XBARC_RUN_SECONDS": "soon"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: XBARC_RUN_SECONDS must be a positive number")


@pytest.mark.parametrize("engine", ["torch", "reference"])
def test_too_little_memory_is_an_error_of_one_line(program: Path, tmp_path: Path, engine: str) -> None:
    data = digits_npz(tmp_path / "x.npz", 40000)
    bound = {**os.environ, "XBARC_MEMORY_GIB": "0.6", "OMP_NUM_THREADS": "1"}
    arguments = ("run", program, "--data", data, "-o", tmp_path / "y.npz", "--engine", engine, "--batch", 40000)
    done = shell(*arguments, env=bound)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "memory" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz"]


def test_debug_shows_where() -> None:
    done = shell("compile", "nosuch.onnx", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ModelFileError" in done.stderr


def test_a_reader_that_goes_away(program: Path) -> None:
    process = subprocess.Popen(
        [*XBARC, "inspect", str(program), "--listing"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_full_disk(program: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*XBARC, "inspect", str(program), "--json"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: reading or writing failed (No space left on device)"


def test_ctrl_c(program: Path, tmp_path: Path) -> None:
    data = digits_npz(tmp_path / "x.npz", 20000)
    command = [*XBARC, "run", str(program), "--data", str(data), "-o", str(tmp_path / "y.npz"), "--engine", "reference"]
    # A shell that starts the tests in the background has them, and all they start, ignore ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told == "interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize(
    "moment",
    [
        "class Finder:\n    def find_spec(self, name, *more):\n        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())",
        "import xbarc.cli.app as a\na._bound_memory = lambda: exec('raise KeyboardInterrupt')",
        "import compiler.frontend as f\nf.load_model = lambda *_, **__: exec('raise KeyboardInterrupt')",
    ],
    ids=["loading", "in a string before a verb", "in a string of a verb"],
)
def test_ctrl_c_at_any_moment(tmp_path: Path, moment: str) -> None:
    arguments = ["xbarc", "compile", str(DIGITS), "-o", str(tmp_path / "x.xbar")]
    code = f"import sys; sys.argv = {arguments}\n{moment}\nfrom xbarc.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_completion() -> None:
    named = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # not the shell that tests run under
    done = shell("--show-completion", "bash", env=named)
    assert done.returncode == 0
    assert "complete" in done.stdout
    environment = {**os.environ, "_XBARC_COMPLETE": "complete_bash", "COMP_WORDS": "xbarc ver", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'xbarc'; from xbarc.cli import main; main()"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.stdout.split() == ["verify"]


def test_help_is_fast_and_light() -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert shell("--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5
    code = (
        "import sys; sys.argv = ['xbarc', '--help']\nfrom xbarc.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'scipy', 'numpy', 'pint'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
