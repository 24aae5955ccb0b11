"""How the models of a study come about, with what trains them replaced."""

from pathlib import Path
from typing import Any

import pytest

from studies.kim2020 import BASELINES, CASES, Study


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Trainings in order: name, start, highest rate of their chips, learning rate, epochs and full scale."""
    found: list[tuple[Any, ...]] = []

    def record(_: Study, name: str, case: Any, start: str, chips: Any, _train: Any, epochs: int, clip: Any) -> str:
        found.append((name, start, chips and chips.__self__.highest, case.learning_rate, epochs, clip))
        return name

    monkeypatch.setattr(Study, "samples", lambda *_: None)
    monkeypatch.setattr(Study, "_compiled", lambda *_: "compiled")
    monkeypatch.setattr(Study, "_tuned", record)
    return found


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study("", tmp_path, "cpu", 5, 64, 20, 250)


def test_training_for_defects_of_weights_ends_at_low_rates(study: Study, trained: list[tuple[Any, ...]]) -> None:
    """From the model of the first training, without clipping it again."""
    study.tuned("weight-1", CASES["weight-1"])
    first, second = trained
    assert first == ("weight-1-first", "compiled", 0.08, 1e-3, 5, 1.5)
    assert second == ("weight-1", "weight-1-first", 0.02, 5e-4, 3, None)


def test_other_models_are_trained_once_and_baselines_on_no_defects(
    study: Study, trained: list[tuple[Any, ...]]
) -> None:
    study.tuned("zero", CASES["zero"])
    study.tuned("baseline-pair", BASELINES["baseline-pair"], defects=False)
    assert [(name, highest) for name, _, highest, *_ in trained] == [("zero", 0.1), ("baseline-pair", None)]


def test_a_model_that_another_case_has_is_one_of_the_same_structure() -> None:
    for case in CASES.values():
        if case.trained_as is not None:
            other = CASES[case.trained_as]
            assert (other.structure, other.ones, other.trained_as) == (case.structure, case.ones, None)
