"""Records that Hugging Face's ``datasets`` reads, from a folder of the node or from the hub.

No code of a data set is run, and only formats are read that cannot carry any. A data set's own
description may name files elsewhere, so every file is judged after it is found: it must lie in the
folder, or in the repository on the hub. Imported by ranks that need it only.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from roadless.service.contract.job.data import HeldOutSplit, HuggingFaceData
from roadless.worker.data.formats.arrow_rows import chunks_of
from roadless.worker.data.formats.chunk import Choose, Chunk, Piece
from roadless.worker.data.progress import Tell, telling
from roadless.worker.data.records.base import Split
from roadless.worker.data.records.files import only, pieces_of
from roadless.worker.data.sources.access import ALLOW_HUB_VARIABLE, is_below
from roadless.worker.data.sources.local_files import allowed_path
from roadless.worker.data.sources.source_file import Identity, SourceAway
from roadless.worker.errors import DataForbidden, DataInvalid, DataNotFound
from roadless.worker.rank_launch import DataSources
from roadless.worker.secrets import REDACTOR

#: Readers of plain data. Others of the library's unpickle, or follow paths in what they read.
_READERS = frozenset({"arrow", "csv", "json", "parquet", "text"})
_ROWS = 1024

datasets.disable_progress_bars()


def find(spec: HuggingFaceData, *, sources: DataSources) -> "HubRecords":
    """Return the data set's records. Raises the JobFailed errors named ``Data...``, or SourceAway.

    A path from the root, or one that begins with a dot, is a folder of the node; else a hub id.
    """
    if spec.path.startswith(("/", ".")):
        folder = allowed_path(spec.path, sources=sources)
        if not folder.is_dir():
            raise DataNotFound(f"expected a folder at {spec.path}, saw none")
        return HubRecords(spec, path=str(folder))
    if not sources.allow_hub:
        raise DataForbidden(f"expected {ALLOW_HUB_VARIABLE}=1 on this node for {spec.path}, saw 0")
    return HubRecords(spec, path=spec.path)


class HubRecords:
    """The splits of one data set. Raises as :func:`find` does."""

    is_raw = False

    def __init__(self, spec: HuggingFaceData, *, path: str) -> None:
        self._spec = spec
        self._path = path
        with tempfile.TemporaryDirectory() as folder:
            self._builder = self._build(folder)
        _require_plain(self._builder, name=spec.path)
        files = [str(file) for split in self._files.values() for file in split]
        _require_inside(files, path=path)

    @property
    def name(self) -> str:
        """The path or id."""
        return self._spec.path

    @property
    def _files(self) -> dict[Any, Any]:
        return self._builder.config.data_files or {}

    @property
    def identity(self) -> list[Identity]:
        """Every file; on the hub its URL names the commit."""
        wanted: Identity = {"split": self._spec.split, "eval": self._eval_split or ""}
        files = [str(file) for split in self._files.values() for file in split]
        return [{"reader": self._builder.name, **wanted}, *map(_identity, files)]

    @property
    def has_own_eval(self) -> bool:
        """Whether a split of its own is held out."""
        return self._eval_split is not None

    @property
    def _eval_split(self) -> str | None:
        return self._spec.eval.split if isinstance(self._spec.eval, HeldOutSplit) else None

    def pieces(self, split: Split, *, work: Path, tell: Tell) -> Iterator[Piece]:
        """Yield the texts of a split."""
        text = self._spec.text
        assert text is not None
        return pieces_of(self.chunks(split, work=work, choose=only(text), tell=tell), text=text)

    def chunks(self, split: Split, *, work: Path, choose: Choose, tell: Tell) -> Iterator[Chunk]:
        """Yield the rows of a split."""
        name = self._spec.split if split == "train" else self._eval_split
        file = f"{self.name}, split {name!r}"
        with _translated(file), _copied(work) as folder:
            tables = self._open(name, folder, tell).with_format("arrow").iter(batch_size=_ROWS)
            first: pa.Table | None = next(tables, None)
            if first is None:
                return
            columns = choose(first.column_names, file)
            yield from chunks_of(_batches(first, tables), names=columns, file=file)

    def _open(self, split: str | None, folder: str, tell: Tell) -> Any:
        if self._spec.streaming:
            return self._builder.as_streaming_dataset(split=split)
        builder = self._build(folder)
        with telling(f"{self.name} is being copied", tell):
            builder.download_and_prepare(
                download_config=datasets.DownloadConfig(cache_dir=f"{folder}/downloads")
            )
        return builder.as_dataset(split=split)

    def _build(self, folder: str) -> Any:
        with _translated(self._spec.path):
            return datasets.load_dataset_builder(
                self._path, self._spec.name, revision=self._spec.revision, cache_dir=folder
            )


def _batches(first: pa.Table, others: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
    yield from first.to_batches()
    for table in others:
        yield from table.to_batches()


def _require_plain(builder: Any, *, name: str) -> None:
    if builder.name not in _READERS:
        raise DataForbidden(
            f"expected {name} to be read as {', '.join(sorted(_READERS))}, saw {builder.name}"
        )


def _require_inside(files: list[str], *, path: str) -> None:
    """A description of a data set cannot send this node elsewhere."""
    for file in files:
        inside = is_below(file, (path,)) if os.path.isabs(path) else _is_of_hub(file, path)
        if not inside:
            raise DataForbidden(f"expected the files of {path} to lie in it, saw {file}")


def _is_of_hub(file: str, path: str) -> bool:
    return file.startswith(f"hf://datasets/{path}@") and "/../" not in file


def _identity(file: str) -> Identity:
    if "://" in file:
        return {"url": file}
    status = Path(file).stat()
    return {"path": file, "size": status.st_size, "changed_ns": status.st_ctime_ns}


@contextmanager
def _copied(work: Path) -> Iterator[str]:
    """A folder for what the library copies, which goes with the block."""
    folder = work / "hub"
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataNotFound(f"expected the data set {name}, saw: {_short(error)}") from error
    except (ConnectionError, TimeoutError) as error:
        raise SourceAway(f"expected the hub to answer for {name}, saw: {_short(error)}") from error
    except (ValueError, TypeError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataInvalid(f"expected to read {name}, saw: {_short(error)}") from error


def _short(error: Exception) -> str:
    # Redacted before it is cut: a secret that is cut in two is no longer recognised.
    return REDACTOR.redact(str(error.__cause__ or error)).partition("\n")[0][:500]
