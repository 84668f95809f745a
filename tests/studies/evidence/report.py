"""All results in one value, and the file that keeps them."""

from pathlib import Path
from typing import Self

from tests.studies.evidence.anytime import AnytimeResult
from tests.studies.evidence.convex import ConvexResult
from tests.studies.evidence.language import LanguageResult
from tests.studies.evidence.prediction import PredictionResult
from tests.studies.evidence.record import Number, Record

RESULTS_FILE = "results.json"

Result = ConvexResult | AnytimeResult | PredictionResult | LanguageResult


class Made(Record):
    """When and how a study's result came to be."""

    date: str
    command: str
    cpu_seconds: Number
    #: Of the whole command, which may have run other studies at the same time.
    wall_seconds: Number
    torch_version: str


class Report(Record):
    """What is known; a study that never ran is None. Keys of ``made`` are the field names."""

    convex: ConvexResult | None = None
    anytime: AnytimeResult | None = None
    prediction: PredictionResult | None = None
    language: LanguageResult | None = None
    made: dict[str, Made] = {}

    def with_study(self, name: str, result: Result, made: Made) -> Self:
        """Return the report with this study in the place of what was there."""
        return self.model_copy(update={name: result, "made": {**self.made, name: made}})


def read(folder: Path) -> Report:
    """Return what the folder has, or an empty report where there is none."""
    path = folder / RESULTS_FILE
    return Report.model_validate_json(path.read_text()) if path.exists() else Report()


def write(report: Report, folder: Path) -> None:
    """Write the report as JSON."""
    (folder / RESULTS_FILE).write_text(report.model_dump_json(indent=1) + "\n")
