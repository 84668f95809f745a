"""One run of study (d): a byte-level language model on the standard library's source.

Model, data and order of samples are those of a job of Roadless.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from roadless.optim import AdamWScheduleFree, at_average
from roadless.service.contract.job.models import GptPreset
from roadless.worker.data.base import Batch
from roadless.worker.data.builtin import stdlib_bytes
from roadless.worker.data.prepared.token_dataset import TokenWindows
from roadless.worker.data.sampler import global_indices
from roadless.worker.model.gpt import Gpt
from tests.studies.evidence.schedules import factors

#: AdamW's first, and the second of every method.
BETA_1, BETA_2 = 0.9, 0.95
#: Gradient clipping of the runs with schedules; schedule-free has none, as in the paper.
MAX_NORM = 1.0
_EVAL_BLOCK = 16


@dataclass(frozen=True)
class Size:
    """How large the model is and how long it trains."""

    layers: int
    width: int
    heads: int
    context: int
    batch_size: int
    num_steps: int
    warmup_steps: int
    #: Evaluations, at equal distances; the last after the last step.
    num_evaluations: int
    #: Held-out samples for each, in blocks spread evenly over all there are.
    num_eval_samples: int

    @property
    def evaluate_at(self) -> list[int]:
        """The steps after which held-out loss is measured."""
        return [
            self.num_steps * n // self.num_evaluations for n in range(1, self.num_evaluations + 1)
        ]


@dataclass(frozen=True)
class LanguageMethod:
    """A method of training."""

    name: str
    #: The schedule of AdamW, or None for schedule-free AdamW.
    schedule: str | None = None
    #: Beta of schedule-free.
    beta: float = BETA_1


@dataclass(frozen=True)
class LanguageRun:
    """All that a run depends on."""

    method: LanguageMethod
    rate: float
    seed: int
    size: Size


@dataclass(frozen=True)
class Curve:
    """Held-out loss in nats per byte at ``Size.evaluate_at``; NaN after a run has diverged."""

    losses: tuple[float, ...]
    cpu_seconds: float


@dataclass(frozen=True)
class Corpus:
    """What was trained on; the standard library differs between versions of Python."""

    num_train_bytes: int
    sha256: str


def corpus(size: Size) -> Corpus:
    """Return the size and the fingerprint of the corpus on this machine."""
    data = stdlib_bytes.load(context=size.context)
    return Corpus(data.num_train * size.context, data.description.fingerprint)


def num_parameters(size: Size) -> int:
    """Return the size of the model."""
    model = _model(size, stdlib_bytes.load(context=size.context), seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


def train(run: LanguageRun) -> Curve:
    """Return held-out losses: a function of ``run``, the corpus and the number of threads."""
    started = time.process_time()
    data = stdlib_bytes.load(context=run.size.context)
    model = _model(run.size, data, seed=run.seed)
    optimizer = _optimizer(run, model)
    scale = _factors(run)
    held_out = _held_out(data, run.size)
    losses: dict[int, float] = {}
    for step in range(run.size.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = run.rate * float(scale[step])
        if not math.isfinite(_step(model, optimizer, _batch(data, run, step))):
            break
        if step + 1 in run.size.evaluate_at:
            losses[step + 1] = _held_out_loss(model, optimizer, held_out)
    found = tuple(losses.get(step, math.nan) for step in run.size.evaluate_at)
    return Curve(found, time.process_time() - started)


def _model(size: Size, data: TokenWindows, *, seed: int) -> Gpt:
    spec = GptPreset(
        kind="preset",
        name="gpt",
        layers=size.layers,
        width=size.width,
        heads=size.heads,
        context=size.context,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Gpt(spec, data=data.description)


def _optimizer(run: LanguageRun, model: nn.Module) -> torch.optim.Optimizer:
    method = run.method
    if method.schedule is None:
        return AdamWScheduleFree(
            model.parameters(),
            betas=(method.beta, BETA_2),
            warmup_steps=run.size.warmup_steps,
        )
    return torch.optim.AdamW(
        model.parameters(), betas=(BETA_1, BETA_2), weight_decay=0.0, fused=True
    )


def _factors(run: LanguageRun) -> list[float]:
    """Schedule-free warms up by itself."""
    if run.method.schedule is None:
        return [1.0] * run.size.num_steps
    size = run.size
    made = factors(run.method.schedule, size.num_steps, warmup_steps=size.warmup_steps)
    return list(made.tolist())


def _batch(data: TokenWindows, run: LanguageRun, step: int) -> Batch:
    indices = global_indices(
        step, batch_size=run.size.batch_size, num_train=data.num_train, seed=run.seed
    )
    return data.train_batch(indices)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    loss = _loss(model, batch)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if not isinstance(optimizer, AdamWScheduleFree):
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()
    return loss.item()


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    logits_BTV: Tensor = model(batch.inputs)
    return functional.cross_entropy(logits_BTV.flatten(0, 1), batch.targets.flatten())


def _held_out(data: TokenWindows, size: Size) -> list[Batch]:
    """Return blocks of neighbouring samples, spread evenly: files differ, and lie in order."""
    num_blocks = max(1, size.num_eval_samples // _EVAL_BLOCK)
    stride = data.num_eval // num_blocks
    return [data.eval_batch(n * stride, n * stride + _EVAL_BLOCK) for n in range(num_blocks)]


def _held_out_loss(
    model: nn.Module, optimizer: torch.optim.Optimizer, held_out: list[Batch]
) -> float:
    """Return the mean loss, at x where there is one."""
    if isinstance(optimizer, AdamWScheduleFree):
        with at_average(optimizer):
            return _mean_loss(model, held_out)
    return _mean_loss(model, held_out)


@torch.no_grad()
def _mean_loss(model: nn.Module, held_out: list[Batch]) -> float:
    return sum(_loss(model, batch).item() for batch in held_out) / len(held_out)
