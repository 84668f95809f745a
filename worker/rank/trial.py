"""Which models a starting rank tries, and how: those that are not this product's own.

What the trial asks (``worker/training/trial.py``), the tests ask of presets. A job that resumes has
begun with its model before.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from roadless.service.contract.job.models import (
    ArchitectureSpec,
    CheckpointModel,
    EntryPointModel,
    ModelSpec,
)
from roadless.service.contract.reports.events import MODEL_TRIED, Notice
from roadless.worker.data.progress import Progress
from roadless.worker.evaluation.inputs import model_sources
from roadless.worker.rank_launch import RankLaunch
from roadless.worker.reporting.reporter import Reporter
from roadless.worker.setup import RankContext
from roadless.worker.training.trial import require_remade, require_same_outputs, try_out
from roadless.worker.validation.reload import empty_model

#: The largest model of somebody's factory that is made twice before the first step.
REMADE_PARAMETERS = 2**26
#: Names of buffers that a notice lists.
_LISTED = 5


def try_model(launch: RankLaunch, context: RankContext) -> list[Notice]:
    """Raise ModelInvalid unless the model is what its task says; every rank calls this.

    After the state that the attempt resumes from is in it. Returns what its owner should know.
    """
    spec, setup, cluster = context.brief.spec, context.setup, context.cluster
    architecture = _architecture(spec.model)
    if architecture.kind == "preset":
        return []
    if context.brief.resume is not None:
        require_same_outputs(setup, cluster=cluster)
        return []
    buffers = try_out(setup, spec=spec, cluster=cluster, beat=_beat(context.reporter))
    if isinstance(architecture, EntryPointModel) and _is_remade(context):
        require_remade(setup, anew=_made_anew(launch, context))
    return [_buffers_of_training(buffers)] if buffers else []


def _architecture(model: ModelSpec) -> ArchitectureSpec:
    if not isinstance(model, CheckpointModel):
        return model
    assert model.architecture is not None, "expected the service to fill in the architecture"
    return model.architecture


def _beat(reporter: Reporter) -> Callable[[], None]:
    """Every so often a beat renews the deadline of STARTING: on CPUs a pass may take a minute."""
    progress = Progress(lambda text: reporter.say(Notice(code=MODEL_TRIED, message=text)))
    return lambda: progress.tell("the model is tried before its first step")


def _is_remade(context: RankContext) -> bool:
    """Whether this rank makes the model again: the lead, if it has it whole, and it is not large.

    Of a larger one the first checkpoint's check tells.
    """
    cluster, strategy = context.cluster, context.brief.spec.parallelism.strategy
    is_whole = cluster.world_size == 1 or strategy == "ddp"
    num_parameters = sum(parameter.numel() for parameter in context.setup.model.parameters())
    return cluster.is_lead and is_whole and num_parameters <= REMADE_PARAMETERS


def _made_anew(launch: RankLaunch, context: RankContext) -> nn.Module:
    folder = Path(launch.scratch)  # a factory reads none
    data = context.setup.datasets.description
    return empty_model(folder, spec=context.brief.spec, data=data, sources=model_sources(launch))


def _buffers_of_training(names: list[str]) -> Notice:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    message = (
        f"passes in training change {', '.join(names[:_LISTED])}{more}, which are no statistics of "
        "norm layers: evaluations and their checkpoints take them as training has left them, not "
        "at the averaged point"
    )
    return Notice(code="evaluation.buffers", message=message)
