"""``xbarc spec``: specs are shown with units and sources, written to files, checked and compared."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import run_xbarc

from hwspec.effects import EFFECTS, OF_A_CHIP
from hwspec.scope import EXCLUDED
from hwspec.spec import HardwareSpec


def spec(*arguments: object, code: int = 0) -> str:
    """What ``xbarc spec`` prints: its result, or the line of its error."""
    ended = run_xbarc("spec", *arguments)
    assert ended.code == code, ended.stderr
    if not code:
        assert not ended.stderr
        return ended.stdout
    assert not ended.stdout
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    return ended.stderr


def told(*arguments: object) -> dict[str, Any]:
    """The JSON that it prints."""
    value = json.loads(spec(*arguments, "--json"))
    assert isinstance(value, dict)
    return value


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, where a preset was saved as mine.yaml."""
    monkeypatch.chdir(tmp_path)
    HardwareSpec.preset("rram-128").save("mine.yaml")
    yield tmp_path
    assert not list(tmp_path.glob(".*")), "a temporary file was left"


def edit(old: str, new: str) -> None:
    text = Path("mine.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    Path("mine.yaml").write_text(text.replace(old, new), encoding="utf-8")


def rows(printed: str) -> dict[str, str]:
    """First column of a printed table to the rest of its line."""
    pairs = [line.split(maxsplit=1) for line in printed.splitlines()[1:]]
    return {pair[0]: pair[1].strip() for pair in pairs}


def test_list() -> None:
    assert spec("list").split() == told("list")["presets"] == HardwareSpec.presets()


def test_schema_is_json_in_any_case() -> None:
    assert json.loads(spec("schema")) == told("schema") == HardwareSpec.model_json_schema()


# -- show -------------------------------------------------------------------------------------------------------------


def test_show_prints_yaml_with_units_that_reads_back() -> None:
    printed = spec("show", "rram-128-wired")
    assert "g_max: 100 uS" in printed
    assert "not modelled: saturation of access transistors" in printed
    assert HardwareSpec.from_fields(yaml.safe_load(printed)) == HardwareSpec.preset("rram-128-wired")


def test_show_json_is_in_si_units() -> None:
    assert told("show", "rram-128")["device"]["g_max"] == 1e-4


def test_show_sources_tells_what_differs_from_the_defaults() -> None:
    found = rows(spec("show", "wan2022", "--sources"))
    preset = HardwareSpec.preset("wan2022")
    assert set(found) == {path for path, _ in preset.fields() if path != "name" and not preset.is_default(path)}
    assert found["device.g_max"].split(maxsplit=2) == ["40", "uS", "Wan et al., Nature 608 (2022)"]
    assert found["device.spread.model"].startswith("wan2022 ")
    assert "aihwkit" in found["device.spread.model"], "the source of the section"


def test_show_sources_of_all_fields() -> None:
    found = rows(spec("show", "rram-128", "--sources", "--all"))
    assert list(found) == [path for path, _ in HardwareSpec.preset("rram-128").fields() if path != "name"]
    assert found["array.r_word"].split() == ["0", "Ω", "default"]
    assert found["periphery.input_bits"].split() == ["null", "default"]
    assert found["periphery.trim.offset"].split() == ["false", "default"]


def test_show_sources_says_where_there_is_none() -> None:
    Path("mine.yaml").write_text("base: rram-128\nname: mine\narray: {r_word: 2.5 ohm}\n", encoding="utf-8")
    assert rows(spec("show", "mine.yaml", "--sources"))["array.r_word"].split() == ["2.5", "Ω", "no", "source", "given"]


def test_show_sources_of_listed_levels() -> None:
    edit("levels: 16", "levels: [1 uS, 30 uS, 100 uS]")
    assert rows(spec("show", "mine.yaml", "--sources"))["device.levels"].startswith("[1 uS, 30 uS, 100 uS] ")


def test_show_sources_as_json() -> None:
    found = told("show", "rram-128", "--sources")["fields"]
    assert {"field": "device.g_max", "value": 1e-4, "source": "our choice"} in found
    assert len(found) < len(told("show", "rram-128", "--sources", "--all")["fields"])


@pytest.mark.parametrize("option", ["-o", "--output"])
def test_show_writes_a_file_to_edit(option: str) -> None:
    assert spec("show", "cao2022", option, "new.yaml") == "written to new.yaml\n"
    assert HardwareSpec.load("new.yaml") == HardwareSpec.preset("cao2022")
    assert Path("new.yaml").read_text(encoding="utf-8") == HardwareSpec.preset("cao2022").to_yaml()
    edited = told("show", "ideal", option, "new.yaml")
    ideal = HardwareSpec.preset("ideal")
    assert edited == {"spec": "new.yaml", "name": "ideal", "sha256": ideal.sha256}
    assert HardwareSpec.load("new.yaml") == ideal


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("mine.yaml", "must be another file than the input"),
        (".", "must be a file, and is a folder"),
        ("nowhere/new.yaml", "must lie in an existing folder; make it first"),
    ],
)
def test_an_output_that_cannot_be_is_refused(output: str, complaint: str) -> None:
    before = Path("mine.yaml").read_bytes()
    assert complaint in spec("show", "mine.yaml", "-o", output, code=2)
    assert Path("mine.yaml").read_bytes() == before


def test_a_failed_write_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    before = Path("mine.yaml").read_bytes()
    assert "mine.yaml cannot be written (No space left" in spec("show", "ideal", "-o", "mine.yaml", code=2)
    assert Path("mine.yaml").read_bytes() == before


def test_options_that_contradict_each_other_are_refused() -> None:
    assert "--all is read with --sources only" in spec("show", "ideal", "--all", code=2)
    assert "--output cannot be given with --sources" in spec("show", "ideal", "--sources", "-o", "x.yaml", code=2)
    assert not Path("x.yaml").exists()


def test_an_unknown_preset_gets_a_hint() -> None:
    assert "did you mean 'rram-128'" in spec("show", "rram128", code=2)


# -- check, effects ---------------------------------------------------------------------------------------------------


def test_check_tells_what_is_modelled_and_what_is_not() -> None:
    printed = spec("check", "rram-128-wired")
    preset = HardwareSpec.preset("rram-128-wired")
    assert f"rram-128-wired is valid (sha256 {preset.sha256})" in printed
    found = rows(printed)
    assert found["effects"].split(", ") == ["spread", "read_noise", "wires", "dac", "readout", "adc", "trim"]
    assert all(name in found["not"] for name in EXCLUDED)
    assert told("check", "rram-128-wired") == {
        "name": "rram-128-wired",
        "sha256": preset.sha256,
        "effects": found["effects"].split(", "),
        "not_modelled": list(EXCLUDED),
    }


def test_check_of_ideal_hardware() -> None:
    assert rows(spec("check", "ideal"))["effects"] == "none: ideal hardware"
    assert told("check", "ideal")["effects"] == []


def test_check_refuses_a_wrong_file() -> None:
    edit("adc_bits: 8", "adc_bits: 0")
    assert "mine.yaml is not valid: periphery.adc_bits must be" in spec("check", "mine.yaml", code=2)


def test_effects_lists_what_can_be_switched_off() -> None:
    found = told("effects")["effects"]
    assert list(found) == list(EFFECTS)
    assert {name for name, entry in found.items() if entry["of_a_chip"]} == OF_A_CHIP
    printed = rows(spec("effects"))
    assert list(printed) == list(EFFECTS)
    assert printed["spread"].split() == ["device.spread", "yes"]
    assert printed["adc"].split() == ["periphery.adc_bits", "no"]


# -- diff -------------------------------------------------------------------------------------------------------------


def test_diff_prints_values_with_units() -> None:
    edit("g_max: 100 uS", "g_max: 0.05 mS")
    edit("r_word: 0 Ω", "r_word: 1500 milliohm")
    edit("input_bits: null", "input_bits: 12")
    found = {name: rest.split() for name, rest in rows(spec("diff", "rram-128", "mine.yaml")).items()}
    assert found == {
        "device.g_max": ["100", "uS", "50", "uS"],
        "array.r_word": ["0", "Ω", "1.5", "Ω"],
        "periphery.input_bits": ["null", "12"],
    }
    differences = told("diff", "rram-128", "mine.yaml")["differences"]
    assert differences == {"device.g_max": [1e-4, 5e-5], "array.r_word": [0, 1.5], "periphery.input_bits": [None, 12]}


def test_diff_of_a_spec_with_itself() -> None:
    assert spec("diff", "ideal", "ideal") == "no differences\n"
    assert told("diff", "ideal", "ideal") == {"differences": {}}
