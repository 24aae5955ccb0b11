"""Mutated models and programs are refused in words or run; `python tests/fuzz.py` runs many more of them."""

import io
from pathlib import Path

import fuzz
import numpy as np
import pytest
from fuzz_mutations import members_of, mutate_model, mutate_program, seal
from safetensors.numpy import load, save

CASES = 120


def test_mutated_files_are_refused_or_run() -> None:
    summary = fuzz.fuzz(CASES, seed=2026)
    assert not summary.failures, "\n".join(f"case {f.number}: {f.what}: {f.reason}" for f in summary.failures)
    assert summary.cases == CASES
    for verb in ("compile 0", "compile 2", "compile 3", "verify 0", "verify 1", "inspect 2", "run 0", "map 0"):
        assert summary.codes[verb], f"no case reached {verb}"


def test_cases_follow_from_seed_and_number() -> None:
    model = fuzz.base_models()["mlp"]
    drawn = [[mutate_model(model, np.random.default_rng([seed, n])) for n in range(20)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unmutated models, programs and inputs."""
    folder = tmp_path_factory.mktemp("bases")
    fuzz.make_bases(folder)
    return folder


def test_unmutated_programs_pass(bases: Path) -> None:
    for name in fuzz.SHAPES:
        outcome = fuzz.call(["verify", str(bases / f"{name}.xbar")])
        assert outcome.code == 0, outcome.text
        assert fuzz.computes_the_same(bases / f"{name}.xbar", bases / f"{name}.xbar")


def test_what_is_looked_for_is_seen(bases: Path, tmp_path: Path) -> None:
    """An altered program computes something else; a verb that leaves a file behind is told on."""
    members = members_of((bases / "mlp.xbar").read_bytes())
    tensors = dict(load(members["tiles.safetensors"]))
    name = next(name for name in tensors if name.endswith("/bias"))
    tensors[name] = tensors[name] + 1
    altered = tmp_path / "altered.xbar"
    altered.write_bytes(seal(list((members | {"tiles.safetensors": save(tensors)}).items())))
    assert not fuzz.computes_the_same(altered, bases / "mlp.xbar")
    assert fuzz.call(["verify", str(altered)]).code == 1
    arguments = ["compile", str(bases / "mlp.onnx"), "-o", str(tmp_path / "left.xbar")]
    found = list(fuzz.step(arguments, None, tmp_path, lambda _: None))
    assert [str(item) for item in found[:-1]] == ["compile (exit code 0): wrote or changed ['left.xbar']"]


def test_the_command_reports(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    assert fuzz.main(["--count", "2", "--seed", "5", "--workers", "1"], stream) == 0
    assert stream.getvalue().startswith("2 cases, 0 failures")
    assert capsys.readouterr().out == ""


def test_program_mutations_cover_every_member() -> None:
    members = [("program.json", b'{"a": [1, 2]}'), ("report.json", b'{"b": 0.5}')]
    tensor = b'{"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    members.append(("tiles.safetensors", len(tensor).to_bytes(8, "little") + tensor + b"\x00" * 4))
    data = seal(members)
    seen = {mutate_program(data, np.random.default_rng(n))[1].split(":")[0] for n in range(300)}
    assert {"program.json", "report.json", "tiles.safetensors", "bytes", "zip drop", "zip swap"} <= seen
