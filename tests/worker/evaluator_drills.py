"""Ranks whose checkpoints or evaluators go wrong as ``job_id`` says; otherwise they are themselves.

What is changed here is changed before the rank forks its zygote, so evaluators have it too.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from roadless.service.contract.checkpoint.manifest import CheckpointFile
from roadless.worker.checkpointing.model_files import MODEL_FILE, write_model
from roadless.worker.rank import main as rank_main
from roadless.worker.rank_launch import ModelSources, RankLaunch
from roadless.worker.training import evaluations
from roadless.worker.validation import evaluator_process, zygote
from roadless.worker.validation.evaluator_process import Question, Reply

Files = tuple[CheckpointFile, ...]


def main(launch: RankLaunch) -> None:
    """``what``, or ``what:N`` for the first N times only."""
    what, _, number = launch.job_id.partition(":")
    times = int(number or 1_000_000)
    scratch = Path(launch.scratch)
    if what in BAD_FILES:
        _spoil(BAD_FILES[what], times)
    if what in BAD_EVALUATORS:
        _break(BAD_EVALUATORS[what], times, scratch)
    if what == "watched":
        rank_main.evaluate_files = _watched
    if what == "set up":
        _note_settings(scratch)
    if what == "no zygote":
        zygote._fork = lambda *_: os._exit(1)
    if what == "frozen zygote":
        zygote._FORK_SECONDS = 1.0
        zygote._fork = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)
    rank_main.main(replace(launch, model_sources=ModelSources(entry_points=ENTRY_POINTS)))


# ---- what a user's package offers ---------------------------------------------------------------

ENTRY_POINTS = (
    "entry_point_models:small",
    "entry_point_models:frozen_norm",
    "evaluator_drills:forgetful",
    "metric_functions:top",
)


class Forgetful(nn.Module):
    """Counts the optimizer's steps, a number that its ``state_dict`` does not have."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_outputs)
        self.steps = 0
        register_optimizer_step_post_hook(self._count)

    def _count(self, *_: object) -> None:
        self.steps += 1

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.linear(inputs.flatten(1)) * (1 + self.steps)
        return scores


def forgetful(*, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return Forgetful(torch.Size(input_shape).numel(), num_outputs)


# ---- files that are not what the manifest says --------------------------------------------------


def _spoil(spoil: Callable[[Path, Files], Files], times: int) -> None:
    left = times

    def write(folder: Path, model: nn.Module) -> Files:
        nonlocal left
        left -= 1
        files = write_model(folder, model)
        return spoil(folder, files) if left >= 0 else files

    evaluations.write_model = write


def _flip(folder: Path, files: Files) -> Files:
    """One bit, in the last byte of the largest file."""
    path = folder / max(files, key=lambda file: file.size).name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return files


def _tear(folder: Path, files: Files) -> Files:
    path = folder / files[0].name
    os.truncate(path, files[0].size // 2)
    return files


def _remove(folder: Path, files: Files) -> Files:
    (folder / files[-1].name).unlink()
    return files


def _lie(folder: Path, files: Files) -> Files:
    return (files[0].model_copy(update={"sha256": "0" * 64}), *files[1:])


def _change(folder: Path, files: Files) -> Files:
    """Other weights, with everything that describes them."""
    tensors = load_file(folder / MODEL_FILE)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = tensors[name] + torch.ones_like(tensors[name])
    save_file(tensors, folder / MODEL_FILE, metadata={"format": "pt"})
    return _described(folder, files)


def _misname(folder: Path, files: Files) -> Files:
    """A tensor under another name: whole, hashed, and not of this model."""
    tensors = load_file(folder / MODEL_FILE)
    tensors["other"] = tensors.pop(min(tensors))
    save_file(tensors, folder / MODEL_FILE, metadata={"format": "pt"})
    return _described(folder, files)


def _described(folder: Path, files: Files) -> Files:
    return tuple(_as_it_is(folder / file.name) for file in files)


def _as_it_is(path: Path) -> CheckpointFile:
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return CheckpointFile(name=path.name, size=len(content), sha256=sha256)


BAD_FILES: dict[str, Callable[[Path, Files], Files]] = {
    "flipped": _flip,
    "torn": _tear,
    "removed": _remove,
    "wrong hash": _lie,
    "other weights": _change,
    "other name": _misname,
}


# ---- evaluators that do not answer --------------------------------------------------------------


def _break(act: Callable[[], None], times: int, scratch: Path) -> None:
    """Counted on disk, since each evaluator is a process of its own."""
    answer = evaluator_process._Process.answer

    def broken(process: Any, question: Question) -> Reply:
        with (scratch / "questions").open("a") as file:
            file.write("x")
        if (scratch / "questions").stat().st_size <= times:
            act()
        return answer(process, question)

    evaluator_process._Process.answer = broken  # type: ignore[method-assign]


def _raise() -> None:
    raise RuntimeError("a bug in the evaluator")


BAD_EVALUATORS: dict[str, Callable[[], None]] = {
    "dies": lambda: os._exit(1),
    "hangs": lambda: time.sleep(60),
    "raises": _raise,
}


def _watched(connection: Connection, launch: RankLaunch) -> None:
    """Note what an evaluator starts as, before it does anything."""
    note = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "group": os.getpgid(0),
        "threads": len(os.listdir("/proc/self/task")),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "has_cuda": torch.cuda.is_initialized(),
        "sockets": sum(_is_channel(fd) for fd in os.listdir("/proc/self/fd")),
    }
    path = Path(launch.scratch) / "evaluator.json"
    path.with_suffix(".tmp").write_text(json.dumps(note))
    path.with_suffix(".tmp").rename(path)
    evaluator_process.main(connection, launch)


def _note_settings(scratch: Path) -> None:
    """What an evaluator computes with."""
    answer = evaluator_process._Process.answer

    def noting(process: Any, question: Question) -> Reply:
        reply = answer(process, question)
        note = {
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "secret": os.environ.get("HF_TOKEN"),
        }
        (scratch / "settings.json").write_text(json.dumps(note))
        return reply

    evaluator_process._Process.answer = noting  # type: ignore[method-assign]


def _is_channel(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(("socket:", "pipe:", "anon_inode:"))
    except FileNotFoundError:
        return False
