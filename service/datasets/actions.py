"""What users can do with data sets. Each action is one transaction, and safe to repeat."""

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from roadless.service.clock import utc_now
from roadless.service.contract.resources import ProblemError
from roadless.service.contract.uploads.datasets import (
    MAX_FILES,
    MAX_PARTS,
    DatasetFile,
    DatasetPart,
    DatasetState,
    NewDataset,
)
from roadless.service.datasets import store
from roadless.service.datasets.tiling import is_whole, received
from roadless.service.db.tables import DatasetRow
from roadless.service.errors import Conflict, Invalid, TooLarge

#: Of all files of a data set: 6.4 TB, and a list that one answer can hold.
MAX_PARTS_OF_ALL = 100_000
_SHOWN_JOBS = 5


def create(session: Session, asked: NewDataset, *, project: str) -> tuple[DatasetRow, bool]:
    """Return the open data set of this name, and whether it is new.

    One that is open and has the same format is continued, so that a retry creates no second one
    and an interrupted upload is resumed. Raises Conflict when the name is taken otherwise.
    """
    known = store.named(session, asked.name, project)
    if known is None:
        try:
            with session.begin_nested():
                return store.insert(session, asked, project=project, now=utc_now()), True
        except IntegrityError:  # another request was faster
            known = store.named(session, asked.name, project)
            assert known is not None, "expected the row that was in the way, saw none"
    if known.state != DatasetState.OPEN or known.format != asked.format:
        raise Conflict(
            f"expected an unused name, saw {asked.name!r} of {known.id}, "
            f"which is {known.state} and has format {known.format}"
        )
    return known, False


def require_open(session: Session, dataset_id: str, project: str) -> DatasetRow:
    """The data set, locked; raises Conflict when it takes no more files."""
    row = store.get(session, dataset_id, project, lock=True)
    if row.state != DatasetState.OPEN:
        raise Conflict(f"expected an open data set, saw {dataset_id}, which is {row.state}")
    return row


def list_part(
    session: Session,
    row: DatasetRow,
    *,
    file_name: str,
    part: DatasetPart,
    max_bytes: int,
) -> DatasetFile:
    """List a part whose content is stored, and return its file as it is then."""
    store.put_part(session, row.id, file_name=file_name, part=part)
    row.touched_at = utc_now()
    (file,) = store.files(session, row.id, name=file_name)
    num_files, total_bytes = store.sizes(session, [row.id])[row.id]
    for seen, limit, what in (
        (len(file.parts), MAX_PARTS, "parts of a file"),
        (num_files, MAX_FILES, "files"),
        (store.num_parts(session, row.id), MAX_PARTS_OF_ALL, "parts"),
        (total_bytes, max_bytes, "bytes in a data set"),
    ):
        if seen > limit:
            raise TooLarge(f"expected at most {limit} {what}, saw more")
    return file


def seal(session: Session, row: DatasetRow) -> None:
    """Close a locked data set for good; raises Conflict while a file has a gap, or there is none.

    Again: no change.
    """
    if row.state == DatasetState.SEALED:
        return
    files = store.files(session, row.id)
    if not files:
        raise Conflict(f"expected files in {row.id}, saw none")
    for file in files:
        if not is_whole(file.parts):
            raise Conflict(
                f"expected the parts of {file.name!r} to be contiguous, saw a gap or an overlap at "
                f"byte {received(file.parts)}"
            )
    row.state = DatasetState.SEALED


def delete(session: Session, row: DatasetRow) -> None:
    """Delete a locked data set; raises Conflict while a job that has not ended uses it."""
    jobs = store.users(session, row.id, limit=_SHOWN_JOBS)
    if jobs:
        raise Conflict(f"expected no unfinished job to use {row.id}, saw {', '.join(jobs)}")
    store.remove(session, row)


def require_sealed(session: Session, dataset_id: str, project: str, *, pointer: str) -> None:
    """Raise Invalid unless a new job of the project may use the data set.

    ``pointer``: where its specification names it.
    """
    if store.sealed(session, dataset_id, project) is None:
        fault = ProblemError(
            pointer=pointer,
            message=f"expected a sealed data set of this project, saw {dataset_id!r}; upload and "
            "seal it first",
        )
        raise Invalid(f"{pointer}: {fault.message}", errors=(fault,))
