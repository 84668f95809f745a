"""From the spec of data to a data set: one ``match``, and nothing else knows the names."""

from collections.abc import Iterable
from typing import assert_never

from service.contract.data import DataSpec, DigitsData, FileBytesData, PythonStdlibBytesData
from service.contract.models import GptPreset, ModelSpec
from worker.data import file_bytes, stdlib_bytes
from worker.data.base import DataSet
from worker.data.digits import Digits


def build_data(spec: DataSpec, *, model: ModelSpec, roots: Iterable[str] = ()) -> DataSet:
    """Return the data set, cut for this model. Raises the JobFailed errors named ``Data...``.

    ``roots``: folders of this node that jobs may read files from.
    """
    match spec:
        case DigitsData():
            return Digits()
        case PythonStdlibBytesData():
            return stdlib_bytes.load(context=_context(model))
        case FileBytesData(path=path):
            return file_bytes.load(path, context=_context(model), roots=roots)
        case _:
            assert_never(spec)


def _context(model: ModelSpec) -> int:
    assert isinstance(model, GptPreset), f"expected a model over tokens, saw {model.name}"
    return model.context
