"""Further evaluation sets, beside the model's own held-out data, and custom metrics.

A further set is prepared like the model's data, since the model knows nothing else.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints

from roadless.service.contract.base import Spec
from roadless.service.contract.job.budget import METRICS
from roadless.service.contract.job.data import (
    BreastCancerData,
    DataSpec,
    FilesData,
    RecordsData,
    check_columns,
    label_of_data,
    tasks_of_data,
)
from roadless.service.contract.job.models import JsonObject
from roadless.service.contract.job.tasks import Task

#: Each set is read, held and evaluated with every evaluation.
MAX_SETS: Final = 8
MAX_CUSTOM_METRICS: Final = 16

#: What comes after ``eval.``, and between it and the name of a metric.
EvaluatedName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
EntryPoint = Annotated[
    str,
    StringConstraints(max_length=255, pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"),
]

_TASK_METRICS: Final = frozenset(
    name.removeprefix("eval.") for names in METRICS.values() for name in names
)
#: Names that evaluations use for something else.
RESERVED_NAMES: Final = _TASK_METRICS | {"loss_at_y"}


class EvaluationSet(Spec):
    """A further held-out set, evaluated at the same x as ``eval.<name>.loss`` and so on.

    Only the held-out part of its data is used. Tokenizer, separator, mean and deviation are those
    of the model's data; so are columns, image size and number of classes where the set does not
    name them.
    """

    name: EvaluatedName
    data: DataSpec
    max_batches: int | None = Field(None, ge=1, description="null: the whole held-out part")


class CustomMetric(Spec):
    """A metric computed by a package on the training nodes, or by the wheel of the job's model.

    From packages on the nodes, only functions that their operator lists are called, as for models.

    Called under ``torch.no_grad`` as ``function(outputs, targets, **arguments)`` with a batch of
    held-out samples; returns a float tensor of shape (samples,). The mean over samples is reported
    as ``eval.<name>`` and for each further set as ``eval.<set>.<name>``.
    """

    name: EvaluatedName
    entry_point: EntryPoint = Field(description="package.module:function")
    arguments: JsonObject = {}


def check_names(sets: Iterable[EvaluationSet], metrics: Iterable[CustomMetric]) -> None:
    """Raise ValueError when a name is used twice, or is one of :data:`RESERVED_NAMES`."""
    seen: set[str] = set()
    for name in (*(one.name for one in sets), *(one.name for one in metrics)):
        if name in RESERVED_NAMES:
            raise ValueError(f"expected a name that no metric of a task has, saw {name!r}")
        if name in seen:
            raise ValueError(f"expected each set and metric with its own name, saw {name!r} twice")
        seen.add(name)


def metric_names(
    task: Task, *, sets: Iterable[EvaluationSet], metrics: Iterable[CustomMetric]
) -> frozenset[str]:
    """Return what evaluations may report, as in ``eval.loss`` and ``eval.shifted.accuracy``."""
    each = [name.removeprefix("eval.") for name in METRICS[task]] + [one.name for one in metrics]
    named = (f"eval.{one.name}.{name}" for one in sets for name in each)
    return frozenset((*(f"eval.{name}" for name in each), *named))


def check_set(one: EvaluationSet, *, like: DataSpec, task: Task) -> None:
    """Raise ValueError unless a model that is trained on ``like`` can be evaluated on the set."""
    if task not in (able := tasks_of_data(one.data)):
        expected = " or ".join(repr(name) for name in sorted(able))
        raise ValueError(
            f"set {one.name!r}: expected {expected} for data {label_of_data(one.data)!r}, "
            f"saw {task!r}"
        )
    try:
        prepared_alike(one.data, like=like)
    except ValueError as error:
        raise ValueError(f"set {one.name!r}: {error}") from error


def prepared_alike(data: DataSpec, *, like: DataSpec, num_classes: int | None = None) -> DataSpec:
    """Return the data of a further set, completed by what the model's data, ``like``, decides.

    ``num_classes``: that of the model's data, if known, since a set need not have every class. Mean
    and deviation are never known here; :func:`is_standardised` says whether they are needed.
    Raises ValueError if the two cannot be reconciled.
    """
    if not isinstance(data, RecordsData):
        return data
    if data.target is None:
        return _tokenised_alike(data, like=like)
    if data.standardise and not is_standardised(like):
        raise ValueError("expected no standardise, which the model's data does not use, saw one")
    changes = {"standardise": False, "num_classes": data.num_classes or num_classes}
    if isinstance(like, RecordsData):
        changes |= _columns_alike(data, like=like)
    return data.model_copy(update=changes)


def _columns_alike(data: RecordsData, *, like: RecordsData) -> dict[str, Any]:
    if data.image is not None:
        return {
            "image_size": data.image_size or like.image_size,
            "image_channels": data.image_channels or like.image_channels,
        }
    return {"columns": data.columns or like.columns}


def is_standardised(data: DataSpec) -> bool:
    """Whether rows are standardised by the mean and deviation of the training rows."""
    if isinstance(data, RecordsData):
        return data.standardise
    return isinstance(data, BreastCancerData)


def _tokenised_alike(data: RecordsData, *, like: DataSpec) -> RecordsData:
    tokenizer, separator = "bytes", None
    if isinstance(like, RecordsData):
        tokenizer, separator = like.tokenizer, like.separator
    # Once a specification is stored, a field that was left out cannot be told from its default.
    if data.tokenizer not in ("bytes", tokenizer):
        raise ValueError(
            f"expected the tokenizer of the model's data, {tokenizer!r}, saw {data.tokenizer!r}"
        )
    if data.separator not in (None, separator):
        raise ValueError(
            f"expected the separator of the model's data, {separator!r}, saw {data.separator!r}"
        )
    alike = data.model_copy(update={"tokenizer": tokenizer, "separator": separator})
    if isinstance(alike, FilesData):
        check_columns(alike, format=alike.format)
    return alike
