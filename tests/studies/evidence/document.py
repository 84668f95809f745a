"""The folder that the studies write: results, tables and figures of one report."""

from pathlib import Path

from tests.studies.evidence.figures import draw
from tests.studies.evidence.report import Report, write
from tests.studies.evidence.table import render

TABLE_FILE = "table.md"


def keep(report: Report, folder: Path) -> None:
    """Write the report's JSON, its tables and its figures into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write(report, folder)
    (folder / TABLE_FILE).write_text(render(report))
    draw(report, folder)
