"""A rank for drills: it notes what it was started with, then does what ``job_id`` says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from roadless.worker.rank_launch import RankLaunch

#: What launchers speak and watch through.
_LAUNCHERS_OWN = ("pipe:", "anon_inode:[pidfd]", "anon_inode:[eventfd]", "/memfd:")


def main(launch: RankLaunch) -> None:
    note = {
        "at": time.time(),
        "pid": os.getpid(),
        "session": os.getsid(0),
        "rank": launch.rank,
        "local_rank": launch.local_rank,
        "world_size": launch.world_size,
        "master": [launch.master_addr, launch.master_port],
        "token": launch.token,
        "gpu_ids": launch.gpu_ids,
        "environ": dict(os.environ),
        "first_environ": Path("/proc/self/environ").read_text(),
        "argv": Path("/proc/self/cmdline").read_text(),
        "fds": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in ("0", "1", "2")),
        "pipes": sum(_is_pipe(fd) for fd in os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text().strip(),
    }
    path = Path(launch.scratch) / f"started-{launch.rank}.json"
    path.with_suffix(".tmp").write_text(json.dumps(note))
    path.with_suffix(".tmp").rename(path)
    _act(launch.job_id)


def _act(what: str) -> None:
    match what.split(":"):
        case ["stay"]:
            time.sleep(600)
        case ["work"]:
            while True:
                pass
        case ["exit", code]:
            print("last words of the rank")
            sys.stdout.flush()
            os._exit(int(code))
        case ["raise"]:
            raise RuntimeError("a bug in the rank")
        case ["leave_child"]:
            child = subprocess.Popen(["sleep", "600"])
            print(f"child {child.pid}", flush=True)


def _is_pipe(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(_LAUNCHERS_OWN)
    except FileNotFoundError:
        return False
