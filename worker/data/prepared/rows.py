"""Rows of numbers become arrays on disk, split into those to train on and those held out.

``inputs.bin`` and ``targets.bin`` hold the rows, ``rows.bin`` the numbers of those to train on and
then of those held out, ``standard.npy`` mean and deviation of the inputs, if there are any, and
``numbers.json`` the rest.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadless.worker.data.base import UNCOUNTED
from roadless.worker.data.formats.chunk import shown_names
from roadless.worker.data.prepared import normalization
from roadless.worker.data.prepared.row_dataset import Normalization, NumberRows, Table
from roadless.worker.data.prepared.row_writer import INPUTS_FILE, TARGETS_FILE, RowWriter, Wanted
from roadless.worker.data.progress import Tell
from roadless.worker.data.records.base import Records, Split, require_all_filled, splits_of
from roadless.worker.errors import DataInvalid

#: Distinct from every key of ``sampler.py``, whose second word is the number of an epoch.
_SECOND_WORD = 2**64 - 1
_ROWS_FILE, _NORMALIZATION_FILE, _FACTS_FILE = "rows.bin", "standard.npy", "numbers.json"


@dataclass(frozen=True)
class HeldOut:
    """A share of the rows, drawn by a seed."""

    fraction: float
    seed: int


def prepare(
    work: Path,
    records: Records,
    *,
    wanted: Wanted,
    held_out: HeldOut | None,
    standardise: bool,
    tell: Tell,
    say: Tell,
) -> None:
    """Write the rows into the folder ``work``.

    ``held_out``: None when the records have a split for that. ``tell`` receives the progress
    periodically, ``say`` what the user should know. Raises the JobFailed errors named ``Data...``,
    with file, row and column if there is one.
    """
    with RowWriter(work, wanted, keeps_float64=standardise) as writer:
        ends = _write(writer, records, work=work, tell=tell)
    writer.require_told_apart(records.name)
    writer.sort_classes()
    for note in _notes(writer):
        say(f"{records.name}: {note}")
    train_rows, eval_rows = _split(ends, held_out, name=records.name)
    if writer.labels.has_uncounted:
        _require_counted(work, {"train on": train_rows, "hold out": eval_rows}, name=records.name)
    np.concatenate([train_rows, eval_rows]).tofile(work / _ROWS_FILE)
    if standardise:
        inputs = _mapped(
            work / INPUTS_FILE, writer.input_dtype, writer.num_rows, writer.input_shape
        )
        _save_normalization(work, normalization.of_rows(inputs, train_rows, tell=tell))
    elif wanted.image is not None:
        _save_normalization(work, normalization.of_images(writer.input_shape, writer.input_dtype))
    num_classes = _num_classes(writer, wanted, name=records.name)
    facts = _facts(work, writer, num_train=len(train_rows), num_classes=num_classes)
    (work / _FACTS_FILE).write_text(json.dumps(asdict(facts)))


def _write(writer: RowWriter, records: Records, *, work: Path, tell: Tell) -> dict[Split, int]:
    """Write the rows of all splits; return how many there were after each."""
    ends: dict[Split, int] = {}
    for split in splits_of(records):
        for chunk in records.chunks(split, work=work, choose=writer.choose, tell=tell):
            writer.write(chunk)
            tell(f"{records.name}: {writer.num_rows} rows are prepared")
        ends[split] = writer.num_rows
    require_all_filled(ends, name=records.name, of="rows")
    return ends


def _notes(writer: RowWriter) -> Iterator[str]:
    """What the user should know of how the rows were read."""
    if writer.left_out:
        yield (
            f"the columns {shown_names(writer.left_out)} are no features, since they look like an "
            "index or are a folder's; name one in `columns` to train on it"
            + (", after you gave it a name in the file" if "" in writer.left_out else "")
        )
    if counting := writer.row_numbers.columns():
        yield (
            f"{shown_names(counting)} counts the rows, as an index does, and is trained on; name "
            "the columns to use in `columns` if that is not meant"
        )
    if writer.turned_from is not None:
        yield (
            f"images of shape {writer.turned_from} become {writer.input_shape}, channels first, as "
            "models expect them"
        )
    if writer.labels.class_names:
        yield f"the classes 0, 1, ... are {shown_names(writer.labels.class_names)}"


def _facts(work: Path, writer: RowWriter, *, num_train: int, num_classes: int) -> "_Facts":
    return _Facts(
        input_dtype=writer.input_dtype.str,
        input_shape=writer.input_shape,
        target_width=writer.target_width,
        num_rows=writer.num_rows,
        num_train=num_train,
        num_classes=num_classes,
        fingerprint=_fingerprint(work, writer),
        has_uncounted=writer.labels.has_uncounted,
        columns=writer.input_names,
        class_names=writer.labels.class_names,
    )


def load(folder: Path) -> NumberRows:
    """Return the rows of a prepared folder, mapped from disk."""
    facts = _Facts(**json.loads((folder / _FACTS_FILE).read_bytes()))
    shape = tuple(facts.input_shape)
    width = (facts.target_width,) if facts.target_width else ()
    target_dtype = np.dtype(np.float32 if width else np.int64)
    rows = _mapped(folder / _ROWS_FILE, np.dtype(np.int64), facts.num_rows, ())
    table = Table(
        inputs=_mapped(folder / INPUTS_FILE, np.dtype(facts.input_dtype), facts.num_rows, shape),
        targets=_mapped(folder / TARGETS_FILE, target_dtype, facts.num_rows, width),
        train_rows=rows[: facts.num_train],
        eval_rows=rows[facts.num_train :],
        num_classes=facts.num_classes,
        normalization=_load_normalization(folder),
        fingerprint=facts.fingerprint,
        has_uncounted=facts.has_uncounted,
        columns=tuple(facts.columns),
        class_names=tuple(facts.class_names),
    )
    return NumberRows(table)


def drawn_rows(num_rows: int, *, num_drawn: int, seed: int) -> NDArray[np.int64]:
    """Return ``num_drawn`` of the numbers below ``num_rows``, in ascending order.

    ``seed``: in [0, 2**63).
    """
    key = np.array([seed, _SECOND_WORD], dtype=np.uint64)
    # Sorting raw words, as in sampler.py: numpy guarantees only the raw stream.
    words = np.random.Philox(key=key).random_raw(num_rows)
    return np.sort(np.argsort(words, kind="stable")[:num_drawn]).astype(np.int64)


@dataclass(frozen=True)
class _Facts:
    input_dtype: str
    input_shape: tuple[int, ...]
    target_width: int  #: 0: one class number a row
    num_rows: int
    num_train: int
    num_classes: int  #: 0 for regression
    fingerprint: str
    has_uncounted: bool
    columns: tuple[str, ...]
    class_names: tuple[str, ...]


def _mapped(
    path: Path, dtype: np.dtype[Any], num_rows: int, shape: tuple[int, ...]
) -> NDArray[Any]:
    return np.memmap(path, dtype=dtype, mode="r", shape=(num_rows, *shape))


def _split(
    ends: dict[Split, int], held_out: HeldOut | None, *, name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the rows to train on and of those held out, each in ascending order."""
    every = np.arange(max(ends.values()), dtype=np.int64)
    if held_out is None:
        return every[: ends["train"]], every[ends["train"] :]
    num_eval = max(1, int(len(every) * Fraction(str(held_out.fraction))))
    if num_eval == len(every):
        raise DataInvalid(
            f"expected rows of {name} to train on beside {num_eval} held out, saw {len(every)}"
        )
    drawn = drawn_rows(len(every), num_drawn=num_eval, seed=held_out.seed)
    return np.delete(every, drawn), drawn


def _require_counted(work: Path, splits: dict[str, NDArray[np.int64]], *, name: str) -> None:
    targets = np.memmap(work / TARGETS_FILE, dtype=np.int64, mode="r")
    for purpose, numbers in splits.items():
        if (targets[numbers] == UNCOUNTED).all():
            raise DataInvalid(
                f"expected rows of {name} with a class to {purpose}, saw {UNCOUNTED} in all of them"
            )


def _num_classes(writer: RowWriter, wanted: Wanted, *, name: str) -> int:
    if wanted.task == "regression":
        return 0
    found = writer.labels.highest + 1
    if wanted.num_classes is None and found < 2:
        raise DataInvalid(f"expected at least two classes in {name}, saw class 0 only")
    return wanted.num_classes or found


def _save_normalization(work: Path, found: Normalization) -> None:
    np.save(work / _NORMALIZATION_FILE, np.stack([found.mean, found.deviation]))


def _load_normalization(folder: Path) -> Normalization | None:
    path = folder / _NORMALIZATION_FILE
    if not path.exists():
        return None
    mean, deviation = np.load(path, allow_pickle=False)
    return Normalization(mean, deviation)


def _fingerprint(work: Path, writer: RowWriter) -> str:
    """SHA-256 over all that determines a batch: rows, which are held out, how they are scaled.

    Stored with every attempt; an attempt that finds another one does not resume.
    """
    about = f"{writer.input_dtype.str} {writer.num_rows} {writer.input_shape}"
    digest = hashlib.sha256(about.encode() + writer.digest)
    if writer.labels.class_names:
        digest.update(json.dumps(writer.labels.class_names).encode())
    for name in (_ROWS_FILE, _NORMALIZATION_FILE):
        if (work / name).exists():
            with (work / name).open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
