"""``make evidence``: the headline claims on real data, on the CPU; see docs/evidence/README.md.

``python -m tests.studies.evidence a`` runs one study (a to d) and leaves the others' results.
"""

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from tests.studies.evidence.document import keep
from tests.studies.evidence.protocols import FULL, SHORT
from tests.studies.evidence.report import Made, Report, read
from tests.studies.evidence.studies import NAMES, run

LETTERS = dict(zip("abcd", NAMES, strict=True))
FOLDER = Path(__file__).parents[3] / "docs" / "evidence"


def main() -> None:
    arguments = _arguments()
    if arguments.study == "all":
        names, report = NAMES, Report()
    else:
        names, report = (LETTERS[arguments.study],), read(arguments.folder)
    started = time.monotonic()
    found = run(names, protocols=FULL if arguments.full else SHORT)
    wall_seconds = time.monotonic() - started
    for name, (result, cpu_seconds) in found.items():
        made = Made(
            date=datetime.now(UTC).date().isoformat(),
            command=_command(arguments),
            cpu_seconds=cpu_seconds,
            wall_seconds=wall_seconds,
            torch_version=torch.__version__,
        )
        report = report.with_study(name, result, made)
    keep(report, arguments.folder)
    print(f"{wall_seconds:.0f} s; written: {arguments.folder}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.studies.evidence", description=__doc__)
    parser.add_argument("study", nargs="?", default="all", choices=[*LETTERS, "all"])
    parser.add_argument(
        "--full", action="store_true", help="a longer language model; about 40 minutes"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results go")
    return parser.parse_args()


def _command(arguments: argparse.Namespace) -> str:
    full = " --full" if arguments.full else ""
    return f"python -m tests.studies.evidence {arguments.study}{full}"


if __name__ == "__main__":
    main()
