"""Texts become one string of tokens on disk, with an index of where each text begins.

``tokens.bin`` holds the tokens in their narrowest unsigned type, ``texts.bin`` for each text the
number of tokens and of bytes before it, ``tokens.json`` the rest.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from roadless.worker.data.formats.chunk import Piece
from roadless.worker.data.prepared.token_dataset import TokenString
from roadless.worker.data.prepared.tokenizer import Bytes, Tokenizer, narrowest
from roadless.worker.data.progress import Tell
from roadless.worker.data.records.base import Records, Split, require_all_filled, splits_of
from roadless.worker.errors import DataInvalid

_TOKENS, _TEXTS, _FACTS = "tokens.bin", "texts.bin", "tokens.json"
#: How much is tokenised in one call, by all cores of the rank.
_BATCH_BYTES = 8 * 2**20
_BATCH_TEXTS = 10_000


@dataclass(frozen=True)
class _Facts:
    dtype: str
    vocabulary: int
    num_train: int
    bytes_per_token: float
    fingerprint: str
    source: str


def prepare(
    work: Path,
    records: Records,
    *,
    tokenizer: Tokenizer,
    fraction: float | None,
    tell: Tell,
) -> None:
    """Write the tokens of all texts into the folder ``work``.

    ``fraction``: of the tokens to hold out, or None when the records have a split for that.
    ``tell`` receives the progress periodically. Raises the JobFailed errors named ``Data...``.
    """
    ends: dict[Split, int] = {}
    with _Writer(work, tokenizer, name=records.name, is_raw=records.is_raw) as writer:
        for split in splits_of(records):
            writer.begin_text()
            for batch in _batches(records.pieces(split, work=work, tell=tell)):
                writer.write(batch)
                tell(f"{records.name}: {writer.num_tokens} tokens are prepared")
            ends[split] = writer.num_tokens
    require_all_filled(ends, name=records.name, of="text")
    texts = np.fromfile(work / _TEXTS, dtype=np.int64).reshape(-1, 2)
    num_train = ends["train"]
    if fraction is not None:
        num_train = boundary(texts[:, 0], num_tokens=num_train, fraction=fraction)
    facts = _Facts(
        dtype=narrowest(tokenizer.vocabulary).str,
        vocabulary=tokenizer.vocabulary,
        num_train=num_train,
        bytes_per_token=writer.bytes_per_token(texts, since=num_train),
        fingerprint=writer.fingerprint,
        source=records.name,
    )
    (work / _FACTS).write_text(json.dumps(asdict(facts)))


def load(folder: Path) -> TokenString:
    """Return the tokens of a prepared folder, mapped from disk."""
    facts = _Facts(**json.loads((folder / _FACTS).read_bytes()))
    return TokenString(
        tokens=np.memmap(folder / _TOKENS, dtype=np.dtype(facts.dtype), mode="r"),
        num_train=facts.num_train,
        vocabulary=facts.vocabulary,
        bytes_per_token=facts.bytes_per_token,
        fingerprint=facts.fingerprint,
        source=facts.source,
    )


def boundary(starts: NDArray[np.int64], *, num_tokens: int, fraction: float) -> int:
    """Return where the held-out tokens begin: with a text, if their first half has one.

    ``starts``: where each text begins. ``fraction``: of all tokens, to hold out.
    """
    num_eval = max(1, int(num_tokens * Fraction(str(fraction))))
    cut = num_tokens - num_eval
    following = int(np.searchsorted(starts, cut))
    if following < len(starts) and starts[following] - cut <= num_eval // 2:
        return int(starts[following])
    return cut


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.content)
        if size >= _BATCH_BYTES or len(batch) == _BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """Appends tokens and the positions of texts, and hashes what it writes."""

    def __init__(self, work: Path, tokenizer: Tokenizer, *, name: str, is_raw: bool) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._dtype = narrowest(tokenizer.vocabulary)
        self._separator = np.array([] if is_raw else [tokenizer.separator], dtype=self._dtype)
        self._paths = work / _TOKENS, work / _TEXTS
        self._files: list[BinaryIO] = []
        self._digest = hashlib.sha256()
        self._begins_text = True
        self._num_texts = 0
        self.num_tokens = 0
        self.num_bytes = 0

    def __enter__(self) -> "_Writer":
        self._files = [path.open("wb") for path in self._paths]
        return self

    def __exit__(self, *exc_info: object) -> None:
        for file in self._files:
            file.close()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all tokens written."""
        return self._digest.hexdigest()

    def begin_text(self) -> None:
        """Mark the next piece as the beginning of another text."""
        self._begins_text = True

    def write(self, pieces: Sequence[Piece]) -> None:
        """Append the tokens of these pieces."""
        encoded = self._tokenizer.encode([piece.content for piece in pieces])
        for piece, tokens in zip(pieces, encoded, strict=True):
            self._append(tokens, piece)

    def _append(self, tokens: NDArray[Any], piece: Piece) -> None:
        if self._begins_text and not piece.content:
            return  # an empty text
        self._num_texts += self._begins_text
        if self._separator.size and isinstance(self._tokenizer, Bytes):
            self._require_no_separator(tokens)
        if self._begins_text:
            np.array([self.num_tokens, self.num_bytes], dtype=np.int64).tofile(self._files[1])
        self._begins_text = piece.ends_text
        ending = self._separator if piece.ends_text else self._separator[:0]
        content = np.concatenate([tokens.astype(self._dtype), ending]).tobytes()
        self._files[0].write(content)
        self._digest.update(content)
        self.num_tokens += len(content) // self._dtype.itemsize
        self.num_bytes += len(piece.content)

    def _require_no_separator(self, tokens: NDArray[Any]) -> None:
        """One within a text would cut it in two; JSON can say it."""
        if (tokens == self._separator[0]).any():
            raise DataInvalid(
                f"{self._name}, text {self._num_texts} of those that are not empty: expected no "
                "zero byte, which parts texts of bytes, saw one; take it out, or name a `tokenizer`"
            )

    def bytes_per_token(self, texts: NDArray[np.int64], *, since: int) -> float:
        """Average from token ``since`` on; within a text, bytes are spread evenly."""
        places = np.vstack([texts, [self.num_tokens, self.num_bytes]])
        before = float(np.interp(since, places[:, 0], places[:, 1]))
        held_out = self.num_tokens - since
        return (self.num_bytes - before) / held_out if held_out else 0.0
