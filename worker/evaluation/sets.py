"""The data sets and metrics of a job: what is trained on, and all that is evaluated.

Built from the specification alone, so that a rank, a process that checks a checkpoint and a
stranger with the download evaluate the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

from roadless.service.contract.job.data import DataSpec, RecordsData, label_of_data
from roadless.service.contract.job.evaluation import EvaluationSpec
from roadless.service.contract.job.evaluation_sets import (
    EvaluationSet,
    is_standardised,
    prepared_alike,
)
from roadless.service.contract.job.spec import JobSpec
from roadless.worker.data.base import DataSet, Description, EvalSplit, TrainSplit
from roadless.worker.data.formats.chunk import shown_names
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
        """Return how this set is evaluated in a job with this ``spec``."""
        return spec.model_copy(update={"max_batches": self.max_batches})


@dataclass(frozen=True)
class Datasets:
    """What a job is trained and evaluated on.

    ``train`` and ``validation``: the two splits of the model's data. ``named``: further sets, which
    are only evaluated.
    """

    train: TrainSplit
    validation: EvalSplit
    named: tuple[NamedSet, ...] = ()
    metrics: tuple[CustomMetric, ...] = ()

    @property
    def description(self) -> Description:
        """The description of the model's data."""
        return self.train.description

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The fingerprints of the further sets, by name."""
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
    """Add the name of the further set to the message of a failure within the block."""
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
    described = _as_colourful(described, main=main)
    described = _as_exact(described, standardised=is_standardised(spec.data))
    with naming(one.name):
        data = build(described)
        columns = _columns_in_other_order(described, data, main=main)
        _require_fit(data.description, main=main.description)
        _require_targets_in_order(described, main=spec.data)
        if columns:
            data = build(described.model_copy(update={"columns": columns}))
        if isinstance(data, NumberRows) and isinstance(main, NumberRows):
            data = data.labelled_like(main)
        if is_standardised(spec.data):
            data = _standardised(data, like=main, label=label_of_data(one.data))
    return NamedSet(one.name, data, one.max_batches)


def _as_colourful(data: DataSpec, *, main: DataSet) -> DataSpec:
    """The set, with grey images as colour where those of the model's data are in colour."""
    shape = main.description.input_shape
    if not isinstance(data, RecordsData) or data.image is None or data.image_channels is not None:
        return data
    return data.model_copy(update={"image_channels": 3}) if shape[:1] == (3,) else data


def _as_exact(data: DataSpec, *, standardised: bool) -> DataSpec:
    """The set, kept as exact as the model's data is before its mean is subtracted."""
    if not isinstance(data, RecordsData) or data.target is None:
        return data
    return data.model_copy(update={"standardise": standardised})


def _columns_in_other_order(
    described: DataSpec, data: DataSet, *, main: DataSet
) -> tuple[str, ...]:
    """The columns of the model's data, if the set has them in another order and names none itself.

    Raises DataInvalid where it has others, or names the same in another order: as many would fit
    the model, and mean something else.
    """
    if not isinstance(described, RecordsData):
        return ()
    if not (isinstance(data, NumberRows) and isinstance(main, NumberRows) and main.columns):
        return ()
    if described.columns is not None:
        _require_order(data.columns, of="columns", model=main.columns)
        return ()
    if sorted(data.columns) != sorted(main.columns):
        raise DataInvalid(
            f"expected the columns {shown_names(main.columns)} of the model's data, saw "
            f"{shown_names(data.columns)}; name those to use in `columns`"
        )
    return main.columns if data.columns != main.columns else ()


def _require_order(names: Sequence[str], *, of: str, model: Sequence[str]) -> None:
    """Raise DataInvalid where the names are the model's in another order."""
    if sorted(names) == sorted(model) and tuple(names) != tuple(model):
        raise DataInvalid(
            f"expected the {of} in the order of the model's data, {shown_names(model)}, saw "
            f"{shown_names(names)}; name them in that order"
        )


def _require_targets_in_order(described: DataSpec, *, main: DataSpec) -> None:
    """Raise DataInvalid where several numbers to predict are those of the model, but mixed up."""
    if isinstance(described, RecordsData) and isinstance(main, RecordsData):
        seen, expected = described.target, main.target
        if isinstance(seen, tuple) and isinstance(expected, tuple):
            _require_order(seen, of="targets", model=expected)


def _require_fit(seen: Description, *, main: Description) -> None:
    """Fewer classes, or a smaller vocabulary, still fit the model."""
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
    """The set, normalized with the model's mean and deviation: its own would hide a shift."""
    assert isinstance(like, NumberRows), "expected standardised data to be rows"
    if not isinstance(data, NumberRows):
        raise DataInvalid(f"expected rows to scale as the model's data is scaled, saw {label!r}")
    return data.standardised_like(like)
