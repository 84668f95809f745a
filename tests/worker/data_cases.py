"""What the tests of data share: a folder that is opened, and specifications over files in it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from roadless.service.contract.job.data import DataSpec
from roadless.service.contract.job.models import ModelSpec
from roadless.service.contract.job.tasks import Task
from roadless.worker.data.base import DataSet
from roadless.worker.data.build import build_data
from roadless.worker.data.sources.uploaded import Uploads
from roadless.worker.rank_launch import DataSources

MLP = {"kind": "preset", "name": "mlp"}

_DATA: TypeAdapter[DataSpec] = TypeAdapter(DataSpec)
_MODEL: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


@dataclass(frozen=True)
class Node:
    """A node whose operator has opened the folder ``root``."""

    root: Path
    sources: DataSources

    @classmethod
    def at(cls, folder: Path, **allowed: Any) -> "Node":
        root = (folder / "data").resolve()
        root.mkdir(exist_ok=True)
        cache = str(folder / "cache")
        return cls(root, DataSources(**{"roots": (str(root),), "cache": cache, **allowed}))

    def allowing(self, **allowed: Any) -> "Node":
        return Node(self.root, replace(self.sources, **allowed))

    def write(self, name: str, content: bytes | str) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def build(
        self,
        spec: Mapping[str, Any],
        *,
        task: Task = "classification",
        context: int = 8,
        uploads: Uploads | None = None,
        **options: Any,
    ) -> DataSet:
        """The data set of ``{"kind": "files", **spec}``."""
        is_text = task == "causal_lm"
        model = {"kind": "preset", "name": "gpt", "context": context} if is_text else MLP
        return build_data(
            _DATA.validate_python({"kind": "files", **spec}),
            model=_MODEL.validate_python(model),
            task=task,
            sources=self.sources,
            uploads=uploads,
            **options,
        )


# ---- files --------------------------------------------------------------------------------------

Rows = Mapping[str, Sequence[Any]]


def csv_text(rows: Rows) -> str:
    lines = [",".join(rows), *(",".join(map(str, row)) for row in zip(*rows.values(), strict=True))]
    return "".join(f"{line}\n" for line in lines)


def jsonl_text(rows: Rows) -> str:
    return "".join(
        json.dumps(dict(zip(rows, row, strict=True))) + "\n"
        for row in zip(*rows.values(), strict=True)
    )


def write_table(node: Node, name: str, rows: Rows) -> str:
    """The rows as a file of the format that the name ends with."""
    format = name.rpartition(".")[2]
    path = node.root / name
    match format:
        case "csv":
            node.write(name, csv_text(rows))
        case "jsonl":
            node.write(name, jsonl_text(rows))
        case "npz":
            np.savez(path, **{key: np.array(values) for key, values in rows.items()})
        case "parquet":
            pq.write_table(pa.table(dict(rows)), path, row_group_size=7)
        case _:
            raise AssertionError(format)
    return str(path)


def all_rows(data: DataSet) -> tuple[list[Any], list[Any]]:
    """Inputs and targets to train on and then held out, in data-set order."""
    batches = [data.train_batch(np.arange(data.num_train)), data.eval_batch(0, data.num_eval)]
    inputs = [row for batch in batches for row in batch.inputs.tolist()]
    return inputs, [row for batch in batches for row in batch.targets.tolist()]


def said(texts: Iterable[str]) -> bytes:
    """Texts as bytes, each with a zero behind it."""
    return b"".join(text.encode() + b"\0" for text in texts if text)
