"""What the studies set out to reach, and whether they do: a target is reached when all of the interval reaches it.

Accuracies are those of the same chips and images on both sides of a difference; intervals are 95 % by bootstrap over
chips and images (`studies.trials.estimate`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from studies.charan2020 import PRESETS
from studies.kim2020 import CASES, KNOWN
from studies.liu2017 import FAILURES, NETWORKS
from studies.trials import Rows, estimate, rights

Found = Mapping[str, Any]
AWARE, BASELINE = "aware, re-estimated", "baseline"
KNOWN_BOUNDS = {"known-5": 0.3, "known-10.79-hrs": 0.6, "known-10.79-lrs": 0.6}
"""Points that compiling and tuning for a known map may lose."""
LIU_BOUNDS = {"at g_max": ("tuned", 99.5), "beyond range": ("replicas", 99.0)}
"""At 20 % failed devices: which program, and its share of the fault-free accuracy in percent."""
EXCEEDING = 1.0
"""Points that a baseline loses at least, where training is to halve it."""


@dataclass(frozen=True)
class Target:
    """One line of what is to be reached.

    Attributes
    ----------
    what
        In words.
    failed
        Shares of failed devices and of failed pairs.
    measured
        Value and both ends of its interval, in points or percent.
    bound, wanted
        What it is to be, at least or at most; None where there is no target.
    chips
        Accuracy of each chip of the program that is judged.
    images
        Of each chip.
    """

    what: str
    failed: tuple[float, float] | None
    measured: tuple[float, float, float]
    bound: float | None
    wanted: Literal["at least", "at most"]
    chips: tuple[float, ...]
    images: int

    @property
    def verdict(self) -> str:
        """``reached`` or ``missed`` where the whole interval lies on one side; ``open`` where the bound is inside."""
        if self.bound is None:
            return "no target"
        signed = [value - self.bound if self.wanted == "at least" else self.bound - value for value in self.measured]
        return "reached" if min(signed) >= 0 else "missed" if max(signed) < 0 else "open"

    def row(self) -> list[str]:
        """As the cells of a table, under `HEAD`."""
        value, low, high = self.measured
        accuracies = np.array(self.chips)
        return [
            self.what,
            "" if self.failed is None else f"{self.failed[0]:.2%} of devices, {self.failed[1]:.2%} of pairs",
            f"{value:.2f} ({low:.2f} to {high:.2f})",
            "" if self.bound is None else f"{self.wanted} {self.bound:g}",
            self.verdict,
            f"{accuracies.mean():.2%}, {np.quantile(accuracies, 0.05):.2%}, {accuracies.min():.2%}",
            f"{len(accuracies)} x {self.images}",
        ]


HEAD = [
    "measured",
    "failed",
    "value (95 % interval)",
    "target",
    "",
    "accuracy: mean, 5th percentile of chips, worst chip",
    "chips x images",
]


def kim_targets(found: Found) -> Iterator[Target]:
    """What training for a type of defect loses beside half of what the baseline does, and with the map known."""
    for name, case in CASES.items():
        good = found.get(f"{name}: {BASELINE} 0", {})
        for rate in case.targets:
            base, aware = (found.get(f"{name}: {way} {rate:g}", {}) for way in (BASELINE, AWARE))
            if "right" not in good or "right" not in base or "right" not in aware:
                continue
            before, after, trained = rights(good), rights(base), rights(aware)
            lost, low, high = _percent(before - after, good["of"])
            own = 100 * float((before - trained).mean())
            yield Target(
                f"kim2020, {case.what}: points lost beyond half of what the baseline loses"
                f" ({own:.2f}, baseline {lost:.2f} ({low:.2f} to {high:.2f}))",
                (rate, rate),
                _percent((before + after) / 2 - trained, good["of"]),
                0.0 if lost > EXCEEDING else None,
                "at most",
                tuple(aware["chips"]),
                aware["samples"],
            )
    for name, fields in KNOWN.items():
        chips = [row for key, row in found.items() if key.startswith(f"{name}: ") and "right" in row]
        if chips:
            good_rows, tuned = _of(chips, "fault-free"), _of(chips, "tuned")
            yield Target(
                f"kim2020, map known: points lost, compiled and tuned ({_polarities(fields)})",
                _devices_and_pairs(sum(fields.values())),
                _percent(good_rows - tuned, chips[0]["of"]),
                KNOWN_BOUNDS[name],
                "at most",
                tuple(tuned.mean(1)),
                chips[0]["samples"],
            )


def cao_targets(found: Found) -> Iterator[Target]:
    """Accuracy with every effect, and points under the same topology without hardware."""
    plain = found.get("plain, converters", {})
    for way in ("every effect", "re-estimated"):
        tuned = found.get(f"tuned, {way}", {})
        if "right" not in tuned or "right" not in plain:
            continue
        good, judged = rights(plain), rights(tuned)
        told = "cao2022, every effect" + (", re-estimated" if way == "re-estimated" else "")
        each: tuple[tuple[str, Rows, float, Literal["at least", "at most"]], ...] = (
            ("accuracy in percent", judged, 85, "at least"),
            ("points under the best network without hardware effects", good - judged, 1.5, "at most"),
        )
        for what, values, bound, wanted in each:
            measured, chips = _percent(values, tuned["of"]), tuple(tuned["chips"])
            yield Target(f"{told}: {what}", None, measured, bound, wanted, chips, tuned["samples"])


def liu_targets(found: Found) -> Iterator[Target]:
    """Shares of the fault-free accuracy at 20 % failed devices."""
    for name in NETWORKS:
        for kind in FAILURES:
            way, bound = LIU_BOUNDS[kind]
            start = f"{name}, {kind}, 0.2, chip "
            chips = [row for key, row in found.items() if key.startswith(start) and "right" in row]
            if chips:
                judged, good = _of(chips, way), _of(chips, "fault-free")
                told = {"tuned": "mapped and tuned", "replicas": "mapped, eight tiles a block"}[way]
                yield Target(
                    f"liu2017, {name}, stuck {kind}, {told}: percent of fault-free",
                    _devices_and_pairs(0.2),
                    _percent(judged, chips[0]["of"], good),
                    bound,
                    "at least",
                    tuple(judged.mean(1)),
                    chips[0]["samples"],
                )


def charan_targets(found: Found) -> Iterator[Target]:
    """What distillation without labels recovers, as a share of what labels do."""
    for told in PRESETS:
        rows = [found.get(f"{told}, {way}", {}) for way in ("before", "labels", "distillation")]
        if all("right" in row for row in rows):
            before, labels, distilled = (rights(row) for row in rows)
            yield Target(
                f"charan2020, {told}: distillation, percent of what labels recover",
                _devices_and_pairs(0.1079),
                _percent(distilled - before, rows[0]["of"], labels - before),
                80,
                "at least",
                tuple(rows[2]["chips"]),
                rows[2]["samples"],
            )


TARGETS: dict[str, Callable[[Found], Iterator[Target]]] = {
    "kim2020": kim_targets,
    "cao2022": cao_targets,
    "liu2017": liu_targets,
    "charan2020": charan_targets,
}


def _percent(values: Rows, samples: int, of: Rows | None = None) -> tuple[float, float, float]:
    """An estimate and both ends of its interval in percent, or points."""
    value, low, high = estimate(values, samples, of)
    return 100 * value, 100 * low, 100 * high


def _devices_and_pairs(share: float) -> tuple[float, float]:
    """The share of failed devices, and that of pairs with one."""
    return share, 1 - (1 - share) ** 2


def _of(chips: list[Any], way: str) -> Rows:
    """Which samples each chip gets right with a program, ``(chips, samples)``."""
    return rights({"samples": chips[0]["samples"], "right": [row["right"][way] for row in chips]})


def _polarities(fields: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * fields[f'failures.stuck_{kind}.rate']:g} % {kind.upper()}" for kind in ("hrs", "lrs"))
