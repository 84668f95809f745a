"""Records become a data set on this node's disk, once for all ranks, and are mapped from there.

The key of an entry is a hash of the identity of the source's content and of every setting that
affects the result; so changed files, or another tokenizer, make another entry. Data that a job with
secrets reads is never given to a job of another project, nor to a job without secrets.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roadless.service.contract.job.data import HeldOutShare, RecordsData
from roadless.service.contract.job.tasks import Task
from roadless.worker.data.base import DataSet
from roadless.worker.data.prepared import rows, tokenizer, tokens
from roadless.worker.data.prepared.cache import Cache
from roadless.worker.data.prepared.row_writer import Wanted
from roadless.worker.data.prepared.rows import HeldOut
from roadless.worker.data.prepared.token_dataset import TokenWindows
from roadless.worker.data.progress import Tell
from roadless.worker.data.records.base import Records
from roadless.worker.rank_launch import DataSources

#: Grows when the same sources and settings result in other files than before.
_LAYOUT = 4
#: How often a growing entry is measured.
_MEASURE_EVERY_SECONDS = 2.0


class Preparation:
    """Prepares data in this node's cache, and reports its progress to ``tell``.

    ``say`` receives what the user should know of the data; unlike progress, all of it.
    """

    def __init__(self, sources: DataSources, *, tell: Tell, say: Tell) -> None:
        self._sources = sources
        self._cache = Cache(Path(sources.cache).expanduser(), max_bytes=sources.cache_bytes)
        self._tell = tell
        self._say = say

    def windows(self, spec: RecordsData, records: Records, *, context: int) -> DataSet:
        """Return the texts as windows of ``context`` tokens."""
        found = tokenizer.load(spec.tokenizer, separator=spec.separator, sources=self._sources)
        fraction = spec.eval.fraction if isinstance(spec.eval, HeldOutShare) else None

        def make(work: Path, tell: Tell) -> None:
            tokens.prepare(work, records, tokenizer=found, fraction=fraction, tell=tell)

        settings = {"text": spec.text, "fraction": fraction, "raw": records.is_raw}
        folder = self._entry(records, {**settings, **found.identity}, make=make)
        return TokenWindows(tokens.load(folder), context=context)

    def rows(self, spec: RecordsData, records: Records, *, task: Task) -> DataSet:
        """Return the rows of numbers or images with their targets."""
        wanted = _wanted(spec, task=task)
        share = spec.eval
        held_out = HeldOut(share.fraction, share.seed) if isinstance(share, HeldOutShare) else None

        def make(work: Path, tell: Tell) -> None:
            rows.prepare(
                work,
                records,
                wanted=wanted,
                held_out=held_out,
                standardise=spec.standardise,
                tell=tell,
                say=self._say,
            )

        settings = {
            **asdict(wanted),
            "held_out": held_out and asdict(held_out),
            "standardise": spec.standardise,
        }
        return rows.load(self._entry(records, settings, make=make))

    def _entry(
        self,
        records: Records,
        settings: dict[str, Any],
        *,
        make: Callable[[Path, Tell], None],
    ) -> Path:
        about = {"layout": _LAYOUT, "settings": settings, "content": records.identity}
        if self._sources.secrets:
            about["project"] = self._sources.project
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        waiting = f"{records.name} is being prepared by another rank of this node"
        return self._cache.entry(
            key,
            make=lambda work: make(work, self._teller(work)),
            wait=lambda: self._tell(waiting),
        )

    def _teller(self, work: Path) -> Tell:
        measured_at = time.monotonic()

        def tell(text: str) -> None:
            nonlocal measured_at
            self._tell(text)
            if time.monotonic() - measured_at > _MEASURE_EVERY_SECONDS:
                self._cache.make_room(work)
                measured_at = time.monotonic()

        return tell


def _wanted(spec: RecordsData, *, task: Task) -> Wanted:
    assert spec.target is not None, "expected a target, saw none"
    return Wanted(
        columns=spec.columns,
        image=spec.image,
        image_size=spec.image_size,
        image_channels=spec.image_channels,
        targets=(spec.target,) if isinstance(spec.target, str) else spec.target,
        task=task,
        num_classes=spec.num_classes,
    )
