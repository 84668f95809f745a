"""Writes the table of docs/reproducibility.md: ``python -m tests.studies.last_bits``.

With ``--ends FILE`` it keeps where runs end instead, so that two processes can be compared.
"""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.optim.optim_makes import NAMES
from tests.studies.last_bits.partings import LastBit, ends, parting, still
from tests.studies.last_bits.problems import PROBLEMS

DOCUMENT = Path(__file__).parents[3] / "docs" / "reproducibility.md"
SEEDS = range(1, 6)
#: One of each arithmetic of SOAP, and one of each way of averaging.
KINDS = (
    *("SOAP", "PrecondSchedulePaLMForeachSOAP", "SFPaLMForeachSOAP"),
    *("AdamWScheduleFree", "SGDScheduleFree", "ForeachADOPT", "ScheduleFreeWrapper"),
)
_TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table() -> str:
    """Return a row for each optimizer and a column for each problem: the largest of five shakes."""
    heads = ["optimizer", *(problem.name for problem in PROBLEMS)]
    rows = [heads, ["---"] + ["--:"] * len(PROBLEMS), *_rows()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _rows() -> Iterator[list[str]]:
    for name in NAMES:
        cells = [f"`{name}`"]
        for problem in PROBLEMS:
            shaken = [ends(name, problem, shake=LastBit(seed)) for seed in SEEDS]
            cells.append(f"{max(parting(still(name, problem), one) for one in shaken):.0e}")
        yield cells


def many_ends() -> dict[str, Tensor]:
    """Return start and end of one optimizer of each kind, on each problem."""
    return {
        f"{name} {problem.__name__}": torch.stack(still(name, problem))
        for name in KINDS
        for problem in PROBLEMS
    }


def main() -> None:
    """Write the table, or the ends."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ends", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.ends:
        save_file(many_ends(), arguments.ends)
    else:
        DOCUMENT.write_text(_TABLE.sub(table(), DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
