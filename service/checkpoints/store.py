"""Checkpoints in the database."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from roadless.service.attempts.store import is_live
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.checkpoint.retention import (
    Stored,
    superfluous_evals,
    superfluous_states,
)
from roadless.service.contract.job.evaluation import CheckpointsSpec
from roadless.service.contract.reports.events import CheckpointSaved
from roadless.service.contract.states import TERMINAL, Reason
from roadless.service.db.deletion import ROWS_TOGETHER, delete_some, is_kept
from roadless.service.db.keyset import Place
from roadless.service.db.tables import AttemptRow, CheckpointRow, JobRow
from roadless.service.errors import Invalid, NotFound

_LISTED = "GET /v1/jobs/{job_id}/checkpoints"


def insert(session: Session, event: CheckpointSaved, *, attempt: AttemptRow, now: datetime) -> None:
    """List a checkpoint whose files are all stored; raises Invalid when its id is taken."""
    manifest = event.manifest
    if session.get(CheckpointRow, manifest.checkpoint_id) is not None:
        raise Invalid(
            f"expected a new checkpoint id, saw {manifest.checkpoint_id}, which is already listed; "
            "announce another checkpoint under an id of its own"
        )
    session.add(
        CheckpointRow(
            id=manifest.checkpoint_id,
            job_id=attempt.job_id,
            attempt_id=attempt.id,
            project=attempt.project,
            fence=attempt.fence,
            kind=manifest.kind,
            step=manifest.step,
            loss=_finite(manifest.evaluation.loss) if manifest.evaluation else None,
            pinned=event.evaluations_served > 0,
            # Through text, which spells numbers that are not finite as the wire does.
            manifest=json.loads(manifest.model_dump_json()),
            created_at=now,
        )
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def drop_superfluous(
    session: Session,
    job_id: str,
    *,
    kind: CheckpointKind,
    policy: CheckpointsSpec,
    now: datetime,
) -> Sequence[CheckpointRow]:
    """Unlist what retention does not keep, superseded ones included; return the rows removed.

    The caller holds the job's lock.
    """
    # Locked: another job may be about to start from one of them, and pins it.
    query = (
        select(CheckpointRow, is_live(CheckpointRow))
        .where(CheckpointRow.job_id == job_id, CheckpointRow.kind == kind)
        .with_for_update(of=CheckpointRow)
        .execution_options(populate_existing=True)
    )
    rows = [(row, lives) for row, lives in session.execute(query)]
    stored = [_stored(row, is_live=lives) for row, lives in rows]
    drop = _superfluous(stored, kind, policy, now=now)
    session.execute(delete(CheckpointRow).where(CheckpointRow.id.in_(drop)))
    return [row for row, _ in rows if row.id in drop]


def _superfluous(
    stored: Sequence[Stored], kind: CheckpointKind, policy: CheckpointsSpec, *, now: datetime
) -> set[str]:
    if kind is CheckpointKind.RESUME:
        return superfluous_states(stored)
    return superfluous_evals(stored, policy, now=now)


def _stored(row: CheckpointRow, *, is_live: bool) -> Stored:
    return Stored(
        row.id, row.step, row.loss, stored_at=row.created_at, pinned=row.pinned, is_live=is_live
    )


def policies(session: Session, *, after: str, limit: int) -> dict[str, CheckpointsSpec]:
    """What jobs with checkpoints keep, by id: of up to ``limit`` jobs with ids beyond ``after``."""
    has_any = select(CheckpointRow.id).where(CheckpointRow.job_id == JobRow.id).exists()
    query = (
        select(JobRow.id, JobRow.spec["checkpoints"])
        .where(JobRow.id > after, has_any)
        .order_by(JobRow.id)
        .limit(limit)
    )
    return {
        job_id: CheckpointsSpec.model_validate(policy) for job_id, policy in session.execute(query)
    }


def overdue(
    session: Session, policies: Mapping[str, CheckpointsSpec], *, now: datetime
) -> list[tuple[str, CheckpointKind]]:
    """Which of these jobs have checkpoints that retention drops, and of which kind."""
    row = CheckpointRow
    columns = (row.job_id, row.kind, row.id, row.step, row.loss, row.created_at, row.pinned)
    query = select(*columns, is_live(row)).where(row.job_id.in_(policies))
    found: dict[tuple[str, CheckpointKind], list[Stored]] = defaultdict(list)
    for job_id, kind, name, step, loss, stored_at, pinned, lives in session.execute(query):
        one = Stored(name, step, loss, stored_at=stored_at, pinned=pinned, is_live=lives)
        found[job_id, CheckpointKind(kind)].append(one)
    return [
        (job_id, kind)
        for (job_id, kind), stored in sorted(found.items())
        if _superfluous(stored, kind, policies[job_id], now=now)
    ]


def idle_policy(session: Session, job_id: str) -> CheckpointsSpec | None:
    """What the job keeps, with the job locked; None while another transaction works on it."""
    query = select(JobRow).where(JobRow.id == job_id).with_for_update(skip_locked=True)
    job = session.scalar(query)
    return None if job is None else CheckpointsSpec.model_validate(job.spec["checkpoints"])


def newest_state(session: Session, job_id: str) -> CheckpointRow | None:
    """The training state that the next attempt resumes from.

    The newest attempt that saved one wins over a higher step of an older, superseded attempt. One
    that an attempt could not load comes after all others: half a lost interval is better than a
    job that fails.
    """
    did_not_load = (
        select(AttemptRow.id)
        .where(AttemptRow.job_id == job_id, AttemptRow.resume_checkpoint_id == CheckpointRow.id)
        .where(AttemptRow.reason == Reason.CHECKPOINT_UNREADABLE)
    )
    query = (
        select(CheckpointRow)
        .where(CheckpointRow.job_id == job_id, CheckpointRow.kind == CheckpointKind.RESUME)
        .order_by(did_not_load.exists(), CheckpointRow.fence.desc(), CheckpointRow.step.desc())
        .limit(1)
    )
    return session.scalars(query).first()


def claimed(
    session: Session, ids: Sequence[tuple[str, str]], *, since: datetime
) -> set[tuple[str, str]]:
    """Those of these (job id, checkpoint id) that are or may be listed with files from before then.

    They may be while an attempt lasts that their job had when the files were stored.
    """
    listed = select(CheckpointRow.job_id, CheckpointRow.id).where(
        CheckpointRow.id.in_([checkpoint_id for _, checkpoint_id in ids])
    )
    writing = select(AttemptRow.job_id).where(
        AttemptRow.job_id.in_({job_id for job_id, _ in ids}),
        AttemptRow.ended_at.is_(None),
        AttemptRow.created_at < since,
    )
    busy_jobs = set(session.scalars(writing))
    rows = {(job_id, checkpoint_id) for job_id, checkpoint_id in session.execute(listed)}
    return rows | {pair for pair in ids if pair[0] in busy_jobs}


def get(session: Session, checkpoint_id: str, project: str, *, lock: bool = False) -> CheckpointRow:
    """The checkpoint, locked until the transaction ends if asked; raises NotFound."""
    query = select(CheckpointRow).where(
        CheckpointRow.id == checkpoint_id, CheckpointRow.project == project
    )
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    row = session.scalar(query)
    if row is None or not _is_of_kept_job(session, row):
        raise NotFound.by_id("checkpoint", checkpoint_id, listed=_LISTED)
    return row


def _is_of_kept_job(session: Session, row: CheckpointRow) -> bool:
    """Asked for after the checkpoint is locked: until then its job could have been deleted."""
    query = select(JobRow.id).where(JobRow.id == row.job_id, is_kept())
    return session.scalar(query) is not None


def lock_job(session: Session, job_id: str) -> JobRow:
    """The job, locked until the transaction ends: until then no attempt of it begins or ends."""
    query = select(JobRow).where(JobRow.id == job_id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one()


def starting_from(session: Session, row: CheckpointRow) -> str | None:
    """A job whose model starts from the checkpoint; ended ones too, since they may continue."""
    origin = JobRow.spec["model"]["checkpoint_id"].as_string()
    query = select(JobRow.id).where(JobRow.project == row.project, origin == row.id, is_kept())
    return session.scalar(query.limit(1))


def is_resume_point(session: Session, row: CheckpointRow) -> bool:
    """Whether the job has not ended, and this training state is what it resumes from next.

    Or what its attempt is loading just now.
    """
    has_ended = select(JobRow.phase.in_(TERMINAL)).where(JobRow.id == row.job_id)
    if session.scalar(has_ended):
        return False
    loading = select(AttemptRow.id).where(
        AttemptRow.job_id == row.job_id,
        AttemptRow.resume_checkpoint_id == row.id,
        AttemptRow.ended_at.is_(None),
        AttemptRow.first_step_at.is_(None),
    )
    newest = newest_state(session, row.job_id)
    return (newest is not None and newest.id == row.id) or session.scalar(loading) is not None


def remove(session: Session, row: CheckpointRow) -> None:
    """Unlist the checkpoint; its files are the caller's to delete."""
    session.delete(row)


def get_for_attempt(session: Session, checkpoint_id: str, attempt: AttemptRow) -> CheckpointRow:
    """The checkpoint, if it is the job's own or the one that its model starts from.

    Raises NotFound for any other.
    """
    row = get(session, checkpoint_id, attempt.project)
    if row.job_id != attempt.job_id:
        spec = session.scalar(select(JobRow.spec).where(JobRow.id == attempt.job_id))
        if spec is None or spec["model"].get("checkpoint_id") != checkpoint_id:
            raise NotFound.by_id("checkpoint", checkpoint_id, of="this job", listed=_LISTED)
    return row


def page(
    session: Session,
    job_id: str,
    *,
    kind: CheckpointKind | None,
    after: Place | None,
    limit: int,
) -> Sequence[CheckpointRow]:
    """Up to ``limit`` live checkpoints, newest step first, after a place.

    Raises NotFound for the id of no checkpoint of the job.
    """
    query = select(CheckpointRow).where(CheckpointRow.job_id == job_id)
    query = query.where(is_live(CheckpointRow))
    if kind is not None:
        query = query.where(CheckpointRow.kind == kind)
    if after is not None:
        last = _place(session, job_id, after.id) if after.order is None else after
        query = query.where(tuple_(CheckpointRow.step, CheckpointRow.id) < (last.order, last.id))
    query = query.order_by(CheckpointRow.step.desc(), CheckpointRow.id.desc()).limit(limit)
    return session.scalars(query).all()


def place_of(row: CheckpointRow) -> Place:
    """Where the checkpoint stands in a list by step."""
    return Place(row.id, row.step)


def _place(session: Session, job_id: str, checkpoint_id: str) -> Place:
    query = select(CheckpointRow).where(CheckpointRow.id == checkpoint_id)
    row = session.scalar(query.where(CheckpointRow.job_id == job_id))
    if row is None:
        raise NotFound.by_id("checkpoint", checkpoint_id, of="this job", listed=_LISTED)
    return place_of(row)


def best(session: Session, job_id: str, *, count: int) -> Sequence[CheckpointRow]:
    """The live eval checkpoints of lowest finite loss, up to ``count``, best first."""
    query = (
        select(CheckpointRow)
        .where(CheckpointRow.job_id == job_id, CheckpointRow.kind == CheckpointKind.EVAL)
        .where(is_live(CheckpointRow), CheckpointRow.loss.is_not(None))
        .order_by(CheckpointRow.loss, CheckpointRow.step, CheckpointRow.id)
        .limit(count)
    )
    return session.scalars(query).all()


def newest_model_step(session: Session, job_id: str) -> int | None:
    """The step of the newest live eval checkpoint; None when the job has none."""
    query = select(CheckpointRow.step).where(CheckpointRow.job_id == job_id)
    query = query.where(CheckpointRow.kind == CheckpointKind.EVAL, is_live(CheckpointRow))
    return session.scalar(query.order_by(CheckpointRow.step.desc()).limit(1))


def delete_some_of_job(session: Session, job_id: str) -> bool:
    """Unlist some of the job's checkpoints; return whether there may be more.

    Their files are the caller's to delete.
    """
    mine = CheckpointRow.job_id == job_id
    return delete_some(session, CheckpointRow, mine, limit=ROWS_TOGETHER) == ROWS_TOGETHER
