"""Failure states: what their fields may be together, and what they say of a technology."""

import pytest
from pydantic import ValidationError

from hwspec.device import Device
from hwspec.errors import SpecError
from hwspec.failures import DEVIATIONS, Clusters, Failures, FailureState, Lines, Retention, State, nominal_conductance
from hwspec.spec import HardwareSpec

DEVICE = Device(g_min=1e-6, g_max=100e-6, levels=16)
FAILED = [state for state in State if state != State.OK]


def of(state: State, **fields: object) -> Failures:
    """Failures of one state."""
    return Failures.model_validate({state.name.lower(): fields})


def test_codes_of_states_are_part_of_every_saved_map() -> None:
    codes = {"OK": 0, "UNFORMED": 1, "OVERFORMED": 2, "STUCK_HRS": 3, "STUCK_LRS": 4}
    assert {state.name: int(state) for state in State} == codes


@pytest.mark.parametrize("state", FAILED)
def test_a_state_is_found_by_its_code(state: State) -> None:
    failures = of(state, rate=0.25)
    assert failures.of(state).rate == 0.25
    assert [code for code, section in failures.states() if section.rate] == [state]
    assert failures.possible == {state}
    assert failures.at_start


@pytest.mark.parametrize(
    ("state", "siemens"),
    [(State.UNFORMED, 0.0), (State.STUCK_HRS, 1e-6), (State.OVERFORMED, 100e-6), (State.STUCK_LRS, 100e-6)],
)
def test_nominal_conductances_come_from_the_range_unless_given(state: State, siemens: float) -> None:
    assert nominal_conductance(FailureState(), state, DEVICE) == siemens
    assert nominal_conductance(FailureState(conductance=7e-6), state, DEVICE) == 7e-6


@pytest.mark.parametrize("state", FAILED)
def test_conductances_lie_between_the_ends_of_their_distribution(state: State) -> None:
    given = {"rate": 0.1, "conductance": "50 uS"}
    assert of(state, **given).conductances(state, DEVICE) == (50e-6, 50e-6)
    low, high = of(state, **given, model="normal", deviation=0.1).conductances(state, DEVICE)
    assert (low, high) == pytest.approx((50e-6 * (1 - 0.1 * DEVIATIONS), 50e-6 * (1 + 0.1 * DEVIATIONS)))
    assert of(state, **given, model="normal", deviation=1).conductances(state, DEVICE) == pytest.approx((0, 200e-6))
    assert of(state, **given, model="uniform", upper="90 uS").conductances(state, DEVICE) == (50e-6, 90e-6)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"deviation": 0.1}, "deviation"),
        ({"model": "uniform"}, "upper"),
        ({"upper": 1e-4}, "upper"),
        ({"model": "normal", "upper": 1e-4}, "upper"),
        ({"rate": 1.1}, "rate"),
        ({"rate": -0.1}, "rate"),
        ({"rate": True}, "rate"),
        ({"conductance": -1e-6}, "conductance"),
        ({"conductance": "5 V"}, "conductance"),
        ({"rates": 0.1}, "rates"),
    ],
)
def test_a_state_refuses_what_its_model_does_not_read(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        FailureState.model_validate(fields)


def test_rates_and_shares_of_lines_are_at_most_one_together() -> None:
    Failures(unformed=FailureState(rate=0.5), stuck_lrs=FailureState(rate=0.5))
    with pytest.raises(ValidationError, match=r"at most 1 together, not 1\.1"):
        Failures(unformed=FailureState(rate=0.5), stuck_lrs=FailureState(rate=0.6))
    for kind in ("word", "bit"):
        Lines.model_validate({f"{kind}_failed": 0.5, f"{kind}_shorted": 0.5})
        with pytest.raises(ValidationError, match=f"{kind}_failed and {kind}_shorted must be at most 1"):
            Lines.model_validate({f"{kind}_failed": 0.5, f"{kind}_shorted": 0.6})


@pytest.mark.parametrize(
    ("failures", "possible", "at_start"),
    [
        (Failures(), set(), False),
        (Failures(clusters=Clusters(rate=1, state="stuck_lrs")), {State.STUCK_LRS}, True),
        (Failures(lines=Lines(word_failed=0.1)), {State.UNFORMED}, True),
        (Failures(lines=Lines(bit_failed=0.1)), {State.UNFORMED}, True),
        (Failures(lines=Lines(word_shorted=0.1)), {State.OVERFORMED}, True),
        (Failures(lines=Lines(bit_shorted=0.1)), {State.OVERFORMED}, True),
        (Failures(retention=Retention(state="stuck_hrs")), {State.STUCK_HRS}, False),
        (Failures(array_deviation=1.0, failed_pair="zero"), set(), False),
    ],
)
def test_possible_states_are_those_that_something_leads_to(
    failures: Failures, possible: set[State], at_start: bool
) -> None:
    assert failures.possible == possible
    assert failures.at_start == at_start


def test_a_spec_refuses_what_its_cells_cannot_do() -> None:
    spec = HardwareSpec.preset("rram-128")
    for fields, reason in (
        ({"array.cell": "1R", "device.r_access": 1.0}, "r_access must be 0 in 1R cells"),
        ({"failures.isolation": "device"}, "isolation device needs array.cell 2T2R"),
        ({"failures.isolation": "line", "array.cell": "1R"}, "isolation line needs transistors"),
        ({"failures.failed_pair": "zero", "array.pairing": "reference"}, "failed_pair zero needs pairs"),
        ({"array.cell": "2T2R", "array.pairing": "reference"}, "2T2R holds a pair"),
    ):
        with pytest.raises(SpecError, match=reason):
            spec.with_fields(fields)
