"""What training pays for being saved.

Run: ``PYTHONPATH=tests/worker python -m tests.benchmarks.save_delay``.

A plain loop of steps over parameters of 100 MB, and the same with a training state saved now and
then; how much longer the longest steps take.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from training_bench import ALONE, ScriptedReporter, context_of, make_brief

from roadless.optim import AdamWScheduleFree
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.worker.checkpointing.state_saver import StateSaver
from roadless.worker.position import Position
from roadless.worker.setup import TrainingSetup

#: y, z and v of so many float32 parameters are a state of 100 MB.
NUM_PARAMETERS = 100_000_000 // (3 * 4)
NUM_STEPS, NUM_SAVES, NUM_ROUNDS = 20, 3, 2


def report_save_delay(folder: Path) -> None:
    """Print the median step, and what a save adds to the step after which it is made."""
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for number in range(NUM_ROUNDS):
            seconds, delays, during = _run(folder / f"{threads}-{number}")
            say = {
                "threads": threads,
                "median_step_ms": _ms(statistics.median(seconds)),
                "longest_step_without_save_ms": _ms(max(seconds)),
                "save_call_ms": [_ms(delay) for delay in delays],
                "median_step_while_writing_ms": _ms(statistics.median(during)),
                "longest_step_while_writing_ms": _ms(max(during)),
            }
            print(say)


def _run(folder: Path) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of steps with nothing beside them, of saves, and of steps beside one."""
    reporter, model = ScriptedReporter(), _Wide()
    optimizer = AdamWScheduleFree(model.parameters(), lr=1e-3)
    setup = TrainingSetup(model=model, wrapped=model, optimizer=optimizer, datasets=None)  # type: ignore[arg-type]
    context = context_of(make_brief(), setup, reporter, cluster=ALONE)
    states = StateSaver(context, staging=folder)
    alone, saves, beside = [], [], []
    _step(model, optimizer)
    states.prepare()
    for number in range(NUM_SAVES):
        states.settle()
        alone += [_timed(lambda: _step(model, optimizer)) for _ in range(NUM_STEPS)]
        position = Position(step=number)
        saves.append(_timed(lambda: states.save(position, evaluated_step=None)))  # noqa: B023
        while states.is_busy:
            beside.append(_timed(lambda: _step(model, optimizer)))
    states.settle()
    size = reporter.of_kind(CheckpointKind.RESUME)[-1].manifest.total_bytes
    assert size > 95_000_000, size
    return alone, saves, beside


class _Wide(nn.Module):
    """Blocks of a transformer's shapes, without its forward pass: gradients are made up."""

    def __init__(self) -> None:
        super().__init__()
        width = 512
        num = NUM_PARAMETERS // width**2
        self.blocks = nn.ParameterList(torch.randn(width, width) for _ in range(num))


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()


def _timed(work: object) -> float:
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - started


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        report_save_delay(Path(name))
