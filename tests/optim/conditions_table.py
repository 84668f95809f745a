"""The tables of docs/conditions.md, written from outcomes and read again."""

import re
import string
from collections.abc import Mapping
from pathlib import Path

from conditions import CONDITIONS, NONE, RIGHT
from optim_makes import NAMES

DOCUMENT = Path(__file__).parents[2] / "docs" / "conditions.md"
#: In a cell: right; nothing there to which the condition could apply. Letters are refusals.
_MARKS = {RIGHT: "+", NONE: "0"}

Outcomes = Mapping[tuple[str, str], str]


def sentence(name: str, refusal: str) -> str:
    """A refusal on one line, the same for all optimizers."""
    general = re.sub(r"^state '\w+'", "state 'NAME'", refusal.replace(name, "NAME"))
    return " ".join(general.split())


def numbered() -> str:
    """Return the list of conditions."""
    rows = (f"{i}. {one.given}: {one.right}\n" for i, one in enumerate(CONDITIONS, start=1))
    return "".join(rows)


def table(seen: Outcomes) -> str:
    """Return a row for each optimizer and a column for each condition."""
    letters = _letters(seen)
    heads = ["optimizer", *(str(i) for i in range(1, len(CONDITIONS) + 1))]
    rows = [heads, ["---"] + [":-:"] * len(CONDITIONS)]
    for name in NAMES:
        cells = [_MARKS.get(seen[name, one.key]) for one in CONDITIONS]
        refused = [letters.get(sentence(name, seen[name, one.key])) for one in CONDITIONS]
        rows.append([f"`{name}`", *(str(a or b) for a, b in zip(cells, refused, strict=True))])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def legend(seen: Outcomes) -> str:
    """Return the sentences behind the letters."""
    return "".join(f"- **{letter}**: {said}\n" for said, letter in _letters(seen).items())


def _letters(seen: Outcomes) -> dict[str, str]:
    refusals = (
        sentence(name, said) for (name, _), said in seen.items() if said not in (RIGHT, NONE)
    )
    return dict(zip(sorted(set(refusals)), string.ascii_lowercase, strict=False))


def documented() -> dict[tuple[str, str], str]:
    """Return what the document says of each optimizer and condition, refusals as sentences."""
    text = DOCUMENT.read_text()
    marks = {mark: said for said, mark in _MARKS.items()}
    for line in _part(text, "legend"):
        letter, _, said = line.removeprefix("- **").partition("**: ")
        marks[letter] = said
    found = {}
    for line in _part(text, "table")[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for one, cell in zip(CONDITIONS, cells, strict=True):
            found[name.strip("`"), one.key] = marks[cell]
    return found


def _part(text: str, mark: str) -> list[str]:
    return text.partition(f"<!-- {mark} -->\n")[2].partition("<!-- end -->")[0].splitlines()
