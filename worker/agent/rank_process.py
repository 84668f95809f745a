"""How every rank's process starts, forked or spawned.

Run as ``python -m roadless.worker.agent.rank_process``. A rank reads its launch from a descriptor,
since it carries a token and anybody on the machine can read arguments. Imported by the fork server,
so it needs only the standard library.
"""

import argparse
import faulthandler
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from roadless.worker.agent.claims import claim_rank
from roadless.worker.processes import die_with_parent
from roadless.worker.rank_launch import RankLaunch

Entry = Callable[[RankLaunch], None]

#: The kernel's out-of-memory killer picks a rank before the agent and Ray.
_OOM_SCORE_ADJ = "1000"


def run_rank(launch: RankLaunch, *, parent_pid: int, begin: Callable[[], Entry]) -> NoReturn:
    """Run the rank; whatever happens, exit with a code and never return.

    ``begin``: called with the rank's log in place; returns what the rank runs.
    """
    code = os.EX_SOFTWARE
    try:
        die_with_parent(parent_pid)
        take_over(launch)
        if launch.claims:
            claim_rank(Path(launch.claims), launch.rank)
        begin()(launch)
        code = os.EX_OK
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def take_over(launch: RankLaunch) -> None:
    """Give this process the rank's log, its GPUs and its score for the out-of-memory killer."""
    redirect("/dev/null", os.O_RDONLY, to=(0,))
    log = open_log(launch)
    for fd in (1, 2):
        os.dup2(log, fd)
    os.close(log)
    faulthandler.enable()
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(launch.gpu_ids)
    Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)


def open_log(launch: RankLaunch) -> int:
    """Open the rank's log for appending; create its folder if needed."""
    Path(launch.scratch).mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(launch.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def note_failure(launch: RankLaunch, error: OSError) -> None:
    """Write into the rank's log why it could not be started, since it cannot; else into ours."""
    text = f"cannot start rank {launch.rank} of {launch.attempt_id}: {error}\n"
    try:
        with os.fdopen(open_log(launch), "a") as log:
            log.write(text)
    except OSError as second:
        sys.stderr.write(f"{text}no log for it: {second}\n")


def redirect(path: str, flags: int, *, to: tuple[int, ...]) -> None:
    """Point these descriptors at ``path``."""
    opened = os.open(path, flags)
    for fd in to:
        os.dup2(opened, fd)
    os.close(opened)


def load_entry(name: str, *, preload: Sequence[str] = ()) -> Entry:
    """Import ``preload``, calling any functions it names, then return ``module:function``."""
    for item in preload:
        if ":" in item:
            _function(item)()
        else:
            importlib.import_module(item)
    entry: Entry = _function(name)
    return entry


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def hand_over(launch: RankLaunch) -> int:
    """Return a descriptor to read the launch from: anonymous memory, which never blocks."""
    fd = os.memfd_create("launch")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(json.dumps(launch.to_json()).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def receive(fd: int) -> RankLaunch:
    """Read what ``hand_over`` wrote. The descriptor stays open, so its number is not reused."""
    with os.fdopen(fd, "rb", closefd=False) as file:
        return RankLaunch.from_json(json.load(file))


def spawn_command(
    interpreter: str, *, entry: str, preload: Sequence[str], parent_pid: int
) -> list[str]:
    """Return the command of a rank that is not forked; it reads its launch from standard input."""
    return [
        *(interpreter, "-u", "-m", "roadless.worker.agent.rank_process"),
        *("--entry", entry, "--preload", ",".join(preload), "--parent", str(parent_pid)),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entry", required=True, help="module:function that the rank runs")
    parser.add_argument("--preload", required=True, help="what to load first, comma-separated")
    parser.add_argument("--parent", required=True, type=int, help="process id of the agent")
    return parser.parse_args()


def main() -> None:
    """Run the rank that standard input describes."""
    arguments = _arguments()
    preload = tuple(filter(None, arguments.preload.split(",")))
    begin = partial(load_entry, arguments.entry, preload=preload)
    run_rank(receive(0), parent_pid=arguments.parent, begin=begin)


if __name__ == "__main__":
    main()
