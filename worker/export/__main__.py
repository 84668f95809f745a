"""``python -m roadless.worker.export FOLDER OUT --to onnx``: a downloaded model in another format.

What is written is loaded again and must give the model's own outputs; only then OUT appears. Prints
one JSON line; exit status 0 only when OUT is there.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from roadless.worker.errors import JobFailed
from roadless.worker.export.errors import ExportError
from roadless.worker.export.formats import FORMATS, export
from roadless.worker.rank_launch import ENVIRONMENTS
from roadless.worker.settings import RunnerSettings, SettingsError
from roadless.worker.wheels.environment import run_with_wheel


def main() -> None:
    """Export the folder named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m roadless.worker.export", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="a downloaded eval checkpoint")
    parser.add_argument("out", type=Path, help="a folder, which must not exist")
    parser.add_argument("--to", choices=FORMATS, required=True, help="the format")
    parser.add_argument("--wheel", type=Path, help="the wheel that the model comes from")
    arguments = parser.parse_args()
    try:
        settings = RunnerSettings.from_environment(os.environ)
        if arguments.wheel is not None:
            run_with_wheel(
                arguments.wheel,
                root=settings.scratch_here / ENVIRONMENTS,
                module="roadless.worker.export",
                arguments=[str(arguments.folder), str(arguments.out), "--to", arguments.to],
            )
        made = export(arguments.folder, arguments.out, to=arguments.to, settings=settings)
    except (ExportError, JobFailed, SettingsError, OSError) as error:
        sys.exit(f"nothing was exported: {error}")
    print(json.dumps(made))  # noqa: T201  the answer


if __name__ == "__main__":
    main()
