"""Specs: presets and their sources, files and back, and a clear refusal of everything that makes no sense."""

import itertools
import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from hwspec.array import Array
from hwspec.device import Device
from hwspec.errors import SpecError
from hwspec.periphery import Periphery
from hwspec.spec import HardwareSpec

PRESETS = HardwareSpec.presets()
SPEC = HardwareSpec.preset("rram-128")


@pytest.fixture(params=PRESETS)
def preset(request: pytest.FixtureRequest) -> HardwareSpec:
    return HardwareSpec.preset(str(request.param))


def changed(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a preset as nested mappings, some replaced by dotted name."""
    nested: dict[str, Any] = SPEC.model_dump()
    for path, value in fields.items():
        *parents, leaf = path.split(".")
        section = nested
        for parent in parents:
            section = section[parent]
        section[leaf] = value
    return nested


# -- presets and files ------------------------------------------------------------------------------------------------


def test_there_are_presets() -> None:
    assert {"ideal", "rram-128"} <= set(PRESETS)


def test_a_preset_is_named_as_its_file(preset: HardwareSpec) -> None:
    assert preset == HardwareSpec.preset(preset.name)


def test_a_preset_survives_saving(preset: HardwareSpec, tmp_path: Path) -> None:
    preset.save(tmp_path / "spec.yaml")
    loaded = HardwareSpec.load(tmp_path / "spec.yaml")
    assert loaded == preset
    assert loaded.sha256 == preset.sha256
    assert loaded.to_yaml() == preset.to_yaml()


def test_every_field_of_a_preset_has_a_source(preset: HardwareSpec) -> None:
    fields = [path for path, _ in preset.fields() if path != "name"]
    assert sorted(preset.sources) == sorted(fields)
    assert all(source.strip() for source in preset.sources.values())


def test_the_ideal_preset_quantises_nothing() -> None:
    ideal = HardwareSpec.preset("ideal")
    assert (ideal.device.levels, ideal.periphery.dac_bits, ideal.periphery.adc_bits) == (None, None, None)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.floats(1e-15, 1e-3), st.floats(1e-15, 1e-3)).filter(lambda pair: pair[0] < pair[1]),
    st.none() | st.integers(2, 65536),
    st.tuples(st.integers(1, 65536), st.integers(1, 32768)),
    st.sampled_from(["two_arrays", "neighbouring_columns"]),
    st.floats(1e-6, 1e3),
    st.none() | st.integers(2, 16),
    st.none() | st.integers(2, 24),
    st.sampled_from(["bipolar", "two_phase"]),
    st.floats(0, 0.5, exclude_max=True),
)
def test_any_spec_survives_its_text(
    conductances: tuple[float, float],
    levels: int | None,
    size: tuple[int, int],
    pairing: str,
    v_read: float,
    dac_bits: int | None,
    adc_bits: int | None,
    signed: str,
    share: float,
) -> None:
    spec = SPEC.with_fields(
        {
            "device.g_min": conductances[0],
            "device.g_max": conductances[1],
            "device.levels": levels,
            "array.rows": size[0],
            "array.cols": 2 * size[1],
            "array.pairing": pairing,
            "periphery.v_read": v_read,
            "periphery.dac_bits": dac_bits,
            "periphery.adc_bits": adc_bits,
            "periphery.signed": signed,
            "periphery.adc_clip_share": share,
        }
    )
    assert HardwareSpec.from_fields(yaml.safe_load(spec.to_yaml())) == spec
    assert HardwareSpec.model_validate_json(spec.model_dump_json()) == spec


def test_json_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(SPEC.model_dump_json(), encoding="utf-8")
    assert HardwareSpec.load(tmp_path / "spec.json") == SPEC


def test_resolve_takes_a_spec_a_name_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "mine"):
        SPEC.save(name)
        assert HardwareSpec.resolve(name) == HardwareSpec.resolve(Path(name)) == SPEC
    assert HardwareSpec.resolve(SPEC) is SPEC
    assert HardwareSpec.resolve("rram-128") == SPEC


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("rram-182", "did you mean 'rram-128'"),
        ("zzz", r"does not exist \(there are .*rram-128"),
        ("missing.yaml", r"missing\.yaml cannot be read \(No such file"),
        ("missing/folder", "cannot be read"),
        ("x" * 5000, "does not exist"),
        ("nul\0.yaml", "cannot be read"),
        ("", "does not exist"),
    ],
)
def test_what_is_no_spec_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint) as caught:
        HardwareSpec.resolve(name)
    assert len(str(caught.value)) < 400 + len(name)


# -- hostile files ----------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
)
FILES: dict[str, tuple[bytes, str]] = {
    "aliases": (LAUGHS.encode(), "not valid YAML.*aliases"),
    "one alias": (b"a: &x 1\nb: *x\n", "not valid YAML.*aliases"),
    "recursion": (b"&a [*a]\n", "not valid YAML"),
    "deep": (b"[" * 100_000, "not valid YAML"),
    "deep mapping": (b"{a: " * 50_000, "not valid YAML"),
    "long": (b"#" * (1 << 18) + b"\n", "must be at most"),
    "binary": (bytes(range(256)), "not valid YAML"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not valid YAML"),
    "utf-16": ("name: x".encode("utf-16"), "not valid YAML"),
    "empty": (b"", "must be a valid dictionary"),
    "list": (b"- 1\n- 2\n", "must be a valid dictionary"),
    "text": (b"rram-128\n", "must be a valid dictionary"),
    "number": (b"12\n", "must be a valid dictionary"),
    "nested lists": (b"name: " + b"[" * 300 + b"]" * 300, "name"),
    "twice": (b"name: a\nname: b\n", "name is given twice"),
    "twice inside": (b"device: {levels: 2, levels: 4}\n", "levels is given twice"),
    "python tag": (b"!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    "bad date": (b"name: 2001-99-99\n", "not valid YAML"),
    "bad bool": (b"name: !!bool maybe\n", "not valid YAML"),
    "bad timestamp": (b"name: !!timestamp x\n", "not valid YAML"),
    "bad int": (b"name: !!int x\n", "not valid YAML"),
    "thousands of digits": (b"array: {rows: " + b"9" * 5000 + b"}\n", "not valid YAML"),
    "unclosed": (b"device: {g_min: 1\n", "not valid YAML"),
    "list as key": (b"? [1, 2]\n: 3\n", "not valid YAML"),
    "number as key": (b"1: 2\n", "1 Keys should be strings"),
    "two documents": (b"a: 1\n---\nb: 2\n", "not valid YAML"),
    "many fields": (b"".join(b"f%d: 1\n" % n for n in range(5000)), "and 4996 more"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_quickly(name: str, tmp_path: Path) -> None:
    content, complaint = FILES[name]
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(SpecError, match=complaint) as caught:
        HardwareSpec.load(path)
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 2000
    assert str(path) in str(caught.value)


def test_nested_values_are_not_printed_whole() -> None:
    """Shared lists in memory are small; printed they would fill it."""
    bomb: list[Any] = ["x"]
    for _ in range(60):
        bomb = [bomb] * 9
    for fields in (bomb, {"name": bomb}, changed({"device.levels": bomb}), changed({"device.g_min": bomb})):
        with pytest.raises(SpecError) as caught:
            HardwareSpec.from_fields(fields)
        assert len(str(caught.value)) < 1000


def test_a_folder_and_an_endless_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot be read \(Is a directory\)"):
        HardwareSpec.load(tmp_path)
    with pytest.raises(SpecError, match="must be at most"):
        HardwareSpec.load("/dev/zero")


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """``--spec <(make-spec)`` gives one."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: SPEC.save(tmp_path / "pipe"))
    writer.start()
    assert HardwareSpec.load(tmp_path / "pipe") == SPEC
    writer.join()


# -- contradictions ---------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
VALUES: dict[str, tuple[Any, ...]] = {
    "device.g_min": (0, -1e-6, "0 S", "-5 uS", NAN, INF, -INF, 1e300, 10**400, 5e-324, True, None, "many", [1e-6]),
    "device.g_max": (0, -1e-6, "0 S", "-5 uS", NAN, INF, -INF, 1e300, 10**400, 5e-324, True, None, "many", "1 V"),
    "device.levels": (0, 1, -4, 65537, 10**400, True, False, 2.5, NAN, "few"),
    "array.rows": (0, -128, 65537, 10**400, True, None, 12.5, NAN, INF, "many", [128]),
    "array.cols": (0, -128, 65537, 10**400, True, None, 12.5, NAN, INF, "many", {}),
    "array.pairing": ("neighbours", None, 2),
    "periphery.v_read": (0, -0.2, NAN, INF, 1e300, 5e-324, "1 S", True, None),
    "periphery.dac_bits": (0, 1, -8, 17, True, False, 7.5, NAN, 10**400),
    "periphery.adc_bits": (0, 1, -8, 25, True, False, 7.5, NAN, 10**400),
    "periphery.signed": ("unipolar", None, True),
    "periphery.adc_clip_share": (-0.01, 0.5, 1, NAN, INF, True, False, None, "some"),
    "device": (None, [1, 2], "strong", 3),
    "sources": ("all ours", [1], 5),
}
REFUSED = [(path, value, f"{path} must be") for path, values in VALUES.items() for value in values] + [
    ("device.g_min", 1e-4, "device g_min must be below g_max"),
    ("device.g_min", 2e-4, "device g_min must be below g_max"),
    ("sources", {"device.gmin": "x"}, "names 'device.gmin', which is no field.*; did you mean 'device.g_min'"),
    ("sources", {"device.g_min": 5}, r"sources\.device\.g_min must be a valid string"),
    *(("name", value, "name") for value in ("", "a b", "a/b", "x" * 101, 5, None, "a\n")),
]


@pytest.mark.parametrize(("path", "value", "complaint"), REFUSED)
def test_what_makes_no_sense_is_refused(path: str, value: Any, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint) as caught:
        HardwareSpec.from_fields(changed({path: value}))
    assert len(str(caught.value)) < 500


def test_an_integer_that_python_does_not_print_is_refused() -> None:
    with pytest.raises(SpecError, match=r"array\.rows must be .*, not a huge number"):
        HardwareSpec.from_fields(changed({"array.rows": 10**5000}))


def test_odd_columns_hold_no_pairs() -> None:
    with pytest.raises(SpecError, match="cols must be even when pairs lie on neighbouring columns, not 7"):
        HardwareSpec.from_fields(changed({"array.cols": 7, "array.pairing": "neighbouring_columns"}))
    assert HardwareSpec.from_fields(changed({"array.cols": 7})).array.weight_cols == 7


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("nmae", "nmae is no field of the spec; did you mean 'name'"),
        ("devices", "did you mean 'device'"),
        ("device.g_mim", "device.g_mim is no field of the spec; did you mean 'g_min'"),
        ("device.level", "did you mean 'levels'"),
        ("array.row", "did you mean 'rows'"),
        ("periphery.adc_bit", "did you mean 'adc_bits'"),
        ("periphery.colour", "periphery.colour is no field of the spec$"),
    ],
)
def test_an_unknown_field_gets_a_hint(path: str, hint: str) -> None:
    with pytest.raises(SpecError, match=hint):
        HardwareSpec.from_fields(changed({path: 1}))


@pytest.mark.parametrize("path", ["name", "device", "array", "periphery", "device.levels", "periphery.adc_bits"])
def test_a_missing_field_is_named(path: str) -> None:
    fields = SPEC.model_dump(exclude={"sources"})
    *parents, leaf = path.split(".")
    section = fields[parents[0]] if parents else fields
    del section[leaf]
    with pytest.raises(SpecError, match=rf"{path} must be given"):
        HardwareSpec.from_fields(fields)


def test_several_errors_are_told_at_once() -> None:
    with pytest.raises(SpecError, match=r"array\.rows must.*periphery\.adc_bits must"):
        HardwareSpec.from_fields(changed({"array.rows": 0, "periphery.adc_bits": 0}))


# -- copies -----------------------------------------------------------------------------------------------------------


def test_copies_are_validated_and_nested() -> None:
    copy = SPEC.model_copy(update={"device": {"levels": 4}, "name": "other"})
    assert (copy.device.levels, copy.device.g_min, copy.name) == (4, SPEC.device.g_min, "other")
    assert copy.sources == SPEC.sources
    assert SPEC.device.levels == 16
    assert SPEC.model_copy() == SPEC
    assert SPEC.model_copy(deep=True) == SPEC
    whole = Device(g_min=1e-6, g_max=2e-6, levels=None)
    assert SPEC.model_copy(update={"device": whole}).device == whole
    assert SPEC.model_copy(update={"sources": {}}).sources == {}


@pytest.mark.parametrize(
    "update",
    [{"device": {"g_min": 1.0}}, {"device": {"levls": 4}}, {"devise": {}}, {"array": {"rows": 0}}, {"device": 3}],
)
def test_a_bad_copy_is_refused(update: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        SPEC.model_copy(update=update)


def test_fields_by_dotted_name() -> None:
    copy = SPEC.with_fields({"periphery.adc_bits": None, "array.rows": 64, "device.g_min": "2 uS"})
    assert (copy.periphery.adc_bits, copy.array.rows, copy.device.g_min) == (None, 64, 2e-6)
    assert SPEC.with_fields({}) == SPEC
    assert SPEC.with_fields(dict(SPEC.fields())) == SPEC


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("periphery.adc_bit", "did you mean 'periphery.adc_bits'"),
        ("device", "is no field of the spec"),
        ("sources.device.g_min", "is no field of the spec"),
        ("", "is no field of the spec"),
        ("device.levels.count", "is no field of the spec"),
    ],
)
def test_an_unknown_dotted_name_is_refused(path: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        SPEC.with_fields({path: 1})


def test_a_spec_cannot_be_changed() -> None:
    for part, name in ((SPEC, "name"), (SPEC.device, "levels"), (SPEC.array, "rows"), (SPEC.periphery, "adc_bits")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, 4)


# -- hash and schema --------------------------------------------------------------------------------------------------


def test_the_hash_is_of_the_hardware() -> None:
    other = SPEC.model_copy(update={"sources": {}})
    assert other.sha256 == SPEC.sha256
    assert other != SPEC
    hashes = {SPEC.sha256}
    for path, value in {
        "name": "x",
        "device.g_min": 2e-6,
        "device.g_max": 3e-4,
        "device.levels": None,
        "array.rows": 64,
        "array.cols": 64,
        "array.pairing": "neighbouring_columns",
        "periphery.v_read": 0.3,
        "periphery.dac_bits": 4,
        "periphery.signed": "two_phase",
        "periphery.adc_bits": 4,
        "periphery.adc_clip_share": 0.0,
    }.items():
        hashes.add(SPEC.with_fields({path: value}).sha256)
    assert len(hashes) == 13


def test_reading_the_hash_changes_nothing() -> None:
    fresh, read = HardwareSpec.preset("rram-128"), HardwareSpec.preset("rram-128")
    assert read.sha256
    assert fresh == read
    assert fresh.model_dump() == read.model_dump()


def test_the_schema_describes_every_field_and_its_unit() -> None:
    schema = HardwareSpec.model_json_schema()
    json.dumps(schema)
    units = {}
    for model in (Device, Array, Periphery):
        properties = schema["$defs"][model.__name__]["properties"]
        assert set(properties) == set(model.model_fields)
        for name, entry in properties.items():
            assert entry["description"]
            if "unit" in entry:
                units[name] = entry["unit"]
    assert units == {"g_min": "siemens", "g_max": "siemens", "v_read": "volt"}


@pytest.mark.parametrize("model", [HardwareSpec, Device, Array, Periphery])
def test_models_take_no_other_fields(model: type[BaseModel]) -> None:
    assert model.model_config.get("extra") == "forbid"
    assert model.model_config.get("frozen") is True


def test_pairs_and_codes() -> None:
    apart, beside = Array(rows=4, cols=8, pairing="two_arrays"), Array(rows=4, cols=8, pairing="neighbouring_columns")
    assert (apart.weight_cols, apart.arrays_per_site) == (8, 2)
    assert (beside.weight_cols, beside.arrays_per_site) == (4, 1)
    assert SPEC.device.span == SPEC.device.g_max - SPEC.device.g_min
