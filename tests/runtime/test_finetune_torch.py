"""The loop of fine-tuning: which chips it draws, what its options do and what it keeps; seeds decide everything."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
import tuning_cases as cases
from tuning_cases import blobs

import xbarc
from hwspec.chip import Chip
from hwspec.errors import DataError
from hwspec.spec import HardwareSpec
from runtime.finetune_torch import Tuned, Tuner, held_out
from runtime.processes_torch import Processes, is_first
from runtime.program import TileProgram
from runtime.rewrite import reachable_weights, rewrite
from runtime.train import CrossbarModule
from runtime.tuning import Mode, TuneOptions
from xbarc.data.load import Dataset

SAMPLES = 64
SHORT = TuneOptions(epochs=2, batch=16, learning_rate=0.02, average=0.5)
WIRED: dict[str, object] = {"array.r_word": 2.0, "array.r_bit": 2.0}


def run(
    options: TuneOptions = SHORT,
    mode: Mode = "agnostic",
    *,
    program: TileProgram | None = None,
    data: Dataset | None = None,
    **more: Any,
) -> Tuned:
    """Fine-tune a small classifier."""
    own = cases.program() if mode == "agnostic" else cases.mapped()
    return Tuner(program or own, data or blobs(SAMPLES), mode, options, **more).run()


def flat(tuned: Tuned) -> npt.NDArray[np.float32]:
    """All weights and biases."""
    return np.concatenate([one.ravel() for part in (tuned.weights, tuned.biases) for one in part.values()])


class Written(NamedTuple):
    """Weights were written onto a chip: with this seed, on this model of wires, to train or not."""

    chip: Chip
    seed: int
    wires: str
    training: bool


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Written]:
    """Every time that weights are written onto a chip."""
    found: list[Written] = []
    write = CrossbarModule.write

    def watched(module: CrossbarModule, chip: Chip, seed: int = 0) -> None:
        wires = module.program.spec.array.wire_model
        found.append(Written(chip, seed, wires, torch.is_grad_enabled()))
        write(module, chip, seed)

    monkeypatch.setattr(CrossbarModule, "write", watched)
    return found


def watch_steps(monkeypatch: pytest.MonkeyPatch, told: Callable[[torch.optim.Optimizer], Any]) -> list[Any]:
    """What is told of the optimizer before every one of its steps."""
    found: list[Any] = []
    step = torch.optim.AdamW.step

    def watched(optimizer: torch.optim.AdamW, *arguments: Any) -> Any:
        found.append(told(optimizer))
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return found


def drawn_rates(monkeypatch: pytest.MonkeyPatch, options: TuneOptions) -> tuple[list[float], list[float]]:
    """Factors on the rates of failures of the chips that are trained on, and of those held out, epoch by epoch."""
    found: list[float] = []
    sample = Chip.sample

    def watched(spec: HardwareSpec, *arguments: Any) -> Chip:
        found.append(spec.failures.stuck_hrs.rate / 0.15)
        assert spec.failures.stuck_lrs.rate / 0.02 == pytest.approx(found[-1])
        return sample(spec, *arguments)

    monkeypatch.setattr(Chip, "sample", watched)
    steps = -(-(SAMPLES - options.held_out(SAMPLES)) // options.batch)
    run(options)
    each = steps + options.validation_chips
    assert len(found) == each * options.epochs
    trained = [one for at, one in enumerate(found) if at % each < steps]
    return trained, [one for at, one in enumerate(found) if at % each >= steps]


# -- which chips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0, 2.0])
def test_rates_are_those_of_the_spec_times_a_factor(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, held = drawn_rates(monkeypatch, replace(SHORT, rates=(factor, factor)))
    np.testing.assert_allclose(trained + held, factor, rtol=1e-12)


def test_rates_are_drawn_evenly_from_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step; chips held out have the middle of it."""
    trained, held = drawn_rates(monkeypatch, replace(SHORT, epochs=8, rates=(0.5, 1.5), validation_chips=1))
    assert len(set(trained)) == len(trained) > 25
    assert 0.5 <= min(trained) < 0.65
    assert 1.35 < max(trained) <= 1.5
    assert np.mean(trained) == pytest.approx(1, abs=0.15)
    np.testing.assert_allclose(held, 1.0)


def test_rates_rise_to_that_over_the_ramp(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, held = drawn_rates(monkeypatch, replace(SHORT, epochs=4, rates=(2.0, 2.0), ramp=2.5))
    steps = len(trained) / 4
    wanted = [2 * min(1.0, step / steps / 2.5) for step in range(len(trained))]
    np.testing.assert_allclose(trained, wanted, rtol=1e-12)
    np.testing.assert_allclose(held, 2.0)


def test_rates_fit_together_whatever_they_are() -> None:
    """After rounding too."""
    generator = np.random.default_rng(0)
    for rates in generator.random((200, 4)) / 100:
        states = zip(("unformed", "overformed", "stuck_hrs", "stuck_lrs"), rates.tolist(), strict=True)
        fields = {f"failures.{name}.rate": rate for name, rate in states}
        found = HardwareSpec.preset("rram-128").with_fields(fields).with_failure_rates(100).failures
        assert sum(section.rate for _, section in found.states()) <= 1


def test_all_failures_have_the_factor_and_devices_fail_once_at_most() -> None:
    fields = {
        "failures.unformed.rate": 0.2,
        "failures.stuck_lrs.rate": 0.1,
        "failures.lines.word_failed": 0.4,
        "failures.clusters.rate": 0.01,
    }
    spec = HardwareSpec.preset("rram-128").with_fields(fields)
    half = spec.with_failure_rates(0.5)
    assert (half.failures.unformed.rate, half.failures.stuck_lrs.rate) == (0.1, 0.05)
    assert (half.failures.lines.word_failed, half.failures.clusters.rate) == (0.2, 0.005)
    assert half.failures.stuck_hrs.rate == 0
    most = spec.with_failure_rates(100).failures
    assert most.unformed.rate == pytest.approx(2 * most.stuck_lrs.rate)
    assert most.unformed.rate + most.stuck_lrs.rate == pytest.approx(1)
    assert most.lines.word_failed <= 1
    both = spec.with_fields({"failures.lines.word_failed": 0.1, "failures.lines.word_shorted": 0.2})
    lines = both.with_failure_rates(10).failures.lines
    assert lines.word_shorted == pytest.approx(2 * lines.word_failed)
    assert lines.word_shorted + lines.word_failed == pytest.approx(1)
    assert spec.with_failure_rates(1e8).failures.clusters.rate == 1e4
    assert spec.with_failure_rates(1) is spec
    none = HardwareSpec.preset("rram-128")
    assert none.with_failure_rates(3).failures == none.failures


@pytest.mark.parametrize("resample", [1, 3])
def test_steps_share_chips_and_none_of_them_validates(resample: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed a chip, whatever the epoch; those held out are the same in every epoch, and never trained on."""
    written = watch(monkeypatch)
    asked: list[int] = []

    def chips(seed: int) -> Chip:
        asked.append(seed)
        return Chip.sample(cases.program().spec, cases.program().arrays, seed)

    run(replace(SHORT, epochs=3, resample=resample, validation_chips=2), chips=chips)
    assert asked == [one.seed for one in written]
    trained = [one.seed for one in written if one.training]
    held = [one.seed for one in written if not one.training]
    assert len(trained) == 12
    for at, seed in enumerate(trained):
        assert seed == trained[at - at % resample]
        assert at % resample or seed not in trained[:at]
    assert held == held[:2] * 3
    assert len({*held}) == 2
    assert not {*held} & {*trained}


def test_one_chip_is_trained_on_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pulses and the noise of its reads differ from step to step."""
    found = watch(monkeypatch)
    chip = Chip.sample(cases.program().spec, cases.program().arrays, 5)
    run(SHORT, "aware", chip=chip)
    assert all(one.chip is chip for one in found)
    assert len({one.seed for one in found}) == 8 + 1
    found.clear()
    run(SHORT, "aware")
    assert {one.chip.sha256 for one in found} == {cases.mapped().nominal_chip.sha256}


def test_effects_that_are_on() -> None:
    """Without any, chips are all alike; failures alone are among them."""
    data = blobs(SAMPLES)
    without = [flat(run(SHORT, effects=frozenset(), chips=_seeded(start), data=data)) for start in (0, 100)]
    np.testing.assert_array_equal(without[0], without[1])
    with_failures = [flat(run(SHORT, effects={"failures"}, chips=_seeded(start), data=data)) for start in (0, 100)]
    assert not np.array_equal(with_failures[0], with_failures[1])


def _seeded(start: int) -> Callable[[int], Chip]:
    return lambda seed: Chip.sample(cases.program().spec, cases.program().arrays, start + seed)


# -- which samples --------------------------------------------------------------------------------------------------


class Watched(Dataset):
    """Samples that tell which of them are taken."""

    taken: list[npt.NDArray[np.int64]]

    def take(self, indices: Any) -> Dataset:
        self.taken.append(np.asarray(indices))
        return super().take(indices)


def test_every_sample_is_learnt_once_an_epoch_but_those_held_out() -> None:
    data = blobs(SAMPLES)
    watched = Watched(data.inputs, data.labels)
    object.__setattr__(watched, "taken", [])
    options = replace(SHORT, epochs=2, batch=20, validation=10, validation_chips=1)
    held = held_out(watched, options, 3)
    assert len({*held.tolist()}) == 10
    run(options, data=watched, seed=3)
    for epoch in range(2):
        *learnt, validated = watched.taken[4 * epoch : 4 * epoch + 4]
        np.testing.assert_array_equal(validated, held)
        assert [len(part) for part in learnt] == [20, 20, 14]
        assert sorted(np.concatenate(learnt).tolist()) == sorted({*range(SAMPLES)} - {*held.tolist()})
    orders = [np.concatenate(watched.taken[start : start + 3]) for start in (0, 4)]
    assert not np.array_equal(orders[0], orders[1])


def test_shares_of_samples_held_out() -> None:
    assert [TuneOptions(validation=share).held_out(50) for share in (0, 0.1, 0.5, 1, 7)] == [0, 5, 25, 1, 7]
    with pytest.raises(DataError, match="validation must leave samples to learn from, not '50 of 50'"):
        TuneOptions(validation=50).held_out(50)
    whole = replace(blobs(20), fixed_batch=4)
    assert len(held_out(whole, TuneOptions(validation=0.35), 0)) == 4


# -- the optimizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_the_learning_rate_rises_and_falls(schedule: Any, warmup: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = watch_steps(monkeypatch, lambda optimizer: optimizer.param_groups[0]["lr"])
    tuned = run(replace(SHORT, epochs=3, schedule=schedule, warmup=warmup, validation=0))
    total, warm = 12, max(12 * warmup, 1)
    wanted = []
    for step in range(1, total + 1):
        done = (step - warm) / (total - warm)
        falls = {"cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1 - done, "constant": 1.0}
        wanted.append(0.02 * (step / warm if step < warm else falls[schedule]))
    np.testing.assert_allclose(rates, wanted, rtol=1e-9, atol=1e-12)
    assert [row.learning_rate for row in tuned.history] == [rates[at] for at in (3, 7, 11)]
    assert [row.steps for row in tuned.history] == [4, 8, 12]


def test_gradients_are_shortened_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def norm(optimizer: torch.optim.Optimizer) -> float:
        grads = [one.grad for one in optimizer.param_groups[0]["params"] if one.grad is not None]
        return float(torch.cat([grad.ravel() for grad in grads]).norm())

    found = watch_steps(monkeypatch, norm)
    run(replace(SHORT, epochs=1, limit=1e9))
    free = list(found)
    assert min(free) > 0.02
    found.clear()
    run(replace(SHORT, epochs=1, limit=0.01))
    np.testing.assert_allclose(found, 0.01, rtol=1e-4)


def test_the_average_is_that_of_the_weights_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Young averages forget faster: the decay of step n is (1 + n) / (10 + n) at most."""
    kept: list[npt.NDArray[np.float32]] = []
    project = CrossbarModule.project

    def watched(module: CrossbarModule) -> None:
        project(module)
        kept.append(np.concatenate([one.detach().numpy().ravel() for one in module.parameters()]))

    start = CrossbarModule(cases.program())
    mean = np.concatenate([one.detach().numpy().ravel() for one in start.parameters()])
    monkeypatch.setattr(CrossbarModule, "project", watched)
    tuned = run(replace(SHORT, epochs=3, average=0.3, validation=0))
    for step, values in enumerate(kept[:12]):
        decay = min(0.3, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * values
    np.testing.assert_allclose(flat(tuned), mean, rtol=1e-4, atol=1e-6)
    kept.clear()
    last = run(replace(SHORT, average=0.0, validation=0))
    np.testing.assert_array_equal(flat(last), kept[7])


def test_weight_decay_makes_weights_smaller() -> None:
    norms = [np.linalg.norm(flat(run(replace(SHORT, weight_decay=decay)))) for decay in (0.0, 5.0)]
    assert norms[1] < 0.9 * norms[0]


# -- what is kept ---------------------------------------------------------------------------------------------------


def test_training_stops_without_progress_and_keeps_the_best_epoch() -> None:
    """With a learning rate that makes everything worse; the epoch kept is that of a run which ended there."""
    options = replace(SHORT, epochs=12, patience=2, learning_rate=0.3, schedule="constant", warmup=0.0, average=0.0)
    data = blobs(160)
    tuned = run(options, data=data)
    losses = [row.validation_loss for row in tuned.history]
    assert all(loss is not None for loss in losses)
    best = int(np.argmin(np.array(losses, float))) + 1
    assert tuned.best_epoch == best
    assert len(tuned.history) == best + 2 < 12
    ended = run(replace(options, epochs=best), data=data)
    assert ended.best_epoch == best
    np.testing.assert_array_equal(flat(tuned), flat(ended))


def test_without_samples_held_out_the_last_epoch_is_kept() -> None:
    tuned = run(replace(SHORT, validation=0, patience=1, epochs=3))
    assert [row.validation_loss for row in tuned.history] == [None] * 3
    assert [row.accuracy for row in tuned.history] == [None] * 3
    assert tuned.best_epoch == 3


def test_what_is_validated_is_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accuracy told is that of the program with the weights kept, on the chips held out."""
    written = watch(monkeypatch)
    options = replace(SHORT, epochs=1, validation=32, validation_chips=3)
    data = blobs(SAMPLES)
    quiet = frozenset({"failures", "spread", "dac", "adc"})
    tuned = run(options, data=data, effects=quiet)
    held = data.take(held_out(data, options, 0))
    program = rewrite(cases.program(), tuned.weights, tuned.biases)
    assert held.labels is not None
    right = []
    for seed in [one.seed for one in written if not one.training]:
        chip = Chip.sample(program.spec, program.arrays, seed)
        found = xbarc.simulate(program, chip, seed=seed, only=quiet)(held.inputs)[0]
        right.append((found.argmax(1) == held.labels).mean())
    assert len(right) == 3
    assert tuned.history[0].accuracy == pytest.approx(np.mean(right), abs=1e-9)


def test_losses_are_means_over_samples() -> None:
    """Also where the last batch is smaller: nothing is learnt at a learning rate of 0."""
    losses = [
        run(replace(SHORT, epochs=1, batch=batch, learning_rate=0.0, validation=0), effects=frozenset()).history[0].loss
        for batch in (SAMPLES, 24, 1)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


# -- wires ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wires", "refresh", "wanted"),
    [
        ("spec", 0, ["exact"] * 6 + ["exact"]),
        ("closed_form", 0, ["closed_form"] * 7),
        ("closed_form", 2, ["exact", "closed_form"] * 3 + ["exact"]),
        ("closed_form", 3, ["exact", "closed_form", "closed_form"] * 2 + ["exact"]),
    ],
)
def test_models_of_wires(wires: Any, refresh: int, wanted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, and in validation: exact ones wherever any step has them."""
    program = cases.program_of(WIRED | {"array.wire_model": "exact"})
    program = xbarc.remap(program, predistort=False)
    found = watch(monkeypatch)
    options = replace(SHORT, epochs=1, batch=10, validation=4, validation_chips=1, wires=wires, refresh=refresh)
    run(options, program=program)
    assert [one.wires for one in found] == wanted


# -- every option ---------------------------------------------------------------------------------------------------

CHANGED: dict[str, tuple[Any, dict[str, Any]]] = {
    "epochs": (3, {}),
    "batch": (8, {}),
    "learning_rate": (0.01, {}),
    "weight_decay": (0.5, {}),
    "schedule": ("linear", {}),
    "warmup": (0.6, {}),
    "average": (0.0, {}),
    "distill": (0.5, {}),
    "temperature": (5.0, {"distill": 1.0}),
    "distance": ("squared", {"distill": 1.0}),
    "smoothing": (0.3, {}),
    "rates": ((0.0, 0.5), {}),
    "ramp": (2.0, {}),
    "resample": (2, {}),
    "limit": (0.05, {"weight_decay": 0.01}),
    "wires": ("closed_form", {}),
    "refresh": (2, {"wires": "closed_form"}),
    "validation": (0.4, {}),
}
"""Each with another value, and what it needs beside it; the rest is tested by what it does."""
ELSEWHERE = {"clip", "validation_chips", "patience", "augmentation"}


def teacher(feeds: Any) -> list[npt.NDArray[Any]]:
    """Scores of some linear model."""
    weights = np.random.default_rng(8).standard_normal((cases.FEATURES, cases.CLASSES)).astype(np.float32)
    return [feeds["x"] @ weights]


def test_no_option_is_forgotten() -> None:
    assert {*CHANGED} | ELSEWHERE == {*TuneOptions.__dataclass_fields__}


@pytest.mark.parametrize("name", CHANGED)
def test_each_option_changes_the_weights(name: str) -> None:
    value, beside = CHANGED[name]
    program = None
    if name in ("wires", "refresh"):
        program = xbarc.remap(cases.program_of(WIRED), predistort=False)
    options = replace(SHORT, **beside)
    found = [flat(run(one, teacher=teacher, program=program)) for one in (options, replace(options, **{name: value}))]
    assert not np.array_equal(found[0], found[1])


def test_augmentation_changes_images_alone() -> None:
    dims = (1, 2, 4)
    program = cases.program_of(dims=dims)
    data = blobs(SAMPLES, dims=dims)
    changes = xbarc.Augmentation(crop=1, flip=True)
    found = [flat(run(one, program=program, data=data)) for one in (SHORT, replace(SHORT, augmentation=changes))]
    assert not np.array_equal(found[0], found[1])
    with pytest.raises(DataError, match=r"augmentation must have inputs that are images"):
        run(replace(SHORT, augmentation=changes))


WRONG: list[tuple[str, Any]] = [
    *((name, value) for name in ("epochs", "batch", "resample", "patience") for value in (0, -1, 1.5, True, "2")),
    ("validation_chips", 0),
    ("learning_rate", -1.0),
    ("learning_rate", math.nan),
    ("learning_rate", "fast"),
    ("weight_decay", -0.1),
    ("schedule", "step"),
    ("warmup", 1.5),
    ("average", 1.0),
    ("average", -0.5),
    ("distill", 2.0),
    ("distill", math.nan),
    ("temperature", 0.0),
    ("smoothing", 1.1),
    ("rates", (2.0, 1.0)),
    ("rates", (-1.0, 1.0)),
    ("rates", (0.0, math.inf)),
    ("rates", (math.nan, 1.0)),
    ("rates", (1.0,)),
    ("ramp", -1.0),
    ("clip", 0.0),
    ("clip", math.nan),
    ("limit", 0.0),
    ("wires", "perfect"),
    ("refresh", -1),
    ("refresh", True),
    ("validation", -0.1),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_options_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    with pytest.raises(DataError, match=f"^{name} must be"):
        TuneOptions(**{name: value})


# -- what comes of it -----------------------------------------------------------------------------------------------


def test_weights_of_a_known_chip_are_all_within_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """After every step; and what its devices then hold classifies no worse on it than before."""
    program, chip = cases.mapped(), Chip.sample(cases.program().spec, cases.program().arrays, 5)
    write = CrossbarModule.write

    def watched(module: CrossbarModule, *arguments: Any) -> None:
        for layer, weight in zip(module.layers, module.weights, strict=True):
            low, high = (torch.from_numpy(end.astype(np.float32)) for end in reachable_weights(program, layer))
            off = 1e-6 * weight.detach().abs().max()  # in single precision
            assert (weight >= low - off).all()
            assert (weight <= high + off).all()
        write(module, *arguments)

    monkeypatch.setattr(CrossbarModule, "write", watched)
    tuned = run(replace(SHORT, epochs=6, batch=32), "aware", chip=chip, data=blobs(256))
    for layer, weight in tuned.weights.items():
        low, high = (end.astype(np.float32) for end in reachable_weights(program, layer))
        assert (weight >= low).all()
        assert (weight <= high).all()
        start = CrossbarModule(program).weights[list(tuned.weights).index(layer)].detach().numpy()
        assert (weight != start).mean() > 0.8
    data = blobs(500, 1)
    before, after = (
        cases.accuracy(one, data, [chip]) for one in (program, rewrite(program, tuned.weights, tuned.biases))
    )
    assert after >= before


def test_seeds_decide_everything() -> None:
    """Bit for bit, whatever was computed in between; a batch that is no multiple, noise and a teacher included."""
    options = replace(SHORT, batch=12, distill=0.5)
    for mode in ("agnostic", "aware"):
        first = run(options, mode, seed=7, teacher=teacher)
        torch.rand(3)
        np.random.seed(0)  # noqa: NPY002  # nobody draws from it
        again = run(options, mode, seed=7, teacher=teacher)
        other = run(options, mode, seed=8, teacher=teacher)
        np.testing.assert_array_equal(flat(first), flat(again))
        assert [replace(row, seconds=0) for row in first.history] == [replace(row, seconds=0) for row in again.history]
        assert not np.array_equal(flat(first), flat(other))


def test_a_teacher_must_be_there_to_teach() -> None:
    with pytest.raises(DataError, match="distillation must have the original model"):
        run(replace(SHORT, distill=0.5))


# -- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "count"), [(15, 2), (16, 3), (2, 2), (1, 2), (2, 5)])
def test_processes_take_all_samples_and_weigh_them_alike(samples: int, count: int) -> None:
    """Every sample counts as much as every other in the loss of all together, which is a mean."""
    chosen, weights = np.arange(samples) * 3, np.zeros(3 * samples)
    for rank in range(count):
        processes = Processes()
        processes.count, processes.rank = count, rank
        part, share = processes.share(chosen)
        assert len(part) > 0
        weights[part] += share / len(part)
    np.testing.assert_allclose(weights[chosen], 1 / samples)


def test_the_first_process_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert is_first()
    monkeypatch.setenv("RANK", "1")
    assert is_first(), "a rank without a launcher that started several"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_first()
    monkeypatch.setenv("RANK", "0")
    assert is_first()
