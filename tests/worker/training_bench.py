"""A rank alone in this process: a specification, what is built from it, and a scripted reporter."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roadless.service.contract.checkpoint.manifest import CheckpointKind, Manifest
from roadless.service.contract.job.data import DataSpec
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.reports.events import EvalPoint, Event, StepMetrics, Usage
from roadless.worker.checkpointing.state_saver import StateSaver
from roadless.worker.checkpointing.training_state import Resumed, read_state
from roadless.worker.data.base import DataSet
from roadless.worker.data.build import build_data
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.evaluation.evaluate import Checked, noop
from roadless.worker.evaluation.sets import build_datasets
from roadless.worker.model.build import build_model
from roadless.worker.position import Position
from roadless.worker.rank_launch import ModelSources
from roadless.worker.reporting.outbox import Heard
from roadless.worker.reporting.staged_checkpoint import Staged
from roadless.worker.setup import RankContext, TrainingSetup, set_up_training
from roadless.worker.training.evaluations import EvaluationManager
from roadless.worker.training.loop import Training
from roadless.worker.training.resource_usage import UsageMeter

ALONE = Cluster(rank=0, world_size=1, device=torch.device("cpu"))
START = Position()

#: What the operator of this node allows.
ENTRY_POINTS = ModelSources(entry_points=("metric_functions:top", "metric_functions:not_a_number"))

MLP = {"kind": "preset", "name": "mlp", "hidden": [6]}
CONVNET = {"kind": "preset", "name": "convnet", "width": 2}


class ScriptedReporter:
    """Hears what the script says once so many steps are said, and remembers everything said."""

    def __init__(self, script: Mapping[int, Heard] | None = None) -> None:
        self._script = {0: Heard(), **(script or {})}
        self.said: list[Event] = []
        self.published: list[Staged] = []
        self.order: list[str] = []  #: kinds of events and checkpoints, as they came

    @property
    def heard(self) -> Heard:
        return self._script[max(step for step in self._script if step <= len(self.steps))]

    @property
    def steps(self) -> list[StepMetrics]:
        return [event for event in self.said if isinstance(event, StepMetrics)]

    @property
    def evals(self) -> list[EvalPoint]:
        return [event for event in self.said if isinstance(event, EvalPoint)]

    def say(self, event: Event) -> None:
        self.said.append(event)
        if not isinstance(event, Usage):  # said by the clock
            self.order.append(event.kind)

    def publish(self, staged: Staged) -> None:
        self.published.append(staged)
        self.order.append(staged.manifest.kind)

    def of_kind(self, kind: CheckpointKind) -> list[Staged]:
        return [staged for staged in self.published if staged.manifest.kind is kind]


class TrustingValidator:
    """Finds every checkpoint good at once; for tests of what comes before and after."""

    lost_step = None

    def check(self, folder: Path, manifest: Manifest, *, checked: Checked) -> Future[Manifest]:
        validated: Future[Manifest] = Future()
        validated.set_result(manifest)
        return validated

    def results(self) -> list[Any]:
        return []


class Bench:
    """One attempt of one rank, ready to run."""

    def __init__(
        self,
        brief: AttemptBrief,
        folder: Path,
        *,
        script: Mapping[int, Heard] | None = None,
        model: nn.Module | None = None,
        resume: Path | None = None,
        cluster: Cluster = ALONE,
        make_validator: Callable[[ScriptedReporter], Any] = lambda _: TrustingValidator(),
        position: Position = START,
        beat: Callable[[], None] = noop,
        usage: UsageMeter | None = None,
    ) -> None:
        """``position``: where training begins, unless it resumes."""
        self.setup = build(brief.spec, model=model, cluster=cluster)
        self.reporter = ScriptedReporter(script)
        resumed = self._resumed(resume) if resume else Resumed(position, None)
        context = context_of(brief, self.setup, self.reporter, cluster=cluster)
        self.evaluations = EvaluationManager(
            context,
            staging=folder / "staging",
            validator=make_validator(self.reporter) if cluster.is_lead else None,
            beat=beat,
        )
        self.states = StateSaver(context, staging=folder / "staging")
        self.training = Training(
            context,
            evaluations=self.evaluations,
            states=self.states,
            position=resumed.position,
            evaluated_step=resumed.evaluated_step,
            beat=beat,
            usage=usage,
        )

    @property
    def state(self) -> dict[str, Any]:
        """Everything that training goes on from."""
        optimizer = self.setup.optimizer.state_dict()
        return {"model": self.setup.model.state_dict(), "optimizer": optimizer}

    @property
    def last_state(self) -> Path:
        return self.reporter.of_kind(CheckpointKind.RESUME)[-1].folder

    def settle(self) -> None:
        """As at the end of a run: what was to be written is written."""
        self.states.settle()
        self.evaluations.require_written()

    def _resumed(self, folder: Path) -> Resumed:
        return read_state(folder, model=self.setup.model, optimizer=self.setup.optimizer)


def context_of(
    brief: AttemptBrief, setup: TrainingSetup, reporter: ScriptedReporter, *, cluster: Cluster
) -> RankContext:
    return RankContext(
        brief=brief,
        cluster=cluster,
        reporter=reporter,  # type: ignore[arg-type]  a fake
        setup=setup,
    )


def make_spec(**changes: Any) -> JobSpec:
    spec = {
        "model": MLP,
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.02, "warmup_steps": 3},
        "training": {"batch_size": 8, "seed": 5},
        "budget": {"max_steps": 6},
        "evaluation": {
            "every_steps": 1000,
            "batch_size": 20,
            "max_batches": 2,
            "batchnorm_batches": 2,
        },
        "checkpoints": {"state_every_steps": 1000},
    }
    for name, value in changes.items():
        is_section = isinstance(value, dict) and name in ("training", "evaluation", "checkpoints")
        spec[name] = {**spec[name], **value} if is_section else value
    return JobSpec.model_validate(spec)


def make_brief(*, evaluations_served: int = 0, **changes: Any) -> AttemptBrief:
    return AttemptBrief(
        attempt_id="att_1",
        job_id="job_1",
        fence=1,
        spec=make_spec(**changes),
        evaluations_served=evaluations_served,
    )


def build(
    spec: JobSpec, *, model: nn.Module | None = None, cluster: Cluster = ALONE
) -> TrainingSetup:
    datasets = build_datasets(spec, build=partial(_data, spec), sources=ENTRY_POINTS)
    data = datasets.description
    model = model or build_model(spec.model, data=data, seed=spec.training.seed)
    return set_up_training(model, spec=spec, datasets=datasets, cluster=cluster)


def _data(spec: JobSpec, data: DataSpec) -> DataSet:
    about = spec.model_dump_json(include={"model", "task", "optimizer"})
    return _built_data(f'{about[:-1]}, "data": {data.model_dump_json()}}}')


@lru_cache
def _built_data(described: str) -> DataSet:
    spec = JobSpec.model_validate_json(described)
    return build_data(spec.data, model=spec.model, task=spec.task)


def bits(value: Any) -> Any:
    """The value with tensors and floats as their bits, so that ``==`` means bit for bit."""
    match value:
        case torch.Tensor():
            return (
                str(value.dtype),
                tuple(value.shape),
                value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
            )
        case float():
            return value.hex()
        case Mapping():
            return {key: bits(item) for key, item in value.items()}
        case list() | tuple():
            return [bits(item) for item in value]
        case _:
            return value
