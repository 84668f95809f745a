"""Before the first step: is the model what its task says, and the same on all ranks?

Each question is one that training itself would not ask: a language model that sees the token it
shall predict, or a model that draws at evaluation, trains without an error and tells a curve that
is not true. What the model is asked leaves weights, buffers and random states as they were.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from roadless.optim.batchnorm import buffers_besides_statistics
from roadless.optim.numerics.precision import is_narrow
from roadless.optim.numerics.sharding import local
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.job.tasks import Task
from roadless.service.contract.job.training import accumulation_steps
from roadless.worker.checkpointing.model_files import forms_of
from roadless.worker.checkpointing.safetensors_file import TensorForm, is_storable
from roadless.worker.data.base import Batch, Description
from roadless.worker.distributed.precision import computing_in
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.errors import ModelInvalid
from roadless.worker.evaluation.evaluate import noop
from roadless.worker.evaluation.task import num_counted, training_loss
from roadless.worker.model.base import evaluating
from roadless.worker.model.faults import blaming, run
from roadless.worker.model.random_states import forked_random_states, random_states
from roadless.worker.model.trial import SAMPLES, require_fit
from roadless.worker.setup import TrainingSetup

#: Further evaluations of a model that draws: what it draws may seldom matter.
_MORE_EVALUATIONS = 14
#: By how much outputs for the same inputs may differ, as a part of the largest: on a CPU in no bit,
#: and elsewhere by sums in another order.
_REPEATED = 1e-3
#: The same for outputs before a token that was changed, and for other ranks: computed beside other
#: numbers, so in other sums on any device; a leak is hundreds of times larger.
_NEAR, _NEAR_IF_NARROW = 1e-4, 3e-2
#: Outputs of each rank that are compared.
_COMPARED = 4096
#: In training; a graph that is kept from the first one breaks the second.
_PASSES = 2
#: Numbers drawn to stir weights with, over and over; a prime, so that no two rows get the same.
_STIR_NUMBERS = 65_537
_STIR_OF_VECTORS = 0.1


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
    model, data = setup.model, setup.datasets.description
    batch = _samples(setup)
    before, norms = _identities(model), _norms(model)
    drawing = forked_random_states(seed=spec.training.seed)
    with drawing, _buffers_kept(model), _beating(model, beat):
        _require_storable(model)
        outputs = _evaluated(model, batch, data=data, task=spec.task, cluster=cluster)
        _require_same_on_all_ranks(outputs, cluster=cluster, tolerance=_near(model))
        if spec.task == "causal_lm" and data.tokens_per_sample > 1:
            require_causal(model, batch.inputs[:1], num_tokens=data.num_classes)
        num_samples = min(SAMPLES, _microbatch_size(spec, world_size=cluster.world_size))
        forms = forms_of(model)
        named = dict(model.named_buffers(remove_duplicate=False))
        others = {name: named[name].clone() for name in buffers_besides_statistics(model)}
        for _ in range(_PASSES):
            _learn(model, batch.split(num_samples)[0], data=data, spec=spec)
        changed = _changed(model, others)
        _require_forms(model, forms)
    _require_identities(model, before)
    if _norms(model) != norms:
        raise ModelInvalid("expected a forward pass to leave the parameters, saw it change them")
    return changed


def require_same_outputs(setup: TrainingSetup, *, cluster: Cluster) -> None:
    """Raise ModelInvalid unless every rank's model gives the same; every rank calls this.

    For an attempt that resumes, perhaps with more ranks than had a part in the trial.
    """
    if cluster.world_size > 1:
        outputs = _outputs(setup.model, _samples(setup).inputs)
        _require_same_on_all_ranks(outputs, cluster=cluster, tolerance=_near(setup.model))


def require_remade(setup: TrainingSetup, *, anew: nn.Module) -> None:
    """Raise ModelInvalid unless a model made anew is the same once it has loaded the state.

    ``anew``: of the same specification, on the CPU. So a process does that loads a checkpoint.
    """
    inputs = _samples(setup).inputs
    with blaming(ModelInvalid, "a model whose state_dict can be loaded into one made anew"):
        anew.load_state_dict(setup.model.state_dict())
    outputs, again = _outputs(setup.model, inputs), _outputs(anew.to(inputs.device), inputs)
    tolerance = 0.0 if inputs.device.type == "cpu" else _REPEATED
    if again.shape != outputs.shape or not _are_near(outputs, again, tolerance=tolerance):
        raise ModelInvalid(
            "expected the same outputs of a model made anew with the same state, saw others: keep "
            "what matters in parameters and persistent buffers, and draw the rest from the "
            "generators of torch, numpy or random, which the job's seed sets"
        )


def require_causal(model: nn.Module, tokens: torch.Tensor, *, num_tokens: int) -> None:
    """Raise ModelInvalid when an output depends on a token behind it.

    ``tokens``: (1, tokens), numbers below ``num_tokens``. Weights are stirred first: those that
    start at zero would hide what they are about to learn.
    """
    with _stirred(model):
        found = _leak(model, tokens, num_tokens=num_tokens)
    if found is None:  # stirred, it computes no numbers
        found = _leak(model, tokens, num_tokens=num_tokens)
    if found is not None and found[1] > _near(model):
        raise ModelInvalid(
            f"expected outputs that depend on no later token, saw those before token {found[0]} "
            f"change with it, by {found[1]:.2g} of the largest: the model attends in both "
            "directions; an encoder of transformers needs is_decoder = true in its config"
        )


def _samples(setup: TrainingSetup) -> Batch:
    """The first held-out samples; a lone one twice."""
    data, device = setup.datasets.validation, next(setup.model.parameters()).device
    batch = data.eval_batch(0, min(SAMPLES, data.num_eval))
    indices = torch.arange(SAMPLES) % len(batch.inputs)
    taken = Batch(batch.inputs[indices], batch.targets[indices], batch.has_uncounted)
    return taken.to(device)


# ---- evaluation ----------------------------------------------------------------------------------


def _evaluated(
    model: nn.Module, batch: Batch, *, data: Description, task: Task, cluster: Cluster
) -> torch.Tensor:
    """Return the outputs of an evaluation, once another one gives the same."""
    states = random_states()
    outputs = _outputs(model, batch.inputs)
    num_more = _MORE_EVALUATIONS * _any_rank(random_states() != states, cluster)
    require_fit(
        outputs,
        num_samples=SAMPLES,
        num_tokens=data.tokens_per_sample,
        num_outputs=data.num_outputs,
        task=task,
    )
    if bool(outputs.isnan().any()) and _is_finite(batch.inputs):
        raise ModelInvalid("expected outputs that are numbers, saw NaN before the first step")
    tolerance = 0.0 if outputs.device.type == "cpu" else _REPEATED
    for _ in range(1 + num_more):
        again = _outputs(model, batch.inputs)
        if not _are_near(outputs, again, tolerance=tolerance):
            raise ModelInvalid(
                "expected the same outputs for the same inputs in evaluation mode, saw others: "
                "what draws (dropout), counts or remembers must heed the mode, as by "
                "functional.dropout(..., training=self.training)"
            )
    return outputs


def _outputs(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with evaluating(model), torch.no_grad():
        outputs = run(model, inputs)
    return outputs.detach().clone() if isinstance(outputs, torch.Tensor) else outputs


def _are_near(one: torch.Tensor, other: torch.Tensor, *, tolerance: float) -> bool:
    if not tolerance:
        return bool(torch.equal(one.nan_to_num(), other.nan_to_num()))
    return _distance(one, other) <= tolerance


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, as a part of the largest number; infinities and NaN count 0."""
    one, other = (t.double().nan_to_num(0.0, 0.0, 0.0) for t in (one, other))
    largest = max(float(one.abs().max()), float(other.abs().max()))
    return float((one - other).abs().max()) / largest if largest else 0.0


def _any_rank(is_so: bool, cluster: Cluster) -> bool:
    told = cluster.sum(torch.tensor([float(is_so)], dtype=torch.float64))
    return bool(told.item())


def _require_same_on_all_ranks(
    outputs: torch.Tensor, *, cluster: Cluster, tolerance: float
) -> None:
    """Parameters and buffers are equal by now: what differs is kept elsewhere."""
    if cluster.world_size == 1:
        return
    mine = outputs.detach().flatten()[:_COMPARED].double().cpu().nan_to_num(0.0, 0.0, 0.0)
    table = torch.zeros(cluster.world_size, len(mine), dtype=torch.float64)
    table[cluster.rank] = mine
    table = cluster.sum(table)
    for rank, row in enumerate(table):
        if _distance(table[0], row) > tolerance:
            raise ModelInvalid(
                f"expected the same outputs for the same inputs on every rank, saw others on rank "
                f"{rank} than on rank 0: what a model keeps must be a parameter or a buffer, and "
                "what it draws when it is made must come from the generators of torch, numpy or "
                "random, which the job's seed sets"
            )


# ---- causality -----------------------------------------------------------------------------------


def _leak(model: nn.Module, tokens: torch.Tensor, *, num_tokens: int) -> tuple[int, float] | None:
    """The change of outputs before a token that is changed, where it is largest, as a part of all.

    None where outputs are no numbers.
    """
    length = tokens.shape[1]
    cuts = sorted({1, length // 2, length - 1})
    rows = [tokens, *(_changed_from(cut, tokens, num_tokens=num_tokens) for cut in cuts)]
    # Two at a time: the memory of a step may not suffice for all.
    parts = [_outputs(model, torch.cat(rows[i : i + SAMPLES])) for i in range(0, len(rows), 2)]
    outputs = torch.cat(parts)
    if not bool(outputs.isfinite().all()):
        return None
    changes = [
        _distance_of_part(outputs[0], changed, cut)
        for cut, changed in zip(cuts, outputs[1:], strict=True)
    ]
    return max(zip(cuts, changes, strict=True), key=lambda found: found[1])


def _changed_from(cut: int, tokens: torch.Tensor, *, num_tokens: int) -> torch.Tensor:
    """One and the same other token from there on: what sees all of them sees much of it."""
    changed = tokens.clone()
    changed[:, cut:] = (tokens[:, cut] + 1) % num_tokens
    return changed


def _distance_of_part(one: torch.Tensor, other: torch.Tensor, cut: int) -> float:
    largest = max(float(one.abs().max()), float(other.abs().max()))
    return float((one[:cut] - other[:cut]).abs().max()) / largest if largest else 0.0


def _near(model: nn.Module) -> float:
    has_narrow = any(is_narrow(parameter.dtype) for parameter in model.parameters())
    return _NEAR_IF_NARROW if has_narrow else _NEAR


@contextmanager
def _stirred(model: nn.Module) -> Iterator[None]:
    """Add noise to all parameters in the block, about as large as usual weights are."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(_STIR_NUMBERS, generator=generator)
    kept = [local(parameter).detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            _stir(parameter, numbers.to(parameter.device, parameter.dtype))
        _forget_gathered(model)
        yield
    finally:
        for parameter, values in zip(parameters, kept, strict=True):
            local(parameter.detach()).copy_(values)
        _forget_gathered(model)


def _stir(parameter: nn.Parameter, numbers: torch.Tensor) -> None:
    part = local(parameter.detach())
    num_inputs = parameter.shape[1:].numel() if parameter.dim() > 1 else 0
    scale = num_inputs**-0.5 if num_inputs else _STIR_OF_VECTORS
    repeats = -(-part.numel() // len(numbers))
    part.add_(numbers.repeat(repeats)[: part.numel()].reshape(part.shape), alpha=scale)


def _forget_gathered(model: nn.Module) -> None:
    """Have the model hold its shards: the whole that a pass has gathered does not follow them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


# ---- learning ------------------------------------------------------------------------------------


def _learn(model: nn.Module, batch: Batch, *, data: Description, spec: JobSpec) -> None:
    """Take gradients as a step does, and leave none."""
    with computing_in(spec.training.precision, batch.inputs.device):
        outputs = run(model, batch.inputs)
    require_fit(
        outputs,
        num_samples=len(batch.inputs),
        num_tokens=data.tokens_per_sample,
        num_outputs=data.num_outputs,
        task=spec.task,
    )
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


# ---- what stays as it was ------------------------------------------------------------------------


def _identities(model: nn.Module) -> dict[str, nn.Parameter]:
    _forget_gathered(model)
    return dict(model.named_parameters(remove_duplicate=False))


def _require_identities(model: nn.Module, before: dict[str, nn.Parameter]) -> None:
    """The optimizer steps the parameters that it was given, whatever the model holds later."""
    after = _identities(model)
    names = before.keys() | after.keys()
    changed = [name for name in sorted(names) if before.get(name) is not after.get(name)]
    if changed:
        raise ModelInvalid(
            "expected a forward pass to keep the parameters that the model was made with, saw "
            f"others under {', '.join(changed[:5])}; make them in the constructor"
        )


def _require_forms(model: nn.Module, before: dict[str, TensorForm]) -> None:
    """A checkpoint is put into a model that has not trained."""
    after = forms_of(model)
    names = before.keys() | after.keys()
    changed = [name for name in sorted(names) if before.get(name) != after.get(name)]
    if changed:
        raise ModelInvalid(
            "expected a state_dict that training changes no names and shapes of, saw others under "
            f"{', '.join(changed[:5])}, which a fresh model cannot load"
        )


def _norms(model: nn.Module) -> list[float]:
    """A number for each parameter that changes with it."""
    _forget_gathered(model)
    parts = [local(one.detach()) for one in model.parameters() if one.is_floating_point()]
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(parts, 2)])
    numbers: list[float] = norms.nan_to_num().tolist()  # a NaN equals no other
    return numbers


def _changed(model: nn.Module, before: Mapping[str, torch.Tensor]) -> list[str]:
    now = dict(model.named_buffers(remove_duplicate=False))
    return [n for n, old in before.items() if n not in now or not torch.equal(now[n], old)]


@contextmanager
def _beating(model: nn.Module, beat: Callable[[], None]) -> Iterator[None]:
    """Call ``beat`` after each pass through the model."""
    handle = model.register_forward_hook(lambda *_: beat())
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put every buffer back, as the tensor that it was and with its values."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with ExitStack() as stack:
        stack.callback(_put_back, kept)
        yield


def _put_back(kept: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]) -> None:
    for module, name, buffer, values in kept:
        buffer.copy_(values)
        module._buffers[name] = buffer


def _is_finite(inputs: torch.Tensor) -> bool:
    return not inputs.is_floating_point() or bool(inputs.isfinite().all())


def _require_storable(model: nn.Module) -> None:
    """A checkpoint is the state dict, and must be all that is needed to make the model again."""
    with blaming(ModelInvalid, "a model whose state_dict can be loaded again"):
        state = model.state_dict()
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                raise ModelInvalid(
                    f"expected a state_dict of tensors, which a checkpoint can hold, saw {name} of "
                    f"{type(value).__name__}; keep it in a buffer, or leave it out"
                )
            if not is_storable(value):
                raise ModelInvalid(
                    f"expected dense tensors of types that safetensors has, saw {name} of "
                    f"{value.dtype} with layout {value.layout}"
                )
        model.load_state_dict(state)
