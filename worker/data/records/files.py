"""Records of files in one format: the one ``match`` over formats."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from roadless.service.contract.job.data import FORMATS_OF_TEXT, Format
from roadless.worker.data.formats import csv_rows, jsonl_rows, npz_rows, text_pieces
from roadless.worker.data.formats.chunk import Choose, Chunk, Piece, require_columns
from roadless.worker.data.formats.columns import texts
from roadless.worker.data.lazy_import import lazy_import
from roadless.worker.data.progress import Tell
from roadless.worker.data.records.base import Split
from roadless.worker.data.sources.source_file import Identity, SourceFile, opened


@dataclass(frozen=True, kw_only=True)
class FileRecords:
    """Files to train on and, where there are any, files to hold out."""

    name: str  #: what messages call them all
    format: Format
    train: Sequence[SourceFile]
    eval: Sequence[SourceFile] | None
    text: str | None  #: column of the texts, in formats with columns
    delimiter: str  #: of csv

    @property
    def identity(self) -> list[Identity]:
        """How files are read, and every one of them."""
        files: list[Identity] = [
            {"part": split, **file.identity}
            for split, files in (("train", self.train), ("eval", self.eval or ()))
            for file in files
        ]
        return [{"format": self.format, "delimiter": self.delimiter}, *files]

    @property
    def has_own_eval(self) -> bool:
        """Whether files of their own are held out."""
        return self.eval is not None

    @property
    def is_raw(self) -> bool:
        """Whether the bytes of all files are one string."""
        return self.format == "bytes"

    def pieces(self, split: Split, *, work: Path, tell: Tell) -> Iterator[Piece]:
        """Yield the texts, file by file."""
        for file in self._files(split):
            with opened(file, work, tell=tell) as path:
                yield from self._pieces_of(path, file.name)

    def chunks(self, split: Split, *, work: Path, choose: Choose, tell: Tell) -> Iterator[Chunk]:
        """Yield the rows, file by file."""
        for file in self._files(split):
            with opened(file, work, tell=tell) as path:
                yield from self._chunks_of(path, file.name, choose)

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
            case "npz":
                return npz_rows.read(path, file=file, choose=choose)
            case _:
                chunks: Iterator[Chunk] = lazy_import("formats.arrow_rows").read(
                    path, file=file, choose=choose
                )
                return chunks


def only(column: str) -> Choose:
    """Choose this column, which must be there."""

    def choose(present: Sequence[str], file: str) -> Sequence[str]:
        require_columns([column], present, file=file)
        return [column]

    return choose


def pieces_of(chunks: Iterator[Chunk], *, text: str) -> Iterator[Piece]:
    """One text a row."""
    for chunk in chunks:
        for content in texts(chunk, text):
            yield Piece(content, ends_text=True)
