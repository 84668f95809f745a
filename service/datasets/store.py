"""Uploaded data sets in the database."""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.orm import Session

from roadless.service.contract.ids import new_id
from roadless.service.contract.job.evaluation_sets import MAX_SETS
from roadless.service.contract.states import TERMINAL
from roadless.service.contract.uploads.datasets import (
    DatasetFile,
    DatasetPart,
    DatasetState,
    NewDataset,
)
from roadless.service.datasets.tiling import file_of
from roadless.service.db.keyset import Place, newest_first, place_of
from roadless.service.db.tables import DatasetPartRow, DatasetRow, JobRow
from roadless.service.errors import NotFound


def insert(session: Session, asked: NewDataset, *, project: str, now: datetime) -> DatasetRow:
    """Add an open data set without files."""
    row = DatasetRow(
        id=new_id("ds"),
        project=project,
        name=asked.name,
        format=asked.format,
        state=DatasetState.OPEN,
        created_at=now,
        touched_at=now,
    )
    session.add(row)
    session.flush()
    return row


def get(session: Session, dataset_id: str, project: str, *, lock: bool = False) -> DatasetRow:
    """The data set, locked until the transaction ends if asked; raises NotFound."""
    query = select(DatasetRow).where(DatasetRow.id == dataset_id, DatasetRow.project == project)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFound.by_id("data set", dataset_id, listed="GET /v1/datasets")
    return row


def sealed(session: Session, dataset_id: str, project: str) -> DatasetRow | None:
    """The data set if jobs may use it; until the transaction ends nobody can delete it."""
    query = select(DatasetRow).where(
        DatasetRow.id == dataset_id,
        DatasetRow.project == project,
        DatasetRow.state == DatasetState.SEALED,
    )
    return session.scalar(query.with_for_update(read=True))


def named(session: Session, name: str, project: str) -> DatasetRow | None:
    """The project's data set of this name."""
    query = select(DatasetRow).where(DatasetRow.name == name, DatasetRow.project == project)
    return session.scalar(query)


def page(
    session: Session, project: str, *, after: Place | None, limit: int
) -> Sequence[DatasetRow]:
    """Up to ``limit`` data sets, newest first, after a place; raises NotFound for an unknown id."""
    query = select(DatasetRow).where(DatasetRow.project == project)
    if after is not None and after.order is None:
        after = place_of(get(session, after.id, project))
    return session.scalars(newest_first(query, DatasetRow, after=after, limit=limit)).all()


def sizes(session: Session, dataset_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """How many files and bytes each of these data sets has; those without files are left out."""
    query = (
        select(
            DatasetPartRow.dataset_id,
            func.count(DatasetPartRow.file_name.distinct()),
            func.sum(DatasetPartRow.size),
        )
        .where(DatasetPartRow.dataset_id.in_(dataset_ids))
        .group_by(DatasetPartRow.dataset_id)
    )
    return {
        dataset_id: (num_files, int(total))
        for dataset_id, num_files, total in session.execute(query)
    }


def num_parts(session: Session, dataset_id: str) -> int:
    """Parts of all files of the data set."""
    query = select(func.count()).where(DatasetPartRow.dataset_id == dataset_id)
    return session.scalar(query) or 0


def files(session: Session, dataset_id: str, *, name: str | None = None) -> list[DatasetFile]:
    """The data set's files by name, or the one of that name; their parts by offset."""
    query = select(DatasetPartRow).where(DatasetPartRow.dataset_id == dataset_id)
    if name is not None:
        query = query.where(DatasetPartRow.file_name == name)
    query = query.order_by(DatasetPartRow.file_name, DatasetPartRow.offset)
    rows = session.scalars(query)
    return [
        file_of(name, [_part(row) for row in group])
        for name, group in groupby(rows, key=lambda row: row.file_name)
    ]


def _part(row: DatasetPartRow) -> DatasetPart:
    return DatasetPart(offset=row.offset, size=row.size, sha256=row.sha256)


def put_part(session: Session, dataset_id: str, *, file_name: str, part: DatasetPart) -> None:
    """List a part whose content is stored; one at the same place is replaced."""
    session.merge(
        DatasetPartRow(
            dataset_id=dataset_id,
            file_name=file_name,
            offset=part.offset,
            size=part.size,
            sha256=part.sha256,
        )
    )
    session.flush()


def remove(session: Session, row: DatasetRow) -> None:
    """Unlist the data set and its parts."""
    session.execute(delete(DatasetPartRow).where(DatasetPartRow.dataset_id == row.id))
    session.delete(row)


def users(session: Session, dataset_id: str, *, limit: int) -> Sequence[str]:
    """Ids of jobs that have not ended and use the data set."""
    query = select(JobRow.id).where(JobRow.phase.not_in(TERMINAL), _uses(dataset_id)).limit(limit)
    return session.scalars(query).all()


def is_of_job(session: Session, dataset_id: str, *, job_id: str) -> bool:
    """Whether the job trains on the data set, or is evaluated on it."""
    query = select(JobRow.id).where(JobRow.id == job_id, _uses(dataset_id))
    return session.scalar(query) is not None


def _uses(dataset_id: str) -> ColumnElement[bool]:
    """Whether a job's specification names the data set; see ``uploads_of`` in the contract."""
    paths = [
        ("data", "dataset_id"),
        *(("evaluation", "sets", number, "data", "dataset_id") for number in range(MAX_SETS)),
    ]
    return or_(*(JobRow.spec[path].as_string() == dataset_id for path in paths))


def abandoned(session: Session, *, before: datetime, limit: int) -> Sequence[DatasetRow]:
    """Open data sets that got no part since then, locked."""
    query = (
        select(DatasetRow)
        .where(DatasetRow.state == DatasetState.OPEN, DatasetRow.touched_at < before)
        .order_by(DatasetRow.touched_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(query).all()


def claimed(session: Session, ids: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of these (data set id, hash) that are listed, or may be any moment, or are not ours.

    They may be while the data set is open. Data sets that this database does not know may belong to
    another service.
    """
    dataset_ids = {dataset_id for dataset_id, _ in ids}
    listed = select(DatasetPartRow.dataset_id, DatasetPartRow.sha256).where(
        DatasetPartRow.dataset_id.in_(dataset_ids),
        DatasetPartRow.sha256.in_({sha256 for _, sha256 in ids}),
    )
    sealed = select(DatasetRow.id).where(
        DatasetRow.id.in_(dataset_ids), DatasetRow.state == DatasetState.SEALED
    )
    sealed_ids = set(session.scalars(sealed))
    rows = {(dataset_id, sha256) for dataset_id, sha256 in session.execute(listed)}
    return rows | {pair for pair in ids if pair[0] not in sealed_ids}
