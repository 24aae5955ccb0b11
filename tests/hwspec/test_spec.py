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
from hwspec.costs import (
    AdcCost,
    ArrayCost,
    Buffer,
    ChipCost,
    CoreCost,
    Costs,
    Dac,
    Digital,
    Link,
    Organisation,
    SampleHold,
    ShiftAdd,
    TileCost,
    Write,
)
from hwspec.device import MEASURED_RANGE, CurrentVoltageLaw, Device, Drift, Programming, ReadNoise, Spread, Telegraph
from hwspec.effects import active_effects
from hwspec.errors import SpecError
from hwspec.failures import Clusters, Failures, FailureState, Lines, MapErrors, Retention, Thresholds
from hwspec.periphery import Periphery, Trim
from hwspec.scope import EXCLUDED
from hwspec.spec import HardwareSpec
from hwspec.units import unit_of

PRESETS = HardwareSpec.presets()
SPEC = HardwareSpec.preset("rram-128")
SECTIONS = (
    *(Device, Spread, Programming, Drift, ReadNoise, Telegraph, CurrentVoltageLaw),
    *(Array, Periphery, Trim),
    *(Failures, FailureState, Clusters, Lines, Retention, Thresholds, MapErrors),
    *(Organisation, Costs, AdcCost, ArrayCost, Dac, SampleHold, ShiftAdd, Buffer, Link, Digital, Write),
    *(CoreCost, TileCost, ChipCost),
)
PHYSICS_MD = (
    *(
        "ideal",
        "rram-128",
        "rram-128-wired",
        "rram-128-faulty",
        "rram-128-faulty-lrs",
        "kim2020-2t2r",
        "kim2020-1t1r",
        "cao2022",
    ),
    *("poolformer2023", "wan2022", "cmo-hfox", "pcm", "isaac"),
)
"""Presets that section 8 of ``physics.md`` names."""


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
    assert set(PHYSICS_MD) <= set(PRESETS)


def test_a_preset_is_named_as_its_file(preset: HardwareSpec) -> None:
    assert preset == HardwareSpec.preset(preset.name)


def test_a_preset_survives_saving(preset: HardwareSpec, tmp_path: Path) -> None:
    preset.save(tmp_path / "spec.yaml")
    loaded = HardwareSpec.load(tmp_path / "spec.yaml")
    assert loaded == preset
    assert loaded.sha256 == preset.sha256
    assert loaded.to_yaml() == preset.to_yaml()


def test_every_value_of_a_preset_has_a_source(preset: HardwareSpec) -> None:
    """Its own source or that of its section; the default where nothing was set."""
    for path, _ in preset.fields():
        assert path == "name" or preset.source_of(path) != "no source given", path
    assert all(source.strip() for source in preset.sources.values())


def test_a_source_is_looked_up_from_the_field_outwards() -> None:
    spec = SPEC.model_copy(
        update={"sources": {"device": "book", "device.spread": "table", "device.spread.sigma": "cell"}}
    )
    paths = ("device.g_min", "device.spread.model", "device.spread.sigma", "array.r_word", "array.rows")
    assert [spec.source_of(path) for path in paths] == ["book", "table", "cell", "default", "no source given"]


def test_a_value_that_is_no_default_needs_a_source() -> None:
    assert SPEC.with_fields({"array.r_word": 1.0}).source_of("array.r_word") == "no source given"
    assert [SPEC.is_default(path) for path in ("array.r_word", "array.rows", "device.spread.sigma")] == [
        True,
        False,
        False,
    ]


def test_the_ideal_preset_has_no_effects() -> None:
    assert active_effects(HardwareSpec.preset("ideal")) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rram-128", {"device.levels": 16, "device.spread.sigma": 1e-6, "periphery.offset_sigma": 0.5}),
        ("rram-128-wired", {"device.spread.sigma": 1e-6, "array.r_word": 1.0, "periphery.trim.gain": "column"}),
        ("kim2020-2t2r", {"device.levels": 8, "device.spread.model": "none", "array.pairing": "two_arrays"}),
        ("kim2020-1t1r", {"device.levels": 8, "device.spread.model": "none", "array.pairing": "reference"}),
        ("cao2022", {"device.g_min": 33.3e-6, "device.g_max": 200e-6, "device.spread.share": 0.15, "array.r_bit": 0.5}),
        ("poolformer2023", {"device.levels": 4, "array.rows": 64, "device.programming.failure_rate": 0.01}),
        ("wan2022", {"device.g_max": 40e-6, "periphery.dac_bits": 4, "periphery.adc_bits": 6, "array.rows": 256}),
        ("cmo-hfox", {"device.g_min": 9e-6, "device.g_max": 88.2e-6, "device.drift.model": "cmo_hfox"}),
        ("pcm", {"device.g_max": 25e-6, "device.read_noise.model": "pcm", "periphery.columns_per_adc": 1}),
        ("isaac", {"array.slices": 8, "device.levels": 4, "periphery.dac_bits": 1, "periphery.columns_per_adc": 128}),
    ],
)
def test_presets_hold_what_physics_md_says(name: str, values: dict[str, Any]) -> None:
    fields = dict(HardwareSpec.preset(name).fields())
    assert {path: fields[path] for path in values} == values


def test_presets_derived_quantities() -> None:
    """Rows of pairs halve; slices of 2-bit cells hold 16 bits; 1-bit drivers take 16 cycles, less the sign's."""
    assert HardwareSpec.preset("wan2022").array.weight_rows == 128
    isaac = HardwareSpec.preset("isaac")
    assert isaac.device.level_count == 4
    assert 4**isaac.array.slices == 2**16
    assert (isaac.periphery.digits(False), isaac.periphery.digits(True)) == (16, 15)
    pool = HardwareSpec.preset("poolformer2023").device
    assert (1 / pool.g_min, 1 / pool.g_max) == pytest.approx((30e3, 5e3))


# -- text and back ----------------------------------------------------------------------------------------------------

SHARE = st.floats(0, 1)


def drawn(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these fields, the others at their defaults."""
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def conductance_ranges(draw: st.DrawFn, low: float, high: float) -> dict[str, Any]:
    values = draw(st.lists(st.floats(low, high), min_size=2, max_size=6, unique=True).map(sorted))
    uniform = st.none() | st.integers(2, 65536)
    return {"g_min": values[0], "g_max": values[-1], "levels": draw(uniform | st.just(values))}


@st.composite
def devices(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(["none", *MEASURED_RANGE]))
    low, high = MEASURED_RANGE.get(name, (0.0, 1e-3))
    own = st.sampled_from(["constant", "relative", "lognormal"])
    spread = name if name != "none" else draw(own | st.just("none"))
    parameter = {"constant": "sigma", "relative": "share", "lognormal": "log_sigma"}.get(spread)
    noise = name if name in ("pcm", "cmo_hfox") else draw(st.sampled_from(["none", "constant", "proportional"]))
    noise_parameter = {"constant": "sigma", "proportional": "share"}.get(noise)
    drift = name if name in ("pcm", "cmo_hfox", "wan2022") else "none"
    verify = drawn(pulses=st.integers(2, 10_000), relative_tolerance=SHARE) if draw(st.booleans()) else drawn()
    programming = {"failure_rate": draw(SHARE), "failed_conductance": draw(st.none() | SHARE)} | draw(verify)
    if programming.get("pulses", 1) > 1:
        programming["tolerance"] = draw(st.floats(1e-9, 1e-3))
    else:
        programming.pop("relative_tolerance", None)
    return {
        **draw(conductance_ranges(max(low, 1e-15), high)),
        **draw(drawn(r_access=st.floats(0, 1e12), temperature=st.floats(-50, 150))),
        "temperature_coefficient": draw(st.floats(-1e-3, 1e-3)),
        "spread": {"model": spread} | ({parameter: draw(SHARE)} if parameter else {}),
        "programming": programming,
        "drift": {"model": drift} | ({"activation_energy": draw(SHARE)} if drift != "none" else {}),
        "read_noise": {
            "model": noise,
            "correlation": draw(st.sampled_from(["per_read", "per_vector"])),
            **({noise_parameter: draw(SHARE)} if noise_parameter else {}),
        },
        "telegraph": draw(drawn(amplitude=SHARE, occupancy=SHARE, correlation_time=st.floats(0, 1e12))),
        "iv": draw(drawn(asymmetry=SHARE))
        | draw(st.just({}) | st.fixed_dictionaries({"model": st.sampled_from(["sinh", "cubic"]), "alpha": SHARE})),
    }


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, Any]:
    ohms = st.floats(0, 1e12)
    pairing = draw(st.sampled_from(["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"]))
    return {
        **draw(drawn(unused=SHARE, r_word=ohms, r_bit=ohms, r_driver=ohms, r_sense=ohms)),
        **draw(drawn(wire_model=st.just("closed_form")) | drawn(unselected=st.sampled_from(["floating", "half"]))),
        "rows": 2 * draw(st.integers(1, 32768)),
        "cols": 2 * draw(st.integers(1, 32768)),
        "pairing": pairing,
    }


@st.composite
def peripheries(draw: st.DrawFn) -> dict[str, Any]:
    dac = draw(st.none() | st.integers(2, 16))
    adc = draw(st.none() | st.integers(2, 24))
    lsbs = st.floats(0, 1e3)
    errors = drawn(adc_inl_sigma=lsbs, adc_dnl_sigma=lsbs) if adc is not None and adc <= 12 else drawn()
    offsets = drawn(offset_sigma=lsbs, readout_noise=lsbs, adc_offset_sigma=lsbs) if adc is not None else drawn()
    return {
        **draw(drawn(gain_sigma=SHARE, sense_offset_sigma=SHARE, saturation=SHARE, cubic=st.floats(-0.3, 1))),
        **draw(
            drawn(compliance=st.none() | st.floats(1e-9, 1), dac_nonlinearity=st.floats(-0.5, 1), adc_gain_sigma=SHARE)
        ),
        **draw(
            drawn(columns_per_adc=st.integers(1, 65536), input_coding=st.sampled_from(["pulse_width", "amplitude"]))
        ),
        **draw(errors),
        **draw(offsets),
        "v_read": draw(st.floats(1e-6, 1e3)),
        "dac_bits": dac,
        "input_bits": None if dac is None else draw(st.none() | st.integers(dac, 16)),
        "signed": draw(st.sampled_from(["bipolar", "two_phase"])),
        "adc_bits": adc,
        "adc_clip_share": draw(st.floats(0, 0.5, exclude_max=True)),
        "trim": draw(
            drawn(
                gain=st.sampled_from(["none", "tile", "column"]),
                offset=st.booleans(),
                vectors=st.integers(2, 2048),
                when=st.sampled_from(["programming", "read"]),
            )
        ),
    }


SPECS = st.builds(
    lambda device, array, periphery: HardwareSpec.from_fields(
        {"name": "drawn", "device": device, "array": array, "periphery": periphery}
    ),
    devices(),
    arrays(),
    peripheries(),
)


@settings(max_examples=100, deadline=None)
@given(SPECS)
def test_any_spec_survives_its_text(spec: HardwareSpec) -> None:
    text = spec.to_yaml()
    found = HardwareSpec.from_fields(yaml.safe_load(text))
    assert found == spec
    assert found.sha256 == spec.sha256
    assert found.to_yaml() == text
    assert HardwareSpec.model_validate_json(spec.model_dump_json()) == spec
    assert SPEC.with_fields(dict(spec.fields())) == spec.model_copy(update={"sources": SPEC.sources})


def test_the_text_says_what_is_not_modelled() -> None:
    assert SPEC.to_yaml().endswith(f"# not modelled: {'; '.join(EXCLUDED)}\n")


def test_fields_with_units() -> None:
    spec = SPEC.with_fields({"periphery.compliance": 1e-3, "device.levels": [1e-6, 5e-6, 1e-4]})
    found = dict(spec.fields_with_units())
    assert list(found) == list(dict(spec.fields()))
    assert (found["device.g_max"], found["array.r_word"], found["periphery.compliance"]) == ("100 uS", "0 Ω", "1 mA")
    assert found["device.levels"] == ["1 uS", "5 uS", "100 uS"]
    assert (found["array.rows"], found["periphery.input_bits"]) == (128, None)


# -- a preset as the base of a file -----------------------------------------------------------------------------------


def load(folder: Path, text: str) -> HardwareSpec:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return HardwareSpec.load(folder / "mine.yaml")


def test_a_base_gives_what_a_file_does_not(tmp_path: Path) -> None:
    spec = load(tmp_path, "base: rram-128\nname: mine\ndevice: {levels: 4, spread: {sigma: 2 uS}}\n")
    wanted = SPEC.with_fields({"name": "mine", "device.levels": 4, "device.spread.sigma": 2e-6})
    assert dict(spec.fields()) == dict(wanted.fields())
    assert spec.sha256 == wanted.sha256


def test_a_base_alone_is_the_preset(tmp_path: Path) -> None:
    assert load(tmp_path, "base: rram-128\n") == SPEC


def test_a_base_gives_the_sources_of_what_it_gives(tmp_path: Path) -> None:
    spec = load(
        tmp_path,
        "base: rram-128\ndevice: {levels: 4, spread: {sigma: 2 uS}}\narray: {rows: 64}\nsources: {array.rows: ours}\n",
    )
    assert spec.source_of("device.g_min") == SPEC.source_of("device.g_min")
    assert spec.source_of("array.rows") == "ours"
    assert spec.source_of("device.levels") == "no source given"
    assert spec.source_of("device.spread.sigma") == "no source given", "the base's source of the section is not its"
    assert spec.source_of("device.spread.model") == SPEC.source_of("device.spread")


def test_a_section_source_of_a_file_covers_what_it_changes(tmp_path: Path) -> None:
    text = "base: rram-128\ndevice: {spread: {sigma: 2 uS}, read_noise: {share: 0.1}}\n"
    same = load(tmp_path, text + "sources: {device.spread: ours}\n")
    assert same.source_of("device.spread.sigma") == same.source_of("device.spread.model") == "ours"
    assert same.source_of("device.read_noise.share") == "no source given"
    outer = load(tmp_path, text + "sources: {device: ours}\n")
    assert outer.source_of("device.spread.sigma") == outer.source_of("device.read_noise.share") == "ours"
    assert outer.source_of("device.spread.model") == SPEC.source_of("device.spread.model")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "base: rram-182",
            r"mine\.yaml must have a preset as its base \(.*\), not 'rram-182'; did you mean 'rram-128'",
        ),
        ("base: other.yaml", r"mine\.yaml must have a preset as its base"),
        ("base: [rram-128]", r"mine\.yaml must have a preset as its base .*, not \['rram-128'\]"),
        ("base: null", "must have a preset as its base .*, not None"),
        ("base: rram-128\ndevice: {g_min: 1 S}", r"mine\.yaml is not valid: device\.g_min must be below g_max"),
        ("base: rram-128\ndevice: null", "device must be"),
        ("base: rram-128\ndevice: {spread: {sgima: 1 uS}}", "did you mean 'sigma'"),
        ("base: rram-128\nsources: [x]", "sources must be"),
        ("base: rram-128\nsources: {device.g_mim: x}", "did you mean 'device.g_min'"),
        (
            "base: rram-128\ndevice: {spread: {model: relative}}",
            r"device\.spread\.sigma is read by model constant only",
        ),
    ],
)
def test_a_bad_file_with_a_base_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=complaint):
        load(tmp_path, text)


def test_a_base_is_for_files_only() -> None:
    with pytest.raises(SpecError, match="base is no field of the spec"):
        HardwareSpec.from_fields({**SPEC.model_dump(), "base": "rram-128"})


# -- reading ----------------------------------------------------------------------------------------------------------


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
SHARES = (-0.1, 1.1, NAN, INF, True, None, "some")
SIEMENS = (-1e-6, NAN, INF, "1 V", True, "many")
OHMS = (-1, "-1 ohm", NAN, INF, -INF, 1e300, "1 V", "many", True, None, [1.0])
AMOUNTS = (-1, NAN, INF, "1 V", True, "many")
COUNTS = (0, -1, 1 << 21, True, 1.5, NAN, "many")
LSBS = tuple(
    f"periphery.{name}"
    for name in ("offset_sigma", "readout_noise", "adc_offset_sigma", "adc_inl_sigma", "adc_dnl_sigma")
)
VALUES: dict[str, tuple[Any, ...]] = {
    "device.g_min": (0, -1e-6, "0 S", "-5 uS", NAN, INF, -INF, 1e300, 10**400, 5e-324, True, None, "many", [1e-6]),
    "device.g_max": (0, -1e-6, "0 S", "-5 uS", NAN, INF, -INF, 1e300, 10**400, 5e-324, True, None, "many", "1 V"),
    "device.levels": (0, 1, -4, 65537, 10**400, True, False, 2.5, NAN, "few"),
    "array.rows": (0, -128, 65537, 10**400, True, None, 12.5, NAN, INF, "many", [128]),
    "array.cols": (0, -128, 65537, 10**400, True, None, 12.5, NAN, INF, "many", {}),
    "array.pairing": ("neighbours", None, 2),
    "periphery.v_read": (0, -0.2, NAN, INF, 1e300, 5e-324, "1 S", True, None),
    "periphery.dac_bits": (0, -8, 17, True, False, 7.5, NAN, 10**400),
    "periphery.adc_bits": (0, 1, -8, 25, True, False, 7.5, NAN, 10**400),
    "periphery.signed": ("unipolar", None, True),
    "periphery.adc_clip_share": (-0.01, 0.5, 1, NAN, INF, True, False, None, "some"),
    "periphery.input_bits": (0, 1, -8, 17, True, 7.5, NAN, "many"),
    **dict.fromkeys(("array.r_word", "array.r_bit", "array.r_driver", "array.r_sense", "device.r_access"), OHMS),
    "array.unused": (-1e-6, NAN, INF, "1 V", True, None),
    "array.slices": (0, -1, 17, True, None, 1.5, NAN),
    "array.unselected": ("open", None, 0),
    "array.cell": ("2R", None, 1),
    "array.router": ("perhaps", None, 2),
    **dict.fromkeys(("chip.arrays_per_core", "chip.cores_per_tile", "chip.tiles", "costs.write.parallel"), COUNTS),
    **dict.fromkeys(
        (
            *(f"costs.{name}" for name in ("node", "t_read", "adc.rate", "adc.energy", "adc.area")),
            *(f"costs.{name}" for name in ("array.energy", "array.cell_area", "write.energy", "write.time")),
            *(f"costs.{name}.{field}" for name in ("dac", "sample_hold", "shift_add") for field in ("energy", "area")),
            *(f"costs.{name}.{field}" for name in ("buffer", "link") for field in ("energy", "rate")),
            *(f"costs.{name}.{field}" for name in ("core", "tile", "chip") for field in ("power", "area")),
            *(f"costs.digital.{field}" for field in ("energy", "rate", "area")),
        ),
        AMOUNTS,
    ),
    "costs.adc.model": ("flash", None, 1),
    "costs.array.model": ("none", None, 1),
    "costs.overlap": ("perhaps", None, 2),
    "periphery.residue": (-0.1, 0.6, NAN, INF, True, None, "some"),
    **{
        f"failures.{state}.{name}": values
        for state in ("unformed", "overformed", "stuck_hrs", "stuck_lrs")
        for name, values in (
            ("rate", SHARES),
            ("conductance", SIEMENS),
            ("model", ("gauss", None, 1)),
            ("deviation", (-0.1, 11, NAN, INF, True, None, "some")),
            ("upper", SIEMENS),
            ("isolatable", ("perhaps", None, 2)),
        )
    },
    "failures.array_deviation": (-0.1, 6, NAN, INF, True, None, "some"),
    "failures.clusters.rate": (-1, 1e5, NAN, INF, True, None, "some"),
    "failures.clusters.radius": (0, -1, NAN, INF, True, None, "some"),
    "failures.clusters.state": ("dead", None, 1, "ok"),
    **dict.fromkeys(
        (f"failures.lines.{kind}_{how}" for kind in ("word", "bit") for how in ("failed", "shorted")), SHARES
    ),
    "failures.retention.state": ("dead", 1, "ok"),
    "failures.retention.lifetime": (0, -1, NAN, INF, "1 V", True, None),
    "failures.retention.shape": (0, -1, 21, NAN, INF, True, None, "some"),
    "failures.retention.activation_energy": (-1, 6, NAN, INF, "1 V", True, None),
    **dict.fromkeys(
        (f"failures.thresholds.{name}" for name in ("unformed", "stuck_hrs", "stuck_lrs", "overformed")), SIEMENS
    ),
    "failures.map_errors.missed": SHARES,
    "failures.map_errors.false": SHARES,
    "failures.isolation": ("row", 1, True),
    "failures.failed_pair": ("one", None, 1),
    "failures.bound_tolerance": (-0.1, 1e7, NAN, INF, True, "some"),
    "failures.allow_unbounded": ("perhaps", None, 2),
    "array.wire_model": ("fast", None, True),
    "device.spread.model": ("gauss", None, 1),
    "device.spread.sigma": (-1e-6, NAN, INF, "1 V", True, None),
    "device.spread.share": (-0.1, 11, NAN, INF, True, None, "some"),
    "device.spread.log_sigma": (-0.1, 6, NAN, INF, True, None, "some"),
    "device.spread.acceptance": (0, 0.01, 1, NAN, True, None, "some"),
    "device.spread.limits": ("one", None),
    "device.programming.failure_rate": (-0.1, 1.1, NAN, INF, True, None, "some"),
    "device.programming.failed_conductance": (-1e-6, NAN, INF, "1 V", True),
    "device.programming.pulses": (0, -1, 10_001, True, None, 1.5, NAN),
    "device.programming.tolerance": (-1e-6, NAN, INF, "1 V", True, None),
    "device.programming.relative_tolerance": (-0.1, 11, NAN, INF, True, None),
    "device.drift.model": ("milo", None, 1),
    "device.drift.activation_energy": (-0.1, 6, NAN, INF, "1 V", True, None),
    "device.read_noise.model": ("wan2022", "relative", None),
    "device.read_noise.sigma": (-1e-6, NAN, INF, "1 V", True, None),
    "device.read_noise.share": (-0.1, 11, NAN, INF, True, None),
    "device.read_noise.correlation": ("always", None),
    "device.telegraph.amplitude": (-0.1, 1.1, NAN, INF, True, None),
    "device.telegraph.occupancy": (-0.1, 1.1, NAN, INF, True, None),
    "device.telegraph.correlation_time": (-1, "-1 s", NAN, INF, "1 V", True, None),
    "device.iv.model": ("linear", None),
    "device.iv.alpha": (-1, 101, NAN, INF, "1 V", True, None),
    "device.iv.asymmetry": (-1, 11, NAN, INF, True, None),
    "device.temperature": (-274, 1001, NAN, INF, True, None, "warm"),
    "device.temperature_coefficient": (-0.2, 0.2, NAN, INF, "1 V", True, None),
    "periphery.input_coding": ("time", None),
    "periphery.subtract": ("never", None),
    **dict.fromkeys(("periphery.gain_sigma", "periphery.adc_gain_sigma"), (-0.1, 1.1, NAN, INF, True, None, "some")),
    **dict.fromkeys(LSBS, (-0.1, 1e7, NAN, INF, True, None, "some")),
    "periphery.sense_offset_sigma": (-1, 11, NAN, INF, "1 S", True, None),
    "periphery.dac_nonlinearity": (-0.6, 1.1, NAN, INF, True, None),
    "periphery.saturation": (-0.1, 101, NAN, INF, True, None),
    "periphery.cubic": (-0.4, 11, NAN, INF, True, None),
    "periphery.compliance": (0, -1, NAN, INF, "1 V", True),
    "periphery.columns_per_adc": (0, -1, 65537, True, None, 1.5),
    "periphery.trim.gain": ("row", None, True),
    "periphery.trim.offset": (3, None, "many"),
    "periphery.trim.vectors": (0, 1, 2049, True, None, 2.5),
    "periphery.trim.when": ("never", None),
    **dict.fromkeys(
        ("device.spread", "device.programming", "device.drift", "device.read_noise", "device.telegraph", "device.iv"),
        (None, [1], "strong", 3),
    ),
    "periphery.trim": (None, [1], "strong", True),
    "device": (None, [1, 2], "strong", 3),
    "sources": ("all ours", [1], 5),
}
REFUSED = [(path, value, f"{path} must be") for path, values in VALUES.items() for value in values] + [
    ("device.g_min", 1e-4, r"device\.g_min must be below g_max"),
    ("device.g_min", 2e-4, r"device\.g_min must be below g_max"),
    ("device.levels", [1e-6], r"device\.levels must be at least 2 levels"),
    ("device.levels", [1e-6, 1e-6, 1e-4], r"device\.levels must be levels in rising order"),
    ("device.levels", [1e-6, 5e-5, 2e-5, 1e-4], r"device\.levels must be levels in rising order"),
    ("device.levels", [2e-6, 1e-4], r"device\.levels must run from g_min to g_max: the first must be 1e-06 S"),
    ("device.levels", [1e-6, 2e-4], r"device\.levels must run from g_min to g_max: the last must be 0\.0001 S"),
    ("device.levels", [1e-6, NAN, 1e-4], r"device\.levels must be finite"),
    ("device.levels", [1e-6, "1 V"], r"device\.levels must be a quantity in siemens"),
    ("sources", {"device.spraed": "x"}, "names 'device.spraed', which is no field.*; did you mean 'device.spread'"),
    ("sources", {"device.spread.sgima": "x"}, "did you mean 'device.spread.sigma'"),
    ("sources", {"periphery.": "x"}, "names 'periphery.', which is no field"),
    ("sources", {"device.gmin": "x"}, "names 'device.gmin', which is no field.*; did you mean 'device.g_min'"),
    ("sources", {"device.g_min": 5}, r"sources\.device\.g_min must be a valid string"),
    *(("name", value, "name") for value in ("", "a b", "a/b", "x" * 101, 5, None, "a\n")),
]


def test_every_field_has_values_that_it_refuses() -> None:
    assert {path for path, _ in SPEC.fields()} - {"name"} <= set(VALUES)


@pytest.mark.parametrize(("path", "value", "complaint"), REFUSED)
def test_what_makes_no_sense_is_refused(path: str, value: Any, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint) as caught:
        HardwareSpec.from_fields(changed({path: value}))
    assert len(str(caught.value)) < 500


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    *(
        (
            {f"device.{section}.model": model, "device.g_min": low, "device.g_max": high},
            rf"device\.{section}\.model {model}",
        )
        for section, model, low, high in (
            ("spread", "wan2022", 1e-6, 41e-6),
            ("spread", "milo", 49e-6, 200e-6),
            ("spread", "milo", 60e-6, 226e-6),
            ("spread", "cmo_hfox", 7e-6, 80e-6),
            ("spread", "pcm", 1e-6, 26e-6),
            ("drift", "pcm", 1e-6, 26e-6),
            ("drift", "cmo_hfox", 9e-6, 91e-6),
            ("drift", "wan2022", 1e-6, 50e-6),
            ("read_noise", "pcm", 1e-6, 26e-6),
            ("read_noise", "cmo_hfox", 1e-6, 80e-6),
        )
    ),
    (
        {"device.spread.sigma": 1e-6},
        r"device\.spread\.sigma is read by model constant only, not by none; set it to 0 or",
    ),
    ({"device.spread.share": 0.1}, r"device\.spread\.share is read by model relative only.* choose relative"),
    ({"device.spread.log_sigma": 0.1}, r"device\.spread\.log_sigma is read by model lognormal only.* choose lognormal"),
    ({"device.read_noise.sigma": 1e-6}, r"device\.read_noise\.sigma is read by model constant only.* choose constant"),
    ({"device.read_noise.share": 0.1}, r"device\.read_noise\.share is read by model proportional only.* choose prop"),
    (
        {"device.drift.activation_energy": 0.5},
        r"device\.drift\.activation_energy is read with a drift.* choose a model",
    ),
    ({"device.iv.alpha": 1.0}, r"device\.iv\.alpha is read by models sinh and cubic only.* choose one of them"),
    ({"device.programming.pulses": 5}, r"device\.programming\.pulses above 1 need a tolerance"),
    ({"device.programming.tolerance": 1e-6}, r"device\.programming\.tolerance .* write-verify only; set pulses"),
    ({"device.programming.relative_tolerance": 0.1}, r"device\.programming\..*relative_tolerance .* set pulses"),
    (
        {"device.temperature": 1000, "device.temperature_coefficient": -0.002},
        r"device\.temperature_coefficient leaves no conductance .*; take a smaller one",
    ),
    ({"periphery.dac_bits": 1}, r"periphery\.dac_bits of 1 leave a bipolar driver no magnitude; choose 2 or more"),
    (
        {"periphery.dac_bits": 1, "periphery.signed": "two_phase"},
        r"periphery\.dac_bits of 1 need input_bits of 2 or more",
    ),
    ({"periphery.input_bits": 4}, r"periphery\.input_bits must be at least dac_bits \(8\), not 4"),
    (
        {"periphery.dac_bits": None, "periphery.input_bits": 8},
        r"periphery\.input_bits are read with dac_bits only; leave",
    ),
    *(({"periphery.adc_bits": 13, path: 0.1}, r"periphery\.adc_inl_sigma .* up to adc_bits 12") for path in LSBS[3:]),
    ({"array.slices": 2, "device.levels": None}, r"array\.slices above 1 need device\.levels .*, not None"),
    ({"array.slices": 2, "device.levels": [1e-6, 1e-5, 1e-4]}, r"array\.slices above 1 need device\.levels"),
    (
        {"array.slices": 16, "device.levels": 16},
        r"array\.slices must leave a weight at most 4294967296 values; take fewer",
    ),
    (
        {"array.pairing": "neighbouring_rows", "periphery.subtract": "after"},
        r"periphery\.subtract must be before where pairs lie on neighbouring rows",
    ),
    ({"array.rows": 7, "array.pairing": "neighbouring_rows"}, r"array\.rows must be even .*, not 7"),
    ({"array.cols": 7, "array.pairing": "neighbouring_columns"}, r"array\.cols must be even .*, not 7"),
    *(
        ({"array.wire_model": "closed_form", "array.unselected": unselected}, r"array\.wire_model closed_form .* exact")
        for unselected in ("floating", "half", "third")
    ),
]


@pytest.mark.parametrize(("fields", "complaint"), CONTRADICTIONS)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], complaint: str) -> None:
    quiet = {"device.spread": Spread(), "device.read_noise": ReadNoise()}
    plain = SPEC.model_copy(update={"device": {path.split(".")[1]: value for path, value in quiet.items()}})
    assert active_effects(plain) == ["dac", "readout", "adc"]
    with pytest.raises(SpecError, match=complaint) as caught:
        plain.with_fields(fields)
    assert len(str(caught.value)) < 500


def test_a_driver_of_one_bit_takes_inputs_bit_by_bit() -> None:
    fields = {"periphery.dac_bits": 1, "periphery.input_bits": 8, "periphery.signed": "two_phase"}
    periphery = SPEC.with_fields(fields).periphery
    assert (periphery.digit_base(True), periphery.digits(True), periphery.digits(False)) == (2, 7, 8)
    assert periphery.input_code_max(True) == 127


def test_listed_levels_may_miss_the_ends_by_rounding() -> None:
    levels = (1e-6 * (1 + 1e-12), 2e-5, 1e-4 * (1 - 1e-12))
    assert SPEC.with_fields({"device.levels": levels}).device.level_count == 3


def test_an_integer_that_python_does_not_print_is_refused() -> None:
    with pytest.raises(SpecError, match=r"array\.rows must be .*, not a huge number"):
        HardwareSpec.from_fields(changed({"array.rows": 10**5000}))


def test_odd_columns_hold_single_devices_and_pairs_on_two_arrays() -> None:
    assert HardwareSpec.from_fields(changed({"array.cols": 7, "array.pairing": "reference"})).array.weight_cols == 7
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
        ("device.spraed", "device.spraed is no field of the spec; did you mean 'spread'"),
        ("device.spread.sgima", "device.spread.sgima is no field of the spec; did you mean 'sigma'"),
        ("device.programming.pulse", "did you mean 'pulses'"),
        ("device.drift.activationenergy", "did you mean 'activation_energy'"),
        ("device.read_noise.correlaton", "did you mean 'correlation'"),
        ("device.telegraph.ocupancy", "did you mean 'occupancy'"),
        ("device.iv.alhpa", "did you mean 'alpha'"),
        ("array.r_wrod", "did you mean 'r_word'"),
        ("periphery.trim.gian", "periphery.trim.gian is no field of the spec; did you mean 'gain'"),
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
        ("device.spread", "is no field of the spec"),
        ("device.spread.sgima", "did you mean 'device.spread.sigma'"),
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
    for path in ("array.r_word", "device.spread.sigma", "periphery.trim.offset", "periphery.subtract", "device.levels"):
        values = {"periphery.trim.offset": True, "periphery.subtract": "after", "device.levels": [1e-6, 5e-6, 1e-4]}
        assert SPEC.with_fields({path: values.get(path, 2e-6)}).sha256 != SPEC.sha256


@settings(max_examples=50, deadline=None)
@given(SPECS, SPECS)
def test_two_specs_have_one_hash_only_if_they_are_one(first: HardwareSpec, second: HardwareSpec) -> None:
    assert (first.sha256 == second.sha256) == (first == second)


def test_reading_the_hash_changes_nothing() -> None:
    fresh, read = HardwareSpec.preset("rram-128"), HardwareSpec.preset("rram-128")
    assert read.sha256
    assert fresh == read
    assert fresh.model_dump() == read.model_dump()


def test_the_schema_describes_every_field_and_its_unit() -> None:
    schema = HardwareSpec.model_json_schema()
    json.dumps(schema)
    units = {}
    for model in SECTIONS:
        properties = schema["$defs"][model.__name__]["properties"]
        assert set(properties) == set(model.model_fields)
        for name, info in model.model_fields.items():
            section = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
            assert section or properties[name]["description"], (model, name)
            unit = unit_of(info)
            if unit is not None:
                assert f'"unit": "{unit}"' in json.dumps(properties[name])
                units[f"{model.__name__}.{name}"] = unit
    assert {units[f"Device.{name}"] for name in ("g_min", "g_max", "levels")} == {"siemens"}
    assert {units[f"Array.{name}"] for name in ("r_word", "r_bit", "r_driver", "r_sense")} == {"ohm"}
    assert (units["Periphery.v_read"], units["Periphery.compliance"]) == ("volt", "ampere")
    assert (units["CurrentVoltageLaw.alpha"], units["Device.temperature_coefficient"]) == ("1/volt", "1/kelvin")
    assert (units["Telegraph.correlation_time"], units["Drift.activation_energy"]) == ("second", "electron_volt")


def test_the_sections_listed_here_are_those_of_the_schema() -> None:
    assert {model.__name__ for model in SECTIONS} == set(HardwareSpec.model_json_schema()["$defs"])


@pytest.mark.parametrize("model", [HardwareSpec, *SECTIONS])
def test_models_take_no_other_fields(model: type[BaseModel]) -> None:
    assert model.model_config.get("extra") == "forbid"
    assert model.model_config.get("frozen") is True


def test_pairs_and_codes() -> None:
    apart, beside = Array(rows=4, cols=8, pairing="two_arrays"), Array(rows=4, cols=8, pairing="neighbouring_columns")
    assert (apart.weight_cols, apart.arrays_per_site) == (8, 2)
    assert (beside.weight_cols, beside.arrays_per_site) == (4, 1)
    rows, single = Array(rows=4, cols=8, pairing="neighbouring_rows"), Array(rows=4, cols=8, pairing="reference")
    assert (rows.weight_rows, rows.weight_cols, rows.arrays_per_site, rows.devices_per_weight) == (2, 8, 1, 2)
    assert (single.weight_rows, single.weight_cols, single.arrays_per_site, single.devices_per_weight) == (4, 8, 1, 1)
    assert SPEC.device.span == SPEC.device.g_max - SPEC.device.g_min
