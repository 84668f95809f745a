"""Draws all figures of docs/theory and writes its table: ``python -m tests.studies.theory``."""

import io
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import matplotlib as mpl
from matplotlib import pyplot as plt
from PIL import Image

from tests.studies.theory import (
    best_schedule,
    comparison,
    cooldown,
    cosine_cycle,
    extension,
    gradient_norms,
    horizons,
    rate_transfer,
    regression,
    terms,
)
from tests.studies.theory.record import Study
from tests.studies.theory.table import table

FOLDER = Path(__file__).parents[3] / "docs" / "theory"
COMMAND = "python -m tests.studies.theory"
STUDIES = [
    module.STUDY
    for module in (
        comparison,
        horizons,
        cooldown,
        rate_transfer,
        extension,
        cosine_cycle,
        gradient_norms,
        terms,
        best_schedule,
        regression,
    )
]
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.fontsize": 8,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
    "lines.linewidth": 1.5,
}
PANEL_INCHES = (3.3, 2.7)
DOTS_PER_INCH = 120
#: Enough for lines, and a third of the size.
NUM_COLOURS = 64


def all_studies() -> list[Study]:
    """Those that need PEPit only where it is installed."""
    if find_spec("PEPit") is None:
        print("lower-bound: left out, as PEPit is not installed (pip install pepit)")
        return STUDIES
    return [*STUDIES, import_module("tests.studies.theory.lower_bound").STUDY]


def draw(study: Study, folder: Path) -> None:
    """Write the study's figure."""
    width, height = PANEL_INCHES
    figure, axes = plt.subplots(
        1, study.num_panels, figsize=(width * study.num_panels, height), layout="constrained"
    )
    study.draw(axes)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DOTS_PER_INCH)
    plt.close(figure)
    small = Image.open(drawn).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
    small.save(folder / f"{study.name}.png", optimize=True)


def main(names: Sequence[str]) -> None:
    """Run the named studies, or all; only all of them write the table."""
    mpl.use("Agg")
    FOLDER.mkdir(exist_ok=True)
    studies = all_studies()
    with mpl.rc_context(STYLE):
        for study in studies:
            if not names or study.name in names:
                started = perf_counter()
                draw(study, FOLDER)
                print(f"{study.name}: {perf_counter() - started:.1f} s")
    if not names:
        text = table(studies, command=COMMAND, day=datetime.now(UTC).date())
        (FOLDER / "table.md").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
