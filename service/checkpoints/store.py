"""Checkpoints in the database."""

import json
import math
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from service.attempts.store import is_live
from service.checkpoints.retention import Stored, superfluous_evals, superfluous_states
from service.contract.events import CheckpointSaved
from service.contract.manifest import CheckpointKind
from service.contract.states import Reason
from service.db.tables import AttemptRow, CheckpointRow, JobRow
from service.errors import Invalid, NotFound


def insert(session: Session, event: CheckpointSaved, *, attempt: AttemptRow, now: datetime) -> None:
    """List a checkpoint whose files are all stored; raises Invalid when its id is taken."""
    manifest = event.manifest
    if session.get(CheckpointRow, manifest.checkpoint_id) is not None:
        raise Invalid(f"checkpoint {manifest.checkpoint_id} is listed already")
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
            requested=event.evaluations_served > 0,
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
    keep_last: int,
    keep_best: int,
    keep_every_steps: int | None,
) -> Sequence[CheckpointRow]:
    """Unlist what retention does not keep, superseded ones included; return the rows removed."""
    # Locked: another job may be about to start from one of them, and keeps it.
    query = (
        select(CheckpointRow, is_live(CheckpointRow))
        .where(CheckpointRow.job_id == job_id, CheckpointRow.kind == kind)
        .with_for_update(of=CheckpointRow)
    )
    rows = session.execute(query).all()
    alive = [_stored(row) for row, lives in rows if lives]
    if kind is CheckpointKind.RESUME:
        drop = superfluous_states(alive)
    else:
        drop = superfluous_evals(
            alive, keep_last=keep_last, keep_best=keep_best, keep_every_steps=keep_every_steps
        )
    drop |= {row.id for row, lives in rows if not lives and not row.requested}
    session.execute(delete(CheckpointRow).where(CheckpointRow.id.in_(drop)))
    return [row for row, _ in rows if row.id in drop]


def _stored(row: CheckpointRow) -> Stored:
    return Stored(row.id, row.step, row.loss, row.requested)


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
    """Of these (job id, checkpoint id), which are listed, or may be, with files from before then.

    They may be while an attempt of their job lasts that was there when the files were stored.
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


def get(session: Session, checkpoint_id: str, project: str) -> CheckpointRow:
    """The checkpoint; raises NotFound."""
    query = select(CheckpointRow).where(
        CheckpointRow.id == checkpoint_id, CheckpointRow.project == project
    )
    row = session.scalar(query)
    if row is None:
        raise NotFound(f"no checkpoint {checkpoint_id!r} in this project")
    return row


def keep(session: Session, checkpoint_id: str, project: str) -> CheckpointRow:
    """The checkpoint, which retention keeps from now on; raises NotFound."""
    query = select(CheckpointRow).where(
        CheckpointRow.id == checkpoint_id, CheckpointRow.project == project
    )
    row = session.scalar(query.with_for_update())
    if row is None:
        raise NotFound(f"no checkpoint {checkpoint_id!r} in this project")
    row.requested = True
    return row


def get_for_attempt(session: Session, checkpoint_id: str, attempt: AttemptRow) -> CheckpointRow:
    """The checkpoint, if it is the job's own or the one that its model starts from.

    Raises NotFound for any other.
    """
    row = get(session, checkpoint_id, attempt.project)
    if row.job_id != attempt.job_id:
        spec = session.scalar(select(JobRow.spec).where(JobRow.id == attempt.job_id))
        if spec is None or spec["model"].get("checkpoint_id") != checkpoint_id:
            raise NotFound(f"no checkpoint {checkpoint_id!r} in this job")
    return row


def page(
    session: Session,
    job_id: str,
    *,
    project: str,
    kind: CheckpointKind | None,
    after: str | None,
    limit: int,
) -> Sequence[CheckpointRow]:
    """Up to ``limit`` live checkpoints, newest step first, after the one with id ``after``."""
    query = select(CheckpointRow).where(CheckpointRow.job_id == job_id)
    query = query.where(is_live(CheckpointRow))
    if kind is not None:
        query = query.where(CheckpointRow.kind == kind)
    if after is not None:
        last = get(session, after, project)
        query = query.where(tuple_(CheckpointRow.step, CheckpointRow.id) < (last.step, last.id))
    query = query.order_by(CheckpointRow.step.desc(), CheckpointRow.id.desc()).limit(limit)
    return session.scalars(query).all()


def delete_of_job(session: Session, job_id: str) -> None:
    """Unlist every checkpoint of the job; the sweep then removes their files."""
    session.execute(delete(CheckpointRow).where(CheckpointRow.job_id == job_id))
