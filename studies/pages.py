"""Curves and tables of the studies, in ``docs/studies.md`` and the README, from the results in ``studies/results``.

``python -m studies.pages [--from FOLDER]`` takes over what studies left in ``FOLDER/NAME`` (their ``--out``) first.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.results import ROOT, write_between
from studies.cao2022 import FLOAT, MODELS, OHMS, PLAIN
from studies.charan2020 import PRESETS, WAYS
from studies.kim2020 import CASES, KNOWN, KNOWN_WAYS, RATES
from studies.kim2020 import WAYS as KIM_WAYS
from studies.liu2017 import FAILURES, NETWORKS
from studies.liu2017 import RATES as LIU_RATES
from studies.plot_style import BLUE, GREEN, GREY, ORANGE, RED, Effort, label, panels, write
from studies.targets import HEAD, TARGETS
from studies.trials import merged

RESULTS = Path(__file__).parent / "results"
IMAGES = ROOT / "docs" / "images" / "studies"
CAO_WAYS = ("converters", "every effect", "re-estimated")
ALL_RATES = (0.0, *RATES)
Found = Mapping[str, Any]


def take_over(name: str, folder: Path) -> None:
    """Put the results that a study left in a folder beside those that are kept."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        return
    kept = RESULTS / f"{name}.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for path in paths:
        here = merged([path])
        found |= here if path.stem == "results" else {f"{path.stem}: {key}": value for key, value in here.items()}
    RESULTS.mkdir(exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def results(name: str) -> Found:
    """The results of a study."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def percent(value: float) -> str:
    """A share in percent."""
    return f"{value:.2%}"


def interval(row: Mapping[str, Any]) -> str:
    """Accuracy and its 95 % interval."""
    low, high = row["ci95"]
    return f"{row['mean']:.2%} ({low:.2%} to {high:.2%})"


def spread(row: Mapping[str, Any]) -> str:
    """Accuracy and its 95 % interval, 5th percentile of chips and worst chip."""
    chips = row["chips"]
    return f"{interval(row)}; {np.quantile(chips, 0.05):.2%}, {min(chips):.2%}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def kim_drops(found: Found, case: str) -> dict[str, list[tuple[float, float]]]:
    """Drop in points over the rate, of each program of a case, against its baseline without defects."""
    good = found.get(f"{case}: baseline 0", {}).get("mean")
    drops: dict[str, list[tuple[float, float]]] = {}
    for way in KIM_WAYS:
        rows = [(rate, found.get(f"{case}: {way} {rate:g}")) for rate in ALL_RATES]
        drops[way] = [(rate, 100 * (good - row["mean"])) for rate, row in rows if row is not None and good is not None]
    return drops


def kim_table(found: Found) -> str:
    """Drops of every case that was run."""
    rows = []
    for case, one in CASES.items():
        for way, drops in kim_drops(found, case).items():
            if drops:
                at = dict(drops)
                rows.append([one.what, way, *(f"{at[rate]:.2f}" if rate in at else "" for rate in ALL_RATES)])
    bases = [name for name in ("baseline-pair", "baseline-single") if f"{name}: 0" in found]
    good = [f"{name}: {spread(found[f'{name}: 0'])}" for name in bases]
    return (
        "Without defects, "
        + "; ".join(good)
        + ".\n\n"
        + table(["defect", "training", *(f"{100 * rate:g} %" for rate in ALL_RATES)], rows)
        + "\n\n"
        + known_table(found)
    )


def known_rows(found: Found) -> list[tuple[str, dict[str, float], int]]:
    """Shares of known failed devices, accuracy each way, and chips that it is the mean of."""
    rows = []
    for name, fields in KNOWN.items():
        chips = [row for key, row in found.items() if key.startswith(f"{name}: ")]
        if chips:
            shares = {kind: 100 * fields[f"failures.stuck_{kind}.rate"] for kind in ("hrs", "lrs")}
            told = ", ".join(f"{share:g} % {kind.upper()}" for kind, share in shares.items())
            ways = {way: float(np.mean([chip[way] for chip in chips])) for way in KNOWN_WAYS}
            rows.append((told, ways, len(chips)))
    return rows


def known_table(found: Found) -> str:
    """Accuracies on chips whose failed devices are known."""
    rows = [[told, *map(percent, ways.values()), str(chips)] for told, ways, chips in known_rows(found)]
    return table(["failed devices, map known", *KNOWN_WAYS, "chips"], rows)


def kim_plot(found: Found) -> Callable[[Effort], Figure]:
    """Drop over the rate."""

    def draw(_effort: Effort) -> Figure:
        cases = [case for case in ("weight-0", "weight-1") if kim_drops(found, case)["aware"]]
        figure, axes = panels(*(CASES[case].what for case in cases) if cases else ("no results",))
        for axis, case in zip(axes, cases, strict=False):
            for way, colour in zip(KIM_WAYS, (ORANGE, GREY, BLUE, GREEN), strict=True):
                drops = kim_drops(found, case)[way]
                x, y = [100 * rate for rate, _ in drops if rate], [drop for rate, drop in drops if rate]
                if x:
                    axis.semilogx(x, y, "o-", color=colour, label=way)
            label(axis, "defective weights, %", "accuracy lost, points")
        return figure

    return draw


STRUCTURES: dict[str, dict[str, str]] = {
    "Single device against a reference": {
        "unformed-single": GREY,
        "overformed-single-at-max": BLUE,
        "overformed-single-at-1.25": ORANGE,
        "overformed-single-to-4": RED,
    },
    "Pair": {
        "unformed-pair": GREY,
        "overformed-pair-at-max": BLUE,
        "overformed-pair-at-1.25": ORANGE,
        "overformed-pair-to-4": RED,
        "zero": GREEN,
    },
}
"""Cases of failed devices by the structure of the cell, each with its colour."""


def kim_devices_plot(found: Found) -> Callable[[Effort], Figure]:
    """Drop over the rate of failed devices, re-estimated: trained for them, and dotted the baseline."""

    def draw(_effort: Effort) -> Figure:
        figure, axes = panels(*STRUCTURES, height=3.4)
        for axis, cases in zip(axes, STRUCTURES.values(), strict=True):
            for case, colour in cases.items():
                for way, dashes in ((KIM_WAYS[1], ":"), (KIM_WAYS[3], "-")):
                    drops = [(100 * rate, drop) for rate, drop in kim_drops(found, case)[way] if rate]
                    if drops:
                        axis.semilogx(*np.transpose(drops), dashes, marker=".", color=colour)
            label(axis, "failed devices, %", "accuracy lost, points", legend=None)
        told = {colour: CASES[case].what.removeprefix("pair, ") for case, colour in STRUCTURES["Pair"].items()}
        handles = [Line2D([], [], color=colour) for colour in told]
        figure.legend(handles, [*told.values()], loc="outside lower center", ncols=3)
        return figure

    return draw


def cao_table(found: Found) -> str:
    """Accuracy with every effect, without each, and over the resistance of wires."""
    told = {"plain": "trained without hardware", "noisy": "on model devices", "tuned": "fine-tuned on the hardware"}
    rows = [
        [
            told[name],
            *(spread(found[f"{name}, {what}"]) if f"{name}, {what}" in found else "" for what in CAO_WAYS),
        ]
        for name in told
    ]
    first = table(["network", "converters alone", "every effect", "every effect, re-estimated"], rows)
    effects = [key.removeprefix("tuned, without ") for key in found if key.startswith("tuned, without ")]
    rows = [[effect, *(_mean(found, f"{name}, without {effect}") for name in ("plain", "tuned"))] for effect in effects]
    second = table(["every effect but", "trained without hardware", "fine-tuned"], rows)
    rows = [[f"{ohms:g}", *(_mean(found, f"{name}, {ohms:g} ohm") for name in ("plain", "tuned"))] for ohms in OHMS]
    third = table(["ohm a segment", "trained without hardware", "fine-tuned at 0.5 ohm"], rows)
    return "\n\n".join((first, second, third))


def _mean(found: Found, key: str) -> str:
    return percent(found[key]["mean"]) if key in found else ""


def cao_plot(found: Found) -> Callable[[Effort], Figure]:
    """Accuracy over the resistance of wires, and without each effect."""

    def draw(_effort: Effort) -> Figure:
        figure, axes = panels("Wires", "Every effect but one")
        for name, told, colour in (("plain", "trained without hardware", ORANGE), ("tuned", "fine-tuned", BLUE)):
            keys = [(ohms, f"{name}, {ohms:g} ohm") for ohms in OHMS]
            points = [(ohms, found[key]["mean"]) for ohms, key in keys if key in found]
            axes[0].plot([x for x, _ in points], [100 * y for _, y in points], "o-", color=colour, label=told)
        label(axes[0], "resistance of a segment, ohm", "accuracy, %")
        _bars(axes[1], found)
        return figure

    return draw


def _bars(axis: Axes, found: Found) -> None:
    effects = [key.removeprefix("tuned, without ") for key in found if key.startswith("tuned, without ")]
    for number, (name, colour) in enumerate((("plain", ORANGE), ("tuned", BLUE))):
        values = [100 * found.get(f"{name}, without {effect}", {"mean": 0.0})["mean"] for effect in effects]
        axis.barh(np.arange(len(effects)) + 0.4 * number, values, 0.38, color=colour)
    axis.set_yticks(np.arange(len(effects)) + 0.2, effects)
    label(axis, "accuracy, %", "left out", legend=None)


def liu_rows(found: Found) -> list[tuple[str, str, float, dict[str, float]]]:
    """Network, kind of failure, rate, and mean over chips of each way's share of the fault-free accuracy."""
    rows = []
    for name in NETWORKS:
        for kind in FAILURES:
            for rate in LIU_RATES:
                start = f"{name}, {kind}, {rate:g}, chip "
                chips = [row for key, row in found.items() if key.startswith(start)]
                if chips:
                    ways = [way for way in ("naive", "mapped", "tuned", "replicas") if way in chips[0]]
                    shares = {way: float(np.mean([row[way] / row["fault-free"] for row in chips])) for way in ways}
                    shares["fault-free"] = float(np.mean([row["fault-free"] for row in chips]))
                    rows.append((name, kind, rate, shares | {"chips": len(chips)}))
    return rows


def liu_table(found: Found) -> str:
    """Shares of the fault-free accuracy."""
    rows = [
        [name, kind, f"{rate:.0%}", percent(row["fault-free"])]
        + [percent(row[way]) if way in row else "" for way in ("naive", "mapped", "tuned", "replicas")]
        + [f"{row['chips']:g}"]
        for name, kind, rate, row in liu_rows(found)
    ]
    ways = ["naive", "mapped", "and tuned", "mapped, 8 tiles a block"]
    head = ["network", "failed devices", "share", "fault-free", *ways, "chips"]
    return table(head, rows)


def liu_plot(found: Found) -> Callable[[Effort], Figure]:
    """Shares of the fault-free accuracy as bars."""

    def draw(_effort: Effort) -> Figure:
        rows = liu_rows(found)
        figure, axes = panels("Accuracy as a share of the fault-free one, %", height=3.2)
        colours = {"naive": GREY, "mapped": ORANGE, "tuned": BLUE, "replicas": GREEN}
        for number, (way, colour) in enumerate(colours.items()):
            values = [100 * row.get(way, 0.0) for *_, row in rows]
            axes[0].barh(np.arange(len(rows)) - 0.2 * number, values, 0.18, color=colour, label=way)
        names = [f"{name}, {kind}, {rate:.0%}" for name, kind, rate, _ in rows]
        axes[0].set_yticks(np.arange(len(rows)) - 0.3, names)
        axes[0].set_xlim(0, 101)
        label(axes[0], "share, %", "", legend=None)
        figure.legend(loc="outside lower center", ncols=len(colours))
        return figure

    return draw


def charan_table(found: Found) -> str:
    """Accuracy before and after, and the share of the loss that is recovered."""
    rows = []
    for told in PRESETS:
        if f"{told}, fault-free" not in found or f"{told}, before" not in found:
            continue
        good, before = found[f"{told}, fault-free"]["mean"], found[f"{told}, before"]["mean"]
        rows.append([told, "none", percent(good), spread(found[f"{told}, before"]), ""])
        for way in WAYS:
            if f"{told}, {way}" in found:
                row = found[f"{told}, {way}"]
                gained = (row["mean"] - before) / (good - before)
                rows.append([told, way, percent(good), spread(row), percent(gained)])
    return table(["failed devices", "training", "without failures and spread", "accuracy", "recovered"], rows)


TABLES: dict[str, Callable[[Found], str]] = {
    "kim2020": kim_table,
    "cao2022": cao_table,
    "liu2017": liu_table,
    "charan2020": charan_table,
}
PICTURES: dict[str, tuple[str, Callable[[Found], Callable[[Effort], Figure]]]] = {
    "kim2020": ("kim2020", kim_plot),
    "kim2020-devices": ("kim2020", kim_devices_plot),
    "cao2022": ("cao2022", cao_plot),
    "liu2017": ("liu2017", liu_plot),
}
"""The study that each picture shows, and how it is drawn."""


def targets_table() -> str:
    """What was to be reached, in every study whose samples are kept."""
    return table(HEAD, [target.row() for name, of_study in TARGETS.items() for target in of_study(results(name))])


def readme_table() -> str:
    """Ours beside the papers' figures; what was not run is left out."""
    rows = []
    cao, liu, charan, kim = (results(name) for name in ("cao2022", "liu2017", "charan2020", "kim2020"))
    if "tuned, every effect" in cao:
        twin = json.loads((MODELS / FLOAT / "result.json").read_text(encoding="utf-8"))["test_accuracy"]
        plain = json.loads((MODELS / PLAIN / "result.json").read_text(encoding="utf-8"))["test_accuracy"]
        row = cao["tuned, every effect"]
        amount = f"{row['samples']} images, {len(row['chips'])} chips"
        ours = f"{interval(row)}, {amount}; 5000 images without hardware {plain:.2%}, in floating point {twin:.2%}"
        rows.append(["Cao 2022: VGG of 5 layers, 3-level weights, every effect", "83 %, less than 3 points lost", ours])
    for name, kind, rate, row in liu_rows(liu):
        if name == "one layer" and rate == 0.2:
            ways = ", ".join(f"{way} {row[way]:.2%}" for way in ("naive", "mapped", "tuned", "replicas") if way in row)
            paper = "98.1 %; 99.3 % with 5 % of columns remapped (second-hand)" if kind == "at g_max" else "not known"
            rows.append([f"Liu 2017: MNIST 784x10, 20 % stuck {kind}, share of fault-free", paper, ways])
    for told in PRESETS:
        if f"{told}, distillation" in charan:
            good, before = charan[f"{told}, fault-free"]["mean"], charan[f"{told}, before"]["mean"]
            after = [charan[f"{told}, {way}"]["mean"] for way in ("labels", "distillation")]
            gained = [(value - before) / (good - before) for value in after]
            ours = f"recovered by labels {gained[0]:.1%}, by distillation without labels {gained[1]:.1%}"
            rows.append([f"Charan 2020-like: LeNet-5, {told}", "VGG-16: 82.6 to 87.1 % (second-hand)", ours])
    for case in ("weight-0", "weight-1"):
        for way, drops in kim_drops(kim, case).items():
            ours = ", ".join(f"{round(drop, 1) + 0.0:.1f} at {100 * rate:g} %" for rate, drop in drops if rate >= 0.01)
            if ours:
                what = f"Kim 2020: ResNet-20, {CASES[case].what}, points lost, chips not seen, {way}"
                rows.append([what, "not available", ours])
    for told, means, chips in known_rows(kim):
        ours = ", ".join(f"{way} {percent(value)}" for way, value in means.items()) + f", {chips} chips"
        rows.append([f"Kim 2020: ResNet-20, map of failed devices known, {told}", "not available", ours])
    return table(["work", "reported", "ours, emitted programs"], rows)


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(prog="python -m studies.pages", description=__doc__)
    parser.add_argument("--from", dest="folder", type=Path, help="folder of the studies' folders of results")
    folder = parser.parse_args().folder
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, of_table in TABLES.items():
        if folder is not None:
            take_over(name, folder / name)
        if found := results(name):
            write_between(name, of_table(found).splitlines(), ROOT / "docs" / "studies.md")
    for picture, (name, of_plot) in PICTURES.items():
        if found := results(name):
            write(of_plot(found), Effort(), IMAGES / f"{picture}.svg")
    write_between("targets", targets_table().splitlines(), ROOT / "docs" / "studies.md")
    write_between("studies", readme_table().splitlines())


if __name__ == "__main__":
    main()
