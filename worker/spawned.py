"""A rank that starts by itself: ``python -m worker.spawned``, run by ``worker/spawnlauncher.py``.

Its launch is its standard input. It imports what the fork server has imported for other ranks, and
nothing more happens before its entry runs: it has one thread, as a forked rank has.
"""

import argparse
from functools import partial

from worker.birth import be_rank, load_entry, receive


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entry", required=True, help="module:function that the rank runs")
    parser.add_argument("--preload", required=True, help="what to load first, comma-separated")
    parser.add_argument("--parent", required=True, type=int, help="process id of the agent")
    return parser.parse_args()


def main() -> None:
    """Become the rank that standard input describes."""
    arguments = _arguments()
    preload = tuple(filter(None, arguments.preload.split(",")))
    begin = partial(load_entry, arguments.entry, preload=preload)
    be_rank(receive(0), parent_pid=arguments.parent, begin=begin)


if __name__ == "__main__":
    main()
