"""Records of a Hugging Face data set: a folder on the node, or one on the hub.

The library ``datasets`` says which files a split has; what is in them our own readers read, the
same as from any other source. Its own (5.2.0) guess the types of a column anew in each part of a
file and cast what is unlike: one odd value wraps every text of a JSON column in quotes, "007"
becomes "7" and a time another text where an earlier file has texts, and a row of CSV that is too
long shifts its values.

No code of a data set is run, and only formats that cannot carry any are read. A data set's own
description may name files elsewhere, which are neither looked for nor read
(``described_files.py``). Imported only by ranks that need it.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import (
    EntryNotFoundError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from roadless.service.contract.job.data import Format, HeldOutSplit, HuggingFaceData
from roadless.worker.data.formats.chunk import Choose, Chunk, Column, Piece, shown, shown_names
from roadless.worker.data.formats.columns import written_number
from roadless.worker.data.progress import Tell, telling
from roadless.worker.data.records.base import Split
from roadless.worker.data.records.described_files import kept_inside, require_inside
from roadless.worker.data.records.files import FileRecords, HubFormat, only, pieces_of
from roadless.worker.data.sources.access import ALLOW_HUB_VARIABLE
from roadless.worker.data.sources.local_files import allowed_path, file_at
from roadless.worker.data.sources.source_file import (
    Identity,
    SourceAway,
    SourceFile,
    opened,
    require_once,
)
from roadless.worker.errors import DataForbidden, DataInvalid, DataNotFound, JobFailed
from roadless.worker.rank_launch import DataSources
from roadless.worker.secrets import REDACTOR

#: Readers of plain data, and what reads their files here. The library's others unpickle, or follow
#: paths in what they read.
_READERS: Mapping[str, Format | HubFormat] = {
    "arrow": "arrow",
    "csv": "csv",
    "json": "json",
    "parquet": "parquet",
    "text": "lines",
}
#: Options of the library's readers that change no value, or that are heeded here.
_HEEDED = {"name", "version", "data_dir", "data_files", "description", "features", "sep"} | {
    *("delimiter", "chunksize", "block_size", "batch_size", "use_threads", "parse_agent_traces"),
    *("fragment_scan_options", "on_mixed_types", "encoding_errors", "low_memory", "engine"),
}
_ABSENT = (FileNotFoundError, EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError)
_UTF_8 = (None, "utf-8", "utf8", "utf-8-sig")

datasets.disable_progress_bars()


def find(spec: HuggingFaceData, *, sources: DataSources) -> "HubRecords":
    """Return the data set's records. Raises the JobFailed errors named ``Data...``, or SourceAway.

    A path that begins with a slash or a dot is a folder on the node; any other is a hub id.
    """
    if spec.path.startswith(("/", ".")):
        folder = allowed_path(spec.path, sources=sources)
        if not os.path.isdir(folder):
            raise DataNotFound(f"expected a folder at {spec.path}, saw none")
        return _records(spec, path=str(folder), sources=sources)
    if not sources.allow_hub:
        raise DataForbidden(f"expected {ALLOW_HUB_VARIABLE}=1 on this node for {spec.path}, saw 0")
    return _records(spec, path=spec.path, sources=sources)


def _records(spec: HuggingFaceData, *, path: str, sources: DataSources) -> "HubRecords":
    held_out = spec.eval.split if isinstance(spec.eval, HeldOutSplit) else None
    with tempfile.TemporaryDirectory() as cache, _translated(spec.path), kept_inside(path):
        builder = datasets.load_dataset_builder(
            path, spec.name, revision=spec.revision, cache_dir=cache
        )
        _require_plain(builder, name=spec.path)
        splits = {
            str(split): [str(file) for file in files]
            for split, files in (builder.config.data_files or {}).items()
        }
        require_inside([file for files in splits.values() for file in files], path=path)
        split_of = partial(_split, splits, name=spec.path, sources=sources)
        files = FileRecords(
            name=spec.path,
            format=_READERS[builder.name],
            train=split_of(spec.split),
            eval=None if held_out is None else split_of(held_out),
            text=spec.text,
            delimiter=_delimiter(spec, builder),
        )
    return HubRecords(files, _class_names(builder), is_copied_first=not spec.streaming)


@dataclass(frozen=True)
class HubRecords:
    """The splits of one data set."""

    files: FileRecords
    class_names: Mapping[str, Sequence[str]]  #: of each column that its description gives some
    is_copied_first: bool  #: whether all files are fetched before the first is read

    is_raw = False

    @property
    def name(self) -> str:
        """The path or id."""
        return self.files.name

    @property
    def identity(self) -> list[Identity]:
        """Every file; on the hub its URL names the commit."""
        return [*self.files.identity, {"class_names": json.dumps(self.class_names)}]

    @property
    def has_own_eval(self) -> bool:
        """Whether a separate split is held out."""
        return self.files.has_own_eval

    def pieces(self, split: Split, *, work: Path, tell: Tell) -> Iterator[Piece]:
        """Yield the texts of a split."""
        text = self.files.text
        assert text is not None
        return pieces_of(self.chunks(split, work=work, choose=only(text), tell=tell), text=text)

    def chunks(self, split: Split, *, work: Path, choose: Choose, tell: Tell) -> Iterator[Chunk]:
        """Yield the rows of a split, file by file."""
        with ExitStack() as stack:
            files = self.files
            if self.is_copied_first:
                files = _copied(files, split, stack=stack, work=work, tell=tell)
            for chunk in files.chunks(split, work=work, choose=choose, tell=tell):
                yield self._numbered(chunk)

    def _numbered(self, chunk: Chunk) -> Chunk:
        """The rows with the numbers of classes that are written by name."""
        numbered = {
            column: _numbers(chunk, column, names=self.class_names[column])
            for column in chunk.columns
            if column in self.class_names
        }
        return replace(chunk, columns={**chunk.columns, **numbered}) if numbered else chunk


def _numbers(chunk: Chunk, column: str, *, names: Sequence[str]) -> Column:
    values = chunk.columns[column]
    if isinstance(values, np.ndarray):
        return values
    numbers: Mapping[str, Any] = {name: number for number, name in enumerate(names)}
    if chunk.is_text_only:  # there a number is a text as well, and then no class's name
        numbers = {name: str(at) for name, at in numbers.items() if not _is_whole(name)}
    return [
        _number(chunk, column, row, value, numbers=numbers) if isinstance(value, str) else value
        for row, value in enumerate(values)
    ]


def _number(
    chunk: Chunk, column: str, row: int, value: str, *, numbers: Mapping[str, Any]
) -> int | str:
    if value in numbers:
        number: int | str = numbers[value]
        return number
    if not _is_whole(value):
        chunk.refuse(
            row,
            column,
            expected=f"one of the classes {shown_names(list(numbers))} of the description",
            seen=shown(value),
            way_out="add it there, or correct the row",
        )
    return value if chunk.is_text_only else int(value)


def _is_whole(text: str) -> bool:
    return isinstance(written_number(text), int)


def _copied(
    files: FileRecords, split: Split, *, stack: ExitStack, work: Path, tell: Tell
) -> FileRecords:
    """The same records, with the files of a split on this disk until the stack is left."""
    wanted = files.train if split == "train" else files.eval or ()
    here = [_at(stack.enter_context(opened(file, work, tell=tell)), file) for file in wanted]
    return replace(files, train=here) if split == "train" else replace(files, eval=here)


def _at(path: Path, file: SourceFile) -> SourceFile:
    return replace(file, fetch=lambda *_: path)


# ---- what the library says ----------------------------------------------------------------------


def _split(
    splits: Mapping[str, Sequence[str]], split: str, *, name: str, sources: DataSources
) -> list[SourceFile]:
    if split not in splits:
        raise DataInvalid(
            f"{name}: expected one of its splits, which are {shown_names(sorted(splits))}, "
            f"saw {split!r}; a part of a split has to be stored as one"
        )
    found = [_source_file(file, name=name, sources=sources) for file in splits[split]]
    require_once(found)
    return found


def _source_file(file: str, *, name: str, sources: DataSources) -> SourceFile:
    if "://" not in file:
        return file_at(file, sources=sources)

    def fetch(work: Path, tell: Tell) -> Path:
        target = work / f"fetched-{hashlib.sha256(file.encode()).hexdigest()}"
        # Not by the library, which would keep a copy of every file outside the bounded cache.
        with _translated(name), telling(f"{file} is being copied", tell):
            HfFileSystem().get_file(file, str(target))
        return target

    return SourceFile(name=file, size=0, identity={"url": file}, fetch=fetch)


def _delimiter(spec: HuggingFaceData, builder: Any) -> str:
    """That of the specification, unless it names none and the library knows better (.tsv)."""
    default = HuggingFaceData.model_fields["delimiter"].default
    return spec.delimiter if spec.delimiter != default else getattr(builder.config, "sep", default)


def _class_names(builder: Any) -> dict[str, Sequence[str]]:
    """Of each column, as its description lists them; "no" without quotes is not a text in YAML."""
    features = builder.info.features or {}
    return {
        column: [str(name) for name in feature.names]
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel) and feature.names
    }


def _require_plain(builder: Any, *, name: str) -> None:
    if builder.name not in _READERS:
        raise DataForbidden(
            f"expected {name} to be read as {', '.join(sorted(_READERS))}, saw {builder.name}; "
            "store its rows, images with their content, in Parquet"
        )
    usual = type(builder.config)()
    for field in dataclasses.fields(builder.config):
        value = getattr(builder.config, field.name)
        is_usual = value == getattr(usual, field.name) or field.name in _HEEDED
        if not is_usual and not (field.name == "encoding" and value in _UTF_8):
            raise DataInvalid(
                f"{name}: expected files that need no option of a reader but `sep`, saw "
                f"{field.name} = {value!r} in its description; store them in the usual form, or "
                "read them as `files`"
            )


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except _ABSENT as error:
        raise DataNotFound(f"expected the data set {name}, saw: {_short(error)}") from error
    except (ConnectionError, TimeoutError, HTTPError) as error:
        raise SourceAway(f"expected the hub to answer for {name}, saw: {_short(error)}") from error
    except (JobFailed, OSError, MemoryError):
        raise
    # datasets 5.2.0 lets through whatever YAML, zip archives and the like raise over a folder.
    except Exception as error:
        raise DataInvalid(f"expected to read {name}, saw: {_short(error)}") from error


def _short(error: Exception) -> str:
    # Redacted before it is cut: a secret that is cut in two is no longer recognised.
    return REDACTOR.redact(" ".join(str(error.__cause__ or error).split()))[:500]
