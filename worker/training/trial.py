"""Before the first step: is the model what its task says, and the same on all ranks?

Each question is one that training itself would not ask: a language model that sees the token it
shall predict, or a model that draws at evaluation, trains without an error and tells a curve that
is not true. What the model is asked leaves weights, buffers and random states as they were.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from roadless.optim.batchnorm import buffers_besides_statistics
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.job.tasks import Task
from roadless.service.contract.job.training import accumulation_steps
from roadless.worker.data.base import Batch, Description
from roadless.worker.distributed.precision import computing_in
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.errors import ModelInvalid
from roadless.worker.evaluation.evaluate import noop
from roadless.worker.evaluation.task import num_counted, training_loss
from roadless.worker.model.faults import blaming, run
from roadless.worker.model.random_states import forked_random_states, random_states
from roadless.worker.model.trial import SAMPLES, require_fit
from roadless.worker.setup import TrainingSetup
from roadless.worker.training.causality import require_causal
from roadless.worker.training.outputs import are_same, distance, nearness, outputs_of
from roadless.worker.training.unchanged import left_unchanged, require_storable
from roadless.worker.validation.checkpoint_validator import tolerance_on

#: Further evaluations of a model that draws: what it draws may seldom matter.
_MORE_EVALUATIONS = 14
#: Outputs of each rank that are compared.
_COMPARED = 4096
#: In training; a graph that is kept from the first one breaks the second.
_PASSES = 2


def try_out(
    setup: TrainingSetup, *, spec: JobSpec, cluster: Cluster, beat: Callable[[], None] = noop
) -> list[str]:
    """Ask of a model on its device and ranks what the task takes for granted.

    Outputs of the right shape over the whole context that training will use; the same for the same
    inputs, on every rank; for a language model, none that depends on a later token; a loss that its
    parameters can learn from, by gradients that the optimizers take; and parameters that are still
    the same afterwards. ``beat``: called after each pass, as a sign of progress. Every rank calls
    this. Raises ModelInvalid.

    Returns the names of buffers that passes in training change and that are no statistics of norm
    layers: an evaluation finds those at x, and takes these as training has left them.
    """
    model, data, batch = setup.model, setup.datasets.description, _samples(setup)
    num_samples = min(SAMPLES, _microbatch_size(spec, world_size=cluster.world_size))
    with forked_random_states(seed=spec.training.seed), _beating(model, beat):
        require_storable(model)
        with left_unchanged(model):
            outputs = _evaluated(model, batch, data=data, task=spec.task, cluster=cluster)
            _require_same_on_all_ranks(outputs, cluster=cluster, tolerance=nearness(model))
            if spec.task == "causal_lm" and data.tokens_per_sample > 1:
                require_causal(model, batch.inputs[:1], num_tokens=data.num_classes)
            return _learn(model, batch.split(num_samples)[0], data=data, spec=spec)


def require_same_outputs(setup: TrainingSetup, *, cluster: Cluster) -> None:
    """Raise ModelInvalid unless every rank's model gives the same; every rank calls this.

    For an attempt that resumes, perhaps with more ranks than had a part in the trial.
    """
    if cluster.world_size > 1:
        outputs = outputs_of(setup.model, _samples(setup).inputs)
        _require_same_on_all_ranks(outputs, cluster=cluster, tolerance=nearness(setup.model))


def require_remade(setup: TrainingSetup, *, anew: nn.Module) -> None:
    """Raise ModelInvalid unless a model made anew is the same once it has loaded the state.

    ``anew``: of the same specification, on the CPU. So a process does that loads a checkpoint.
    """
    inputs = _samples(setup).inputs
    with blaming(ModelInvalid, "a model whose state_dict can be loaded into one made anew"):
        anew.load_state_dict(setup.model.state_dict())
    outputs, again = outputs_of(setup.model, inputs), outputs_of(anew.to(inputs.device), inputs)
    if not are_same(outputs, again, tolerance=tolerance_on(inputs.device)):
        raise ModelInvalid(
            "expected the same outputs of a model made anew with the same state, saw others: keep "
            "what matters in parameters and persistent buffers, and draw the rest from the "
            "generators of torch, numpy or random, which the job's seed sets"
        )


def _samples(setup: TrainingSetup) -> Batch:
    """The first held-out samples; a lone one twice."""
    data, device = setup.datasets.validation, next(setup.model.parameters()).device
    batch = data.eval_batch(0, min(SAMPLES, data.num_eval))
    indices = torch.arange(SAMPLES) % len(batch.inputs)
    taken = Batch(batch.inputs[indices], batch.targets[indices], batch.has_uncounted)
    return taken.to(device)


@contextmanager
def _beating(model: nn.Module, beat: Callable[[], None]) -> Iterator[None]:
    """Call ``beat`` after each pass through the model."""
    handle = model.register_forward_hook(lambda *_: beat())
    try:
        yield
    finally:
        handle.remove()


# ---- evaluation ----------------------------------------------------------------------------------


def _evaluated(
    model: nn.Module, batch: Batch, *, data: Description, task: Task, cluster: Cluster
) -> torch.Tensor:
    """Return the outputs of an evaluation, once another one gives the same."""
    states = random_states()
    outputs = outputs_of(model, batch.inputs)
    num_more = _MORE_EVALUATIONS * _any_rank(random_states() != states, cluster)
    require_fit(outputs, inputs=batch.inputs, data=data, task=task)
    if bool(outputs.isnan().any()) and _is_finite(batch.inputs):
        raise ModelInvalid("expected outputs that are numbers, saw NaN before the first step")
    for _ in range(1 + num_more):
        again = outputs_of(model, batch.inputs)
        if not are_same(outputs, again, tolerance=tolerance_on(outputs.device)):
            raise ModelInvalid(
                "expected the same outputs for the same inputs in evaluation mode, saw others: "
                "what draws (dropout), counts or remembers must heed the mode, as by "
                "functional.dropout(..., training=self.training)"
            )
    return outputs


def _is_finite(inputs: torch.Tensor) -> bool:
    return not inputs.is_floating_point() or bool(inputs.isfinite().all())


def _any_rank(is_so: bool, cluster: Cluster) -> bool:
    told = cluster.sum(torch.tensor([float(is_so)], dtype=torch.float64))
    return bool(told.item())


def _require_same_on_all_ranks(
    outputs: torch.Tensor, *, cluster: Cluster, tolerance: float
) -> None:
    """Parameters and buffers are equal by now: what differs is kept elsewhere."""
    if cluster.world_size == 1:
        return
    mine = outputs.flatten()[:_COMPARED].double().cpu()
    table = torch.zeros(cluster.world_size, len(mine), dtype=torch.float64)
    table[cluster.rank] = mine
    table = cluster.sum(table)
    for rank, row in enumerate(table):
        if distance(table[0], row) > tolerance:
            raise ModelInvalid(
                f"expected the same outputs for the same inputs on every rank, saw others on rank "
                f"{rank} than on rank 0: what a model keeps must be a parameter or a buffer, and "
                "what it draws when it is made must come from the generators of torch, numpy or "
                "random, which the job's seed sets"
            )


# ---- learning ------------------------------------------------------------------------------------


def _learn(model: nn.Module, batch: Batch, *, data: Description, spec: JobSpec) -> list[str]:
    """Take gradients as steps do, and leave none; return names of buffers, as :func:`try_out`."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    before = {name: buffers[name].clone() for name in buffers_besides_statistics(model)}
    for _ in range(_PASSES):
        _backward(model, batch, data=data, spec=spec)
    now = dict(model.named_buffers(remove_duplicate=False))
    return [n for n, old in before.items() if n not in now or not torch.equal(now[n], old)]


def _backward(model: nn.Module, batch: Batch, *, data: Description, spec: JobSpec) -> None:
    with computing_in(spec.training.precision, batch.inputs.device):
        outputs = run(model, batch.inputs)
    require_fit(outputs, inputs=batch.inputs, data=data, task=spec.task)
    count = num_counted(batch, task=spec.task)
    loss = training_loss(outputs.float(), batch.targets, task=spec.task, count=count)
    if not loss.requires_grad:
        raise ModelInvalid(
            "expected outputs that depend on parameters, saw some that no gradient flows from"
        )
    try:
        with blaming(ModelInvalid, "a model that gradients flow through"):
            loss.backward()  # type: ignore[no-untyped-call]
        _require_gradients(model)
    finally:
        for parameter in model.parameters():
            parameter.grad = None


def _microbatch_size(spec: JobSpec, *, world_size: int) -> int:
    parts = accumulation_steps(spec.training, spec.parallelism, world_size=world_size)
    return spec.training.batch_size // world_size // parts


def _require_gradients(model: nn.Module) -> None:
    found = [(name, one.grad) for name, one in model.named_parameters() if one.grad is not None]
    for name, gradient in found:
        if gradient.layout is not torch.strided:
            raise ModelInvalid(
                f"expected dense gradients, which the optimizers take, saw {gradient.layout} of "
                f"{name}; an embedding gives dense ones with sparse=False"
            )
    if not found:
        raise ModelInvalid("expected gradients of the loss, saw none in any parameter")
