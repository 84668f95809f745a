"""What ranks do in the drills, in real processes with a real process group.

``job_id`` names the drill; a drill returns what the rank found, for the test to read.
"""

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training_bench import Bench, bits, make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.states import Desired
from roadless.worker import retry
from roadless.worker.data.base import Batch
from roadless.worker.distributed.process_group import Cluster, join
from roadless.worker.errors import NonFiniteLoss
from roadless.worker.rank import main as rank_main
from roadless.worker.rank_launch import RankLaunch
from roadless.worker.reporting.outbox import Heard
from roadless.worker.training import loop
from roadless.worker.training.agreement import Orders, Signals, agree
from roadless.worker.training.step import StepResult, StepSettings, train_step


def main(launch: RankLaunch) -> None:
    """Run the drill and note what it found; ``rank_main`` is the rank's own."""
    if launch.job_id.startswith("rank"):
        _run_drill(launch)
    found = DRILLS[launch.job_id](join(launch), launch)
    path = Path(launch.scratch) / f"found-{launch.rank}.json"
    path.with_suffix(".tmp").write_text(json.dumps(found))
    path.with_suffix(".tmp").rename(path)
    os._exit(0)


def _run_drill(launch: RankLaunch) -> None:
    if launch.job_id == "rank:impatient":
        rank_main.DRAIN_SECONDS = 0.3
    if launch.job_id == "rank:hasty":
        retry.LONGEST_SECONDS = 0.1
    if launch.job_id == "rank:freezing" and launch.rank == 1:
        _freeze_before_step(3, note=Path(launch.scratch) / "frozen.pid")
    rank_main.main(launch)


def _freeze_before_step(step: int, *, note: Path) -> None:
    """Stop this process as a debugger or a broken machine does; it does not die of it."""

    def freezing(*args: Any, **options: Any) -> StepResult:
        if next(steps) == step:
            note.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return train_step(*args, **options)

    steps = itertools.count(1)
    loop.train_step = freezing


class PoisonedGradient(torch.autograd.Function):
    """Passes values on and multiplies their gradient."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        return gradient * ctx.factor, None


class Net(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
        self.factor = factor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = PoisonedGradient.apply(self.linear(inputs), self.factor)
        return values


SETTINGS = StepSettings(task="classification", max_grad_norm=1.0)


def _attempt(cluster: Cluster, *, loss_factor: float = 1.0, gradient_factor: float = 1.0) -> Any:
    """Take a good step and then one that only the last rank spoils."""
    is_last = cluster.rank == cluster.world_size - 1
    net = Net()
    model = DistributedDataParallel(net, find_unused_parameters=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(cluster.rank)
    batch = Batch(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    options = {"optimizer": optimizer, "cluster": cluster, "settings": SETTINGS}
    first = train_step(model, batch, orders=Orders(), **options)
    before = bits(net.state_dict()), bits(optimizer.state_dict())
    net.factor = gradient_factor if is_last else 1.0
    spoiled = Batch(batch.inputs * (loss_factor if is_last else 1.0), batch.targets)
    try:
        train_step(model, spoiled, orders=Orders(), **options)
        message = None
    except NonFiniteLoss as error:
        message = str(error)
    return {
        "first_loss": first.loss.hex(),
        "first_norm": first.grad_norm.hex(),
        "message": message,
        "is_untouched": (bits(net.state_dict()), bits(optimizer.state_dict())) == before,
    }


def _agreement(cluster: Cluster, launch: RankLaunch) -> Any:
    """The lead asks for an evaluation; the other asks for everything, and is not heard."""
    asked = Orders(Signals(evaluate=True))
    orders = asked if cluster.is_lead else Orders.of_flags([not flag for flag in asked.flags])
    result = agree(cluster, orders, loss_sum=10.0 * (cluster.rank + 1), count=1 + 2 * cluster.rank)
    values = torch.tensor([float(cluster.rank + 1), 0.5], dtype=torch.float64)
    return {
        "orders": list(result.orders.flags),
        "loss": result.loss,
        "sum": cluster.sum(values).tolist(),
    }


def _training(cluster: Cluster, launch: RankLaunch) -> Any:
    """Only the lead hears of what the user wants; the other's reporter has heard nonsense."""
    script = {1: Heard(evaluations_requested=1), 3: Heard(Desired.STOP, 1)}
    nonsense = {0: Heard(Desired.STOP, 7, is_fenced=True)}
    changes = {"parallelism": {"num_workers": 2}, "checkpoints": {"state_every_steps": 2}}
    bench = Bench(
        make_brief(model={"kind": "preset", "name": "convnet", "width": 2}, **changes),
        Path(launch.scratch) / str(launch.rank),
        script=script if cluster.is_lead else nonsense,
        cluster=cluster,
    )
    reason = bench.training.run()
    return {
        "reason": reason,
        "step": bench.training.step,
        "order": bench.reporter.order,
        "states": [s.manifest.step for s in bench.reporter.of_kind(CheckpointKind.RESUME)],
        "parameters": repr(bits(dict(bench.setup.model.named_parameters()))),
        "losses": [point.values["train.loss"].hex() for point in bench.reporter.steps],
    }


DRILLS = {
    "nonfinite loss": lambda cluster, launch: _attempt(cluster, loss_factor=float("nan")),
    "infinite gradient": lambda cluster, launch: _attempt(cluster, gradient_factor=float("inf")),
    "agreement": _agreement,
    "training": _training,
}
