"""``python -m roadless.worker.head``: a private Ray head in the foreground, for one machine.

Prints one JSON line when it is up: the environment in which a driver connects. It ends along with
every process that it has started, on SIGTERM or SIGINT, and when one of Ray's own processes has
died: Ray replaces none of them. ``roadless up`` starts it, and starts another one then.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from roadless.worker.processes import adopt_orphans, configure_logging
from roadless.worker.runner.ray_cluster import RayStartError, kill_descendants, start_head

_ENDING = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Start the head, and run until a signal arrives or a part of it is gone."""
    arguments = _arguments()
    configure_logging()
    adopt_orphans()  # what a dead process of Ray's leaves behind is found below this one
    for number in _ENDING:
        signal.signal(number, _leave)
    try:
        _serve(arguments)
    except (RayStartError, OSError) as error:
        sys.exit(f"the Ray head cannot start: {error}")
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        kill_descendants()


def _serve(arguments: argparse.Namespace) -> None:
    head = start_head(
        arguments.home,
        num_cpus=arguments.num_cpus,
        num_gpus=arguments.num_gpus,
        node_ip=arguments.node_ip,
    )
    try:
        print(json.dumps(head.environment), flush=True)  # noqa: T201  the answer to who started it
        sys.exit(f"expected all of Ray's processes to run, saw: {head.wait()}")
    finally:
        head.stop()


def _leave(number: int, frame: object) -> None:
    del number, frame
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--home", type=Path, required=True, help="folder for the token file")
    parser.add_argument("--num-cpus", type=int, help="cores for training; default: all")
    parser.add_argument("--num-gpus", type=int, help="GPUs for training; default: all")
    parser.add_argument(
        "--node-ip",
        help="address at which other nodes reach it; default: it has none and listens on loopback",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
