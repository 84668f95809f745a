"""Builds a data set from its spec: one ``match``, and no other code knows the names."""

import logging
from collections.abc import Callable
from functools import partial

from roadless.service.contract.job.data import (
    BreastCancerData,
    DataSpec,
    DigitsData,
    FilesData,
    HeldOutFiles,
    HuggingFaceData,
    PythonStdlibBytesData,
    RecordsData,
    SyntheticClassification,
    SyntheticRegression,
    SyntheticTokens,
    UploadedData,
    check_columns,
)
from roadless.service.contract.job.models import ModelSpec, context_of, label_of
from roadless.service.contract.job.tasks import Task
from roadless.worker.data.base import DataSet
from roadless.worker.data.builtin import breast_cancer, stdlib_bytes, synthetic
from roadless.worker.data.builtin.digits import Digits
from roadless.worker.data.lazy_import import lazy_import
from roadless.worker.data.prepared.preparation import Preparation
from roadless.worker.data.progress import Progress, Tell
from roadless.worker.data.records.base import Records
from roadless.worker.data.records.files import FileRecords
from roadless.worker.data.sources import uploaded
from roadless.worker.data.sources.locations import find_files
from roadless.worker.data.sources.uploaded import NoUploads, Uploads
from roadless.worker.errors import DataInvalid
from roadless.worker.rank_launch import DataSources

_log = logging.getLogger(__name__)


def build_data(
    spec: DataSpec,
    *,
    model: ModelSpec,
    task: Task,
    sources: DataSources | None = None,
    uploads: Uploads | None = None,
    say: Callable[[str], None] = _log.info,
) -> DataSet:
    """Return the data set, cut for this model and task.

    ``sources``: what the operator of the node allows; None: built-in data and public addresses.
    ``uploads``: where uploaded data sets are fetched from. ``say`` periodically receives the
    progress of a long preparation. Raises the JobFailed errors named ``Data...``, and SourceAway
    when a remote source does not answer.
    """
    match spec:
        case DigitsData():
            return Digits()
        case BreastCancerData():
            return breast_cancer.load()
        case PythonStdlibBytesData():
            return stdlib_bytes.load(context=_context(model))
        case SyntheticClassification():
            return synthetic.classification(spec)
        case SyntheticRegression():
            return synthetic.regression(spec)
        case SyntheticTokens():
            return synthetic.tokens(spec, context=_context(model))
        case _:
            opened, tell = sources or DataSources(), Progress(say).tell
            records = _records(spec, sources=opened, uploads=uploads or NoUploads(), tell=tell)
            preparation = Preparation(opened, tell=tell, say=say)
            if spec.target is not None:
                return preparation.rows(spec, records, task=task)
            return preparation.windows(spec, records, context=_context(model))


def _context(model: ModelSpec) -> int:
    context = context_of(model)
    assert context is not None, f"expected a model over tokens, saw {label_of(model)}"
    return context


def _records(spec: RecordsData, *, sources: DataSources, uploads: Uploads, tell: Tell) -> Records:
    match spec:
        case FilesData():
            find = partial(find_files, sources=sources, tell=tell, bearer=spec.bearer)
            eval_files = find(spec.eval.path) if isinstance(spec.eval, HeldOutFiles) else None
            return FileRecords(
                name=spec.path if isinstance(spec.path, str) else ", ".join(spec.path[:3]),
                format=spec.format,
                train=find(spec.path),
                eval=eval_files,
                text=spec.text,
                delimiter=spec.delimiter,
            )
        case UploadedData():
            return _uploaded(spec, uploads=uploads)
        case HuggingFaceData():
            records: Records = lazy_import("records.hub").find(spec, sources=sources)
            return records


def _uploaded(spec: UploadedData, *, uploads: Uploads) -> FileRecords:
    content = uploads.content(spec.dataset_id)
    try:
        check_columns(spec, format=content.format)
    except ValueError as error:
        raise DataInvalid(f"{spec.dataset_id}: {error}") from error
    eval_files = None
    if isinstance(spec.eval, HeldOutFiles):
        eval_files = uploaded.find(spec.eval.path, content=content, uploads=uploads)
    return FileRecords(
        name=spec.dataset_id,
        format=content.format,
        train=uploaded.find(spec.files, content=content, uploads=uploads),
        eval=eval_files,
        text=spec.text,
        delimiter=spec.delimiter,
    )
