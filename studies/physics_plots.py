"""The figures of ``docs/physics.md``: ``python -m studies.physics_plots [--output FOLDER]``.

Every curve is computed by the functions that programs run with. Figures are the same bytes at every run with the pinned
version of matplotlib.
"""

import argparse
from pathlib import Path

from studies import array_plots, chip_plots, device_plots, failure_plots, periphery_plots
from studies.plot_style import Draw, Effort, write

FIGURES: dict[str, Draw] = {
    **chip_plots.FIGURES,
    **device_plots.FIGURES,
    **failure_plots.FIGURES,
    **array_plots.FIGURES,
    **periphery_plots.FIGURES,
}
"""By the name of their file."""
OUTPUT = Path("docs/images/physics")


def draw_all(output: Path, effort: Effort | None = None) -> list[Path]:
    """Draw every figure as SVG into a folder; what is left out of `effort` is that of the documentation."""
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{name}.svg" for name in FIGURES]
    for draw, path in zip(FIGURES.values(), paths, strict=True):
        write(draw, effort or Effort(), path)
    return paths


def main() -> None:
    """Draw, and print what was written."""
    parser = argparse.ArgumentParser(description="Draw the figures of docs/physics.md.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder to write to (default: {OUTPUT})")
    for path in draw_all(parser.parse_args().output):
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
