"""Records of files in one format: the one ``match`` over formats."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from roadless.service.contract.job.data import FORMATS_OF_TEXT, Format
from roadless.worker.data.formats import (
    csv_rows,
    json_rows,
    jsonl_rows,
    line_rows,
    npz_rows,
    text_pieces,
)
from roadless.worker.data.formats.chunk import Choose, Chunk, Piece, require_columns
from roadless.worker.data.formats.columns import texts
from roadless.worker.data.lazy_import import lazy_import
from roadless.worker.data.progress import Tell
from roadless.worker.data.records.base import Split
from roadless.worker.data.records.folders import Value, folder_columns, varying
from roadless.worker.data.sources.source_file import Identity, SourceFile, opened
from roadless.worker.errors import DataInvalid

#: Further formats of data sets of Hugging Face: JSON of either form, Arrow files, lines of text.
HubFormat = Literal["json", "arrow", "lines"]


@dataclass(frozen=True, kw_only=True)
class FileRecords:
    """Files to train on and, where there are any, files to hold out."""

    name: str  #: of all of them, in messages
    format: Format | HubFormat
    train: Sequence[SourceFile]
    eval: Sequence[SourceFile] | None
    text: str | None  #: column of the texts, in formats with columns
    delimiter: str  #: of csv

    @property
    def identity(self) -> list[Identity]:
        """How files are read, and the identity of each."""
        files: list[Identity] = [
            {"part": split, **file.identity}
            for split, files in (("train", self.train), ("eval", self.eval or ()))
            for file in files
        ]
        return [{"format": self.format, "delimiter": self.delimiter}, *files]

    @property
    def has_own_eval(self) -> bool:
        """Whether separate files are held out."""
        return self.eval is not None

    @property
    def is_raw(self) -> bool:
        """Whether the bytes of all files form one string."""
        return self.format == "bytes"

    def pieces(self, split: Split, *, work: Path, tell: Tell) -> Iterator[Piece]:
        """Yield the texts, file by file."""
        for file in self._files(split):
            with opened(file, work, tell=tell) as path:
                yield from self._pieces_of(path, file.name)

    def chunks(self, split: Split, *, work: Path, choose: Choose, tell: Tell) -> Iterator[Chunk]:
        """Yield the rows, file by file."""
        files = self._files(split)
        differing = varying(file.name for file in files)
        for file in files:
            own = folder_columns(file.name)
            with opened(file, work, tell=tell) as path:
                read = self._chunks_of(path, file.name, _beside(own, differing, choose))
                yield from (_completed(chunk, own) for chunk in read)

    def _files(self, split: Split) -> Sequence[SourceFile]:
        return self.train if split == "train" else self.eval or ()

    def _pieces_of(self, path: Path, file: str) -> Iterator[Piece]:
        if self.format == "bytes":
            return text_pieces.read_bytes(path)
        if self.format == "text":
            return text_pieces.read_text(path, file=file)
        assert self.text is not None
        return pieces_of(self._chunks_of(path, file, only(self.text)), text=self.text)

    def _chunks_of(self, path: Path, file: str, choose: Choose) -> Iterator[Chunk]:
        assert self.format not in FORMATS_OF_TEXT, f"expected columns, saw {self.format}"
        match self.format:
            case "csv":
                return csv_rows.read(path, file=file, choose=choose, delimiter=self.delimiter)
            case "jsonl":
                return jsonl_rows.read(path, file=file, choose=choose)
            case "json":
                return json_rows.read(path, file=file, choose=choose)
            case "lines":
                return line_rows.read(path, file=file, choose=choose)
            case "npz":
                return npz_rows.read(path, file=file, choose=choose)
            case _:
                arrow_rows = lazy_import("formats.arrow_rows")
                read = arrow_rows.read_ipc if self.format == "arrow" else arrow_rows.read
                chunks: Iterator[Chunk] = read(path, file=file, choose=choose)
                return chunks


def only(column: str) -> Choose:
    """Choose this column, which must exist."""

    def choose(
        present: Sequence[str],
        where: str,
        *,
        aside: Collection[str] = (),  # noqa: ARG001 - it is asked for by name
    ) -> Sequence[str]:
        require_columns([column], present, file=where)
        return [column]

    return choose


def _beside(of_folders: Mapping[str, Value], differing: Collection[str], choose: Choose) -> Choose:
    """Let the choice include the columns of folders that the file itself does not have.

    Those that are the same for all files are taken only if they are asked for.
    """

    def choose_of_file(
        present: Sequence[str], where: str, *, aside: Collection[str] = ()
    ) -> Sequence[str]:
        added = [name for name in of_folders if name not in present]
        same = [name for name in added if name not in differing]
        chosen = choose([*present, *added], where, aside=[*aside, *same])
        if chosen and not set(chosen) - set(added):
            raise DataInvalid(f"{where}: expected a column beside those of folders, saw none")
        return [name for name in chosen if name not in added]

    return choose_of_file


def _completed(chunk: Chunk, of_folders: Mapping[str, Value]) -> Chunk:
    """The rows with the columns of their folders."""
    num_rows = len(next(iter(chunk.columns.values())))
    added = {
        name: [value] * num_rows for name, value in of_folders.items() if name not in chunk.columns
    }
    return replace(chunk, columns={**chunk.columns, **added})


def pieces_of(chunks: Iterator[Chunk], *, text: str) -> Iterator[Piece]:
    """One text per row."""
    for chunk in chunks:
        for content in texts(chunk, text):
            yield Piece(content, ends_text=True)
