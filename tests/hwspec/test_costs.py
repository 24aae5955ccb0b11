"""Components: what the survey of ADCs says, and which constants go together."""

import itertools
import math

import pytest

from hwspec.costs import AdcCost, adc_area, adc_energy, conversion_time
from hwspec.errors import SpecError
from hwspec.spec import HardwareSpec


def test_the_survey_by_hand() -> None:
    sndr = 6.0206 * 8 + 1.7609
    merit = min(213.78067 - 2.871903 * math.log(1.28e9), 128.30684 + 3.2205115 * 8)
    node = math.exp(26.0496216 + 1.8800369 * math.log(32) - 2.8291256 * math.log(8) - 1.4702022)
    energy = 0.5 * 10 ** ((sndr - merit) / 10) * node
    assert adc_energy(AdcCost(), 8, 32e-9) == pytest.approx(energy * 1e-12)
    area = math.exp(1.3461916 + 0.9932795 * math.log(32) + 0.1807154 * math.log(1.28e9) + 0.2991243 * math.log(energy))
    assert adc_area(AdcCost(), 8, 32e-9) == pytest.approx(area * 1e-12)


def test_the_survey_rises_with_resolution_and_starts_at_4_bits() -> None:
    found = [adc_energy(AdcCost(), bits, 32e-9) for bits in range(2, 15)]
    assert found[0] == found[1] == found[2]
    assert all(low < high for low, high in itertools.pairwise(found[2:]))


def test_a_ramp_takes_a_step_for_each_magnitude() -> None:
    ramp = AdcCost(model="ramp", rate=1e6, energy=1e-12, area=0.0)
    assert conversion_time(ramp, 6) == pytest.approx(32e-6)
    assert adc_energy(ramp, 6, 32e-9) == pytest.approx(32e-12)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"costs.adc.model": "fixed"}, "must be given where model is fixed"),
        ({"costs.adc.energy": 1e-12}, "come from the survey"),
        ({"costs.array.model": "fixed"}, "energy must be given where model is fixed"),
        ({"costs.array.energy": 1e-12}, "energy must be given where model is fixed"),
        ({"costs.buffer.rate": 0.0}, "greater than 0"),
        ({"costs.t_read": "3 m"}, "second"),
        ({"chip.tiles": 0}, "greater than or equal to 1"),
    ],
)
def test_constants_that_do_not_go_together(fields: dict[str, object], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        HardwareSpec.preset("rram-128").with_fields(fields)
