"""The data sets and metrics of a job: what is trained on, and all that an evaluation looks at.

TrainingSetup from the specification alone, so that a rank, a process that checks a checkpoint and a
stranger with the download evaluate the same.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

from roadless.service.contract.job.data import DataSpec, label_of_data
from roadless.service.contract.job.evaluation import EvaluationSpec
from roadless.service.contract.job.evaluation_sets import (
    EvaluationSet,
    is_standardised,
    prepared_alike,
)
from roadless.service.contract.job.spec import JobSpec
from roadless.worker.data.base import DataSet, Description, EvalSplit, TrainSplit
from roadless.worker.data.prepared.row_dataset import NumberRows
from roadless.worker.errors import DataInvalid, JobFailed
from roadless.worker.evaluation.custom_metrics import CustomMetric, load_metrics, try_out
from roadless.worker.rank_launch import ModelSources

_NOTHING = ModelSources()


@dataclass(frozen=True)
class NamedSet:
    """A further set, of which the held-out split is evaluated."""

    name: str
    data: EvalSplit
    max_batches: int | None

    def spec(self, spec: EvaluationSpec) -> EvaluationSpec:
        """Return how this set is evaluated by a job that is evaluated like this."""
        return spec.model_copy(update={"max_batches": self.max_batches})


@dataclass(frozen=True)
class Datasets:
    """What a job is trained and evaluated on.

    ``train`` and ``validation``: the two splits of the model's data. ``named``: further sets, which
    are evaluated only.
    """

    train: TrainSplit
    validation: EvalSplit
    named: tuple[NamedSet, ...] = ()
    metrics: tuple[CustomMetric, ...] = ()

    @property
    def description(self) -> Description:
        """That of the model's data."""
        return self.train.description

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Those of the further sets, by name."""
        return {one.name: one.data.description.fingerprint for one in self.named}

    @classmethod
    def of(
        cls,
        data: DataSet,
        named: tuple[NamedSet, ...] = (),
        metrics: tuple[CustomMetric, ...] = (),
    ) -> Self:
        """Return the value for a model that is trained and evaluated on ``data``."""
        return cls(train=data, validation=data, named=named, metrics=metrics)

    def validation_only(self) -> Self:
        """Return the value without further sets and without metrics."""
        return replace(self, named=(), metrics=())


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Have a failure within the block say which further set it is about."""
    try:
        yield
    except JobFailed as error:
        error.args = (f"evaluation set {name!r}: {error}",)
        raise


def build_datasets(
    spec: JobSpec, *, build: Callable[[DataSpec], DataSet], sources: ModelSources = _NOTHING
) -> Datasets:
    """Return the data sets and metrics of a job.

    ``build``: makes a data set, cut for the job's model and task (``roadless.worker.data.build``).
    ``sources``: which functions the operator allows. Raises the JobFailed errors named ``Data...``,
    those of a further set with its name, and those named ``Metric...``.
    """
    main, evaluation = build(spec.data), spec.evaluation
    metrics = load_metrics(evaluation.metrics, sources=sources)
    try_out(metrics, data=main, task=spec.task)
    named = tuple(_named(one, spec=spec, main=main, build=build) for one in evaluation.sets)
    return Datasets.of(main, named, metrics)


def _named(
    one: EvaluationSet, *, spec: JobSpec, main: DataSet, build: Callable[[DataSpec], DataSet]
) -> NamedSet:
    known = main.description.num_classes or None
    described = prepared_alike(one.data, like=spec.data, num_classes=known)
    with naming(one.name):
        data = build(described)
        _require_fit(data.description, main=main.description)
        if is_standardised(spec.data):
            data = _standardised(data, like=main, label=label_of_data(one.data))
    return NamedSet(one.name, data, one.max_batches)


def _require_fit(seen: Description, *, main: Description) -> None:
    """Fewer classes, or a smaller vocabulary, are among those that the model tells apart."""
    of_main = "of the model's data"
    if seen.input_shape != main.input_shape:
        raise DataInvalid(
            f"expected samples of shape {main.input_shape} {of_main}, saw {seen.input_shape}"
        )
    if seen.num_classes > main.num_classes:
        kind = "tokens in the vocabulary" if main.tokens_per_sample else "classes"
        raise DataInvalid(
            f"expected at most the {main.num_classes} {kind} {of_main}, saw {seen.num_classes}"
        )
    if seen.num_targets != main.num_targets:
        raise DataInvalid(
            f"expected the {main.num_targets} targets {of_main}, saw {seen.num_targets}"
        )


def _standardised(data: DataSet, *, like: DataSet, label: str) -> DataSet:
    """The set with the model's mean and deviation: its own would hide that it is shifted."""
    assert isinstance(like, NumberRows), "expected standardised data to be rows"
    if not isinstance(data, NumberRows):
        raise DataInvalid(f"expected rows to scale as the model's data is scaled, saw {label!r}")
    return data.standardised_like(like)
