"""The table of docs/theory: our numbers beside the published ones, as Markdown."""

from collections.abc import Iterable, Sequence
from datetime import date

from tests.studies.theory.record import Row, Study

HEAD = """# The bound's numbers

Ours beside those of the package `scheduled` (fabian-sp/lr-scheduling), measured with it, to the
digits that were noted. G = D = 1. Made by `{command}`, {day}.

[schedule-free.md](schedule-free.md) proves the bound that has no published numbers.
"""


def table(studies: Sequence[Study], *, command: str, day: date) -> str:
    """All studies: figure, caption and rows."""
    parts = [HEAD.format(command=command, day=day.isoformat())]
    parts += [section(study) for study in studies]
    return "\n".join(parts)


def section(study: Study) -> str:
    """One study."""
    lines = [
        f"## {study.name}",
        "",
        study.caption,
        "",
        f"![{study.name}]({study.name}.png)",
        "",
        "| quantity | ours | published |",
        "|---|---|---|",
        *cells(study.rows()),
        "",
    ]
    return "\n".join(lines)


def cells(rows: Iterable[Row]) -> list[str]:
    """One line a row; a published number that is not met shows the digits beyond it."""
    return [
        f"| {row.quantity} | {row.shown if row.agrees else f'{row.ours:.6g}'} "
        f"| {row.published or ''} |"
        for row in rows
    ]
