"""``python -m roadless.worker.head``: a private Ray head in the foreground, for one machine.

Prints one JSON line with its address and token file when it is up; on SIGTERM or SIGINT it exits
along with every process that it has started. ``roadless up`` starts it.
"""

import argparse
import json
import signal
import threading
from pathlib import Path

from roadless.worker.runner.ray_cluster import start_head


def main() -> None:
    """Start the head and run until a signal arrives."""
    arguments = _arguments()
    is_asked_to_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_asked_to_stop.set())
    head = start_head(
        arguments.home,
        num_cpus=arguments.num_cpus,
        num_gpus=arguments.num_gpus,
        node_ip=arguments.node_ip,
    )
    try:
        environment = head.environment
        said = {
            "address": environment["RAY_ADDRESS"],
            "auth_token_path": environment["RAY_AUTH_TOKEN_PATH"],
        }
        print(json.dumps(said), flush=True)  # noqa: T201  the answer to whoever started it
        is_asked_to_stop.wait()
    finally:
        head.stop()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--home", type=Path, required=True, help="folder for the token file")
    parser.add_argument("--num-cpus", type=int, help="cores for training; default: all")
    parser.add_argument("--num-gpus", type=int, help="GPUs for training; default: all")
    parser.add_argument("--node-ip", help="address that other nodes reach; default: Ray's choice")
    return parser.parse_args()


if __name__ == "__main__":
    main()
