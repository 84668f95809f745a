"""One optimizer step over all ranks: forward, backward, agreement, clipping, update."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from roadless.optim.numerics.precision import is_narrow
from roadless.optim.numerics.sharding import local, whole
from roadless.service.contract.job.tasks import Task
from roadless.service.contract.job.training import Precision
from roadless.worker.data.base import Batch
from roadless.worker.distributed.precision import computing_in
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.errors import ModelInvalid, NonFiniteLoss
from roadless.worker.evaluation.task import num_counted, training_loss
from roadless.worker.model.faults import blaming, run
from roadless.worker.training.agreement import Orders, agree

#: As in torch: keeps the division defined for a gradient of zero.
_EPSILON = 1e-6


@dataclass(frozen=True)
class StepResult:
    """``loss``: mean over the global batch, before the update; ``grad_norm``: before clipping."""

    loss: float
    grad_norm: float
    orders: Orders
    is_skipped: bool = False  #: not finite, so no rank made an update


@dataclass(frozen=True)
class StepSettings:
    """How each step is taken. ``accumulation_steps``: microbatches of a rank's batch."""

    task: Task
    accumulation_steps: int = 1
    precision: Precision = "fp32"
    max_grad_norm: float | None = None


def train_step(
    model: nn.Module,
    batch: Batch,
    *,
    optimizer: torch.optim.Optimizer,
    cluster: Cluster,
    settings: StepSettings,
    orders: Orders,
    may_skip: bool = False,
) -> StepResult:
    """Forward, backward, agree, update. ``model``: as ``TrainingSetup.wrapped`` holds it.

    The optimizer gets all but the update as a closure, since some evaluate it at their own point.
    A loss or gradient norm that is not finite leaves model and optimizer as they were on every
    rank: with ``may_skip`` the result says so, otherwise NonFiniteLoss is raised.
    """
    results: list[StepResult] = []

    def closure() -> float:
        zero_grad(optimizer)
        loss_sum, count = _backward(model, batch, settings)
        agreed = agree(cluster, orders, loss_sum=loss_sum, count=count)
        num_targets = cluster.world_size * batch.targets.numel()
        if agreed.count != num_targets:
            scale(optimizer, num_targets / max(agreed.count, 1))
        norm = global_norm(optimizer)
        results.append(StepResult(agreed.loss, norm, agreed.orders))
        _require_finite(agreed.loss, norm)
        if settings.max_grad_norm is not None:
            clip(optimizer, norm=norm, most=settings.max_grad_norm)
        return agreed.loss

    buffers = _copies(model) if may_skip else {}
    try:
        optimizer.step(closure)
    except NonFiniteLoss:
        if not may_skip:
            raise
        _put_back(buffers)
        return replace(results[-1], is_skipped=True)
    return results[-1]


def zero_grad(optimizer: torch.optim.Optimizer) -> None:
    """Drop all gradients; torch's own method spends most of its time on profiler annotations."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def global_norm(optimizer: torch.optim.Optimizer) -> float:
    """Return the 2-norm of all gradients, over all shards; every rank gets the same number.

    Squares of narrow gradients are summed in float32. Parameters without a gradient count as 0.
    """
    gradients = _gradients(optimizer)
    if not gradients:
        return 0.0
    has_narrow = any(is_narrow(gradient.dtype) for gradient in gradients)
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32 if has_narrow else None)
    return float(whole(torch.linalg.vector_norm(torch.stack(norms))))


def clip(optimizer: torch.optim.Optimizer, *, norm: float, most: float) -> None:
    """Scale all gradients in place so that their norm, now ``norm``, is at most ``most``."""
    factor = torch.clamp(most / (torch.tensor(norm) + _EPSILON), max=1.0)
    scale(optimizer, float(factor))


def scale(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply all gradients by a number, in place."""
    gradients = [local(gradient) for gradient in _gradients(optimizer)]
    if gradients:
        torch._foreach_mul_(gradients, factor)


def _backward(model: nn.Module, batch: Batch, settings: StepSettings) -> tuple[float, int]:
    """Compute gradients of the sum of losses divided by the number of targets of the global batch.

    That is the mean loss if all targets count, which only all ranks together know. Returns the sum
    of this rank's losses and how many of its targets count.
    """
    num_targets = batch.targets.numel()
    if settings.accumulation_steps == 1:
        count = num_counted(batch, task=settings.task)
        loss = _backward_microbatch(model, batch, settings, count=count, num_targets=num_targets)
        return loss.item() * count, count
    microbatches = batch.split(len(batch.targets) // settings.accumulation_steps)
    counts = [num_counted(one, task=settings.task) for one in microbatches]
    losses = []
    for number, (one, count) in enumerate(zip(microbatches, counts, strict=True), start=1):
        with _reducing(model, is_last=number == len(microbatches)):
            losses.append(
                _backward_microbatch(model, one, settings, count=count, num_targets=num_targets)
            )
    means = torch.stack(losses).tolist()
    return sum(m * count for m, count in zip(means, counts, strict=True)), sum(counts)


def _backward_microbatch(
    model: nn.Module, microbatch: Batch, settings: StepSettings, *, count: int, num_targets: int
) -> torch.Tensor:
    """Add the gradients of one microbatch; return the mean loss of its ``count`` counted targets.

    ``num_targets``: of the whole batch.
    """
    with computing_in(settings.precision, microbatch.inputs.device):
        outputs = run(model, microbatch.inputs)
    if outputs.dtype is not torch.float32:
        outputs = outputs.float()
    loss = training_loss(outputs, microbatch.targets, task=settings.task, count=count)
    share = loss if count == num_targets else loss * (count / num_targets)
    # Replicas speak to each other in it, below any Python: an error without a frame of the model's
    # code is theirs.
    with blaming(ModelInvalid, "a model that gradients flow through", has_our_code=True):
        share.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _reducing(model: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Replicas exchange gradients in the last microbatch; shards in each, to save memory."""
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def _require_finite(loss: float, grad_norm: float) -> None:
    if not math.isfinite(loss):
        raise NonFiniteLoss(f"expected a finite training loss, saw {loss}")
    if not math.isfinite(grad_norm):
        raise NonFiniteLoss(f"expected a finite gradient norm, saw {grad_norm} (loss {loss:.6g})")


def _copies(model: nn.Module) -> dict[torch.Tensor, torch.Tensor]:
    """Buffers, such as batch-norm statistics, change before it is known whether the step counts."""
    return {buffer: buffer.clone() for buffer in model.buffers()}


def _put_back(copies: dict[torch.Tensor, torch.Tensor]) -> None:
    for buffer, copy in copies.items():
        buffer.copy_(copy)


def _gradients(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
