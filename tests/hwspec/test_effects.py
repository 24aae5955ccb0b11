"""Effects: every field belongs to one of them or is a choice of design; each can be switched off alone."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hwspec.effects import EFFECTS, OF_A_CHIP, QUANTISATION, active_effects, chosen_effects, with_effects
from hwspec.errors import DataError
from hwspec.spec import HardwareSpec

IDEAL = HardwareSpec.preset("ideal")
PRESETS = HardwareSpec.presets()

DESIGN = {
    "name",
    # what a device can hold, and how it is written
    "device.g_min",
    "device.g_max",
    "device.levels",
    "device.programming.failed_conductance",  # of failures, which the failure rate switches
    "device.programming.pulses",  # write-verify answers spread: without spread every pulse lands
    "device.programming.tolerance",
    "device.programming.relative_tolerance",
    "device.read_noise.correlation",  # of the noise's reads, and of fast telegraph noise's
    "device.temperature_coefficient",  # of temperature: at 25 degrees Celsius it does nothing
    # the array
    "array.rows",
    "array.cols",
    "array.pairing",
    "array.slices",
    "array.unused",
    "array.wire_model",  # how wires are solved, not whether there are any
    "periphery.residue",  # what digital memory beside the arrays may correct
    "array.cell",
    "array.router",
    # of failures, which the rates switch
    *(
        f"failures.{state}.{field}"
        for state in ("unformed", "overformed", "stuck_hrs", "stuck_lrs")
        for field in ("conductance", "model", "deviation", "upper", "isolatable")
    ),
    "failures.array_deviation",
    "failures.clusters.radius",
    "failures.clusters.state",
    "failures.thresholds.unformed",
    "failures.thresholds.stuck_hrs",
    "failures.thresholds.stuck_lrs",
    "failures.thresholds.overformed",
    "failures.map_errors.missed",
    "failures.map_errors.false",
    "failures.isolation",
    "failures.failed_pair",
    "failures.bound_tolerance",
    "failures.allow_unbounded",
    # the periphery
    "periphery.v_read",
    "periphery.signed",
    "periphery.input_coding",
    "periphery.subtract",
    "periphery.adc_clip_share",
    "periphery.columns_per_adc",
} | {path for path, _ in HardwareSpec.preset("ideal").fields() if path.startswith(("chip.", "costs."))}
"""Fields that are choices of the design: an ideal chip has them too."""

ON: dict[str, dict[str, Any]] = {
    "failures": {"failures.stuck_hrs.rate": 0.01},
    "retention": {"failures.retention.state": "stuck_hrs"},
    "spread": {"device.spread.model": "constant", "device.spread.sigma": 1e-6},
    "programming_failures": {"device.programming.failure_rate": 0.01},
    "drift": {"device.drift.model": "cmo_hfox", "device.g_min": 9e-6, "device.g_max": 80e-6},
    "temperature": {"device.temperature": 85.0},
    "access": {"device.r_access": 1000.0},
    "iv": {"device.iv.model": "sinh", "device.iv.alpha": 1.0},
    "telegraph": {"device.telegraph.amplitude": 0.1},
    "read_noise": {"device.read_noise.model": "proportional", "device.read_noise.share": 0.01},
    "wires": {"array.r_bit": 1.0},
    "sneak_paths": {"array.unselected": "floating"},
    "dac": {"periphery.dac_bits": 8},
    "dac_nonlinearity": {"periphery.dac_nonlinearity": 0.1},
    "sense_offset": {"periphery.sense_offset_sigma": 1e-3},
    "readout": {"periphery.gain_sigma": 0.01},
    "saturation": {"periphery.compliance": 1e-3},
    "readout_noise": {"periphery.readout_noise": 0.5},
    "adc": {"periphery.adc_bits": 8},
    "adc_errors": {"periphery.adc_gain_sigma": 0.01},
    "trim": {"periphery.trim.gain": "column"},
}
"""Fields that give ideal hardware each effect."""


def covered(path: str) -> list[str]:
    """Effects whose fields or sections hold a field."""
    return [name for name, fields in EFFECTS.items() if any(f"{path}.".startswith(f"{one}.") for one in fields)]


@pytest.mark.parametrize("path", [path for path, _ in IDEAL.fields()])
def test_a_field_belongs_to_one_effect_or_is_a_choice_of_design(path: str) -> None:
    assert len(covered(path)) + (path in DESIGN) == 1, covered(path)


def test_the_lists_name_what_exists() -> None:
    fields = dict(IDEAL.fields())
    assert set(fields) >= DESIGN
    assert set(ON) == set(EFFECTS)
    assert set(EFFECTS) >= OF_A_CHIP | QUANTISATION
    assert not OF_A_CHIP & QUANTISATION
    paths = [path for of in EFFECTS.values() for path in of]
    assert len(paths) == len(set(paths))
    for path in paths:
        assert any(f"{name}.".startswith(f"{path}.") for name in fields), path


def test_what_switches_an_effect_off_is_the_default() -> None:
    """Hence a spec that says nothing of an effect does not have it."""
    fields = dict(IDEAL.fields())
    for of in EFFECTS.values():
        for path, off in of.items():
            flat = off.model_dump() if isinstance(off, BaseModel) else {"": off}
            for leaf, value in flat.items():
                assert fields[f"{path}.{leaf}".rstrip(".")] == value


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_is_switched_on_by_its_fields_and_off_alone(name: str) -> None:
    spec = IDEAL.with_fields(ON[name])
    assert active_effects(spec) == [name]
    assert active_effects(with_effects(spec, set(EFFECTS) - {name})) == []
    kept = with_effects(spec, {name})
    assert kept == spec


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_without_its_effects_has_none(name: str) -> None:
    spec = HardwareSpec.preset(name)
    bare = with_effects(spec, ())
    assert active_effects(bare) == []
    fields, without = dict(spec.fields()), dict(bare.fields())
    assert {path: fields[path] for path in DESIGN} == {path: without[path] for path in DESIGN}
    assert with_effects(spec, active_effects(spec)) == spec
    assert with_effects(bare, EFFECTS) == bare


@given(st.sampled_from(PRESETS), st.sets(st.sampled_from(sorted(EFFECTS))))
def test_what_is_kept_stays_as_it_is(name: str, keep: set[str]) -> None:
    spec = HardwareSpec.preset(name)
    found = with_effects(spec, keep)
    assert active_effects(found) == [effect for effect in active_effects(spec) if effect in keep]
    before, after = dict(spec.fields()), dict(found.fields())
    for path in before:
        owner = covered(path)
        if not owner or owner[0] in keep:
            assert after[path] == before[path]
    assert with_effects(found, keep) == found


def test_the_original_spec_is_left_alone() -> None:
    spec = HardwareSpec.preset("rram-128-wired")
    before = spec.model_dump()
    assert with_effects(spec, ()).sha256 != spec.sha256
    assert spec.model_dump() == before


def test_errors_in_lsb_may_be_without_an_adc() -> None:
    """An ablation may combine what no hardware does."""
    found = with_effects(HardwareSpec.preset("rram-128"), {"readout"})
    assert (found.periphery.adc_bits, found.periphery.offset_sigma) == (None, 0.5)


def test_chosen_effects() -> None:
    assert chosen_effects() == frozenset(EFFECTS)
    assert chosen_effects(["spread", "wires"]) == {"spread", "wires"}
    assert chosen_effects([]) == frozenset()
    assert chosen_effects(without=["adc"]) == frozenset(EFFECTS) - {"adc"}
    assert chosen_effects(["spread", "wires"], ["wires", "adc"]) == {"spread"}
    assert chosen_effects(iter(["spread"]), iter(["adc"])) == {"spread"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("wire", "did you mean 'wires'"),
        ("read-noise", "did you mean 'read_noise'"),
        ("zzz", "there are failures, retention, .*, trim"),
        ("", "there are failures"),
    ],
)
def test_an_unknown_effect_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(DataError, match=rf"effect '{name}' does not exist; {hint}"):
        chosen_effects([name])
    with pytest.raises(DataError, match=hint):
        chosen_effects(without=["adc", name])
    with pytest.raises(DataError, match=hint):
        chosen_effects(["adc"], [name])
