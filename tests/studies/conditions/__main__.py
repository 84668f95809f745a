"""Writes the tables of docs/conditions.md: ``python -m tests.studies.conditions``."""

import re
import warnings

import torch
from conditions import CONDITIONS, outcome
from conditions_table import DOCUMENT, legend, numbered, table
from optim_makes import NAMES


def main() -> None:
    """Run every condition with every optimizer and write what came of it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seen = {(name, one.key): outcome(name, one) for name in NAMES for one in CONDITIONS}
    text = DOCUMENT.read_text()
    for mark, part in (("list", numbered()), ("table", table(seen)), ("legend", legend(seen))):
        place = rf"(?<=<!-- {mark} -->\n).*?(?=<!-- end -->)"
        text = re.sub(place, lambda _, part=part: part, text, count=1, flags=re.DOTALL)
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
