"""/internal/v1/attempts: the specification down, reports and endings up."""

import re
from collections.abc import Mapping, Sequence
from functools import partial

import anyio
import anyio.to_thread
from fastapi import APIRouter, BackgroundTasks

from roadless.service.attempts import store as attempts
from roadless.service.attempts.access import AttemptToken, Leases, open_attempt
from roadless.service.checkpoints import store as checkpoints
from roadless.service.checkpoints.keys import blob_key
from roadless.service.checkpoints.retention import delete_files
from roadless.service.clock import utc_now
from roadless.service.contract.checkpoint.manifest import Manifest
from roadless.service.contract.ids import CHECKPOINT_ID_PATTERN
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.reports.cluster import AttemptBrief, AttemptEnded
from roadless.service.contract.reports.events import (
    SET_FINGERPRINT,
    CheckpointSaved,
    Report,
    ReportReply,
)
from roadless.service.contract.states import Desired
from roadless.service.db.session import Database
from roadless.service.db.tables import AttemptRow
from roadless.service.errors import Invalid
from roadless.service.http.dependencies import (
    AppSettings,
    Bell,
    BlobLimiter,
    Blobs,
    Db,
    ReportLimiter,
)
from roadless.service.http.routing import GuardedRoute
from roadless.service.ingest.apply import apply_report, lock_open_attempt
from roadless.service.jobs import store as jobs
from roadless.service.jobs.references import initial_manifest
from roadless.service.jobs.transitions import Deadlines, Transition, end_attempt
from roadless.service.secrets.actions import hand_over
from roadless.service.secrets.cipher import Cipher
from roadless.service.secrets.incoming import SecretCipher
from roadless.service.storage.blobs import BlobStore

#: Reports that may ask the blob store at once; while it hangs, reports without files pass by.
BLOB_THREADS = 8

router = APIRouter(
    route_class=GuardedRoute, prefix="/internal/v1/attempts/{attempt_id}", tags=["ranks"]
)


@router.get("")
async def get_brief(
    token: AttemptToken, db: Db, cipher: SecretCipher, limiter: ReportLimiter
) -> AttemptBrief:
    """What a rank needs to build itself."""
    return await anyio.to_thread.run_sync(_brief, db, token, cipher, limiter=limiter)


def _brief(db: Database, token: str, cipher: Cipher) -> AttemptBrief:
    with db.read() as session:
        attempt = open_attempt(session, token)
        job = jobs.get(session, attempt.job_id, attempt.project)
        resume, began = None, {}
        if attempt.resume_checkpoint_id is not None:
            row = checkpoints.get(session, attempt.resume_checkpoint_id, attempt.project)
            resume = Manifest.model_validate(row.manifest)
            began = attempts.provenance(session, row.attempt_id)
        spec = JobSpec.model_validate(job.spec)
        handed = hand_over(session, spec.secrets, project=attempt.project, cipher=cipher)
        return AttemptBrief(
            attempt_id=attempt.id,
            job_id=job.id,
            fence=attempt.fence,
            spec=spec,
            resume=resume,
            initial=initial_manifest(session, spec, project=attempt.project),
            data_fingerprint=began.get("data_fingerprint"),
            set_fingerprints=_set_fingerprints(began),
            desired=Desired(job.desired),
            evaluations_served=job.evaluations_served,
            secrets=handed.values,
            secret_faults=handed.faults,
        )


def _set_fingerprints(provenance: Mapping[str, str]) -> dict[str, str]:
    return {
        key.removeprefix(SET_FINGERPRINT): value
        for key, value in provenance.items()
        if key.startswith(SET_FINGERPRINT)
    }


@router.post("/report")
async def post_report(
    report: Report,
    token: AttemptToken,
    db: Db,
    blobs: Blobs,
    limiter: ReportLimiter,
    blob_limiter: BlobLimiter,
    settings: AppSettings,
    leases: Leases,
    bell: Bell,
    after: BackgroundTasks,
) -> ReportReply:
    """Apply a rank's events and return what it must do."""
    saved = [event.manifest for event in report.events if isinstance(event, CheckpointSaved)]
    if saved:
        check = partial(_require_files, db, blobs, token, saved)
        await anyio.to_thread.run_sync(check, limiter=blob_limiter)
    deadlines = Deadlines.from_settings(settings)

    def work() -> tuple[ReportReply, list[str]]:
        with db.write() as session:
            transition = Transition(session, utc_now(), deadlines)
            return apply_report(transition, report, token=token, lease=leases.policy)

    reply, dropped = await anyio.to_thread.run_sync(work, limiter=limiter)
    if dropped:
        after.add_task(_delete, dropped, blobs, blob_limiter)
    if any(event.kind in ("finished", "failed") for event in report.events):
        bell.ring()
    return reply


async def _delete(folders: list[str], blobs: BlobStore, limiter: anyio.CapacityLimiter) -> None:
    delete = partial(delete_files, folders, blobs=blobs)
    await anyio.to_thread.run_sync(delete, limiter=limiter)


def _require_files(db: Database, blobs: BlobStore, token: str, saved: Sequence[Manifest]) -> None:
    """Every file must be stored before its row is; checked outside the transaction."""
    with db.read() as session:
        attempt = open_attempt(session, token)
    for manifest in saved:
        _require_complete(blobs, attempt, manifest)


def _require_complete(blobs: BlobStore, attempt: AttemptRow, manifest: Manifest) -> None:
    if (manifest.job_id, manifest.attempt_id) != (attempt.job_id, attempt.id):
        raise Invalid(f"expected a checkpoint of {attempt.id}, saw one of {manifest.attempt_id}")
    if not re.fullmatch(CHECKPOINT_ID_PATTERN, manifest.checkpoint_id):
        raise Invalid(f"expected a checkpoint id, saw {manifest.checkpoint_id!r}")
    _require_check(manifest)
    if len({file.name for file in manifest.files}) < len(manifest.files):
        raise Invalid(
            f"checkpoint {manifest.checkpoint_id}: expected each file once, saw one named twice"
        )
    for file in manifest.files:
        key = blob_key(
            attempt.project,
            attempt.job_id,
            manifest.checkpoint_id,
            name=file.name,
            sha256=file.sha256,
        )
        size = blobs.size(key)
        if size != file.size:
            raise Invalid(
                f"checkpoint {manifest.checkpoint_id}: expected {file.name} with {file.size} "
                f"bytes, saw {'no such file' if size is None else size}"
            )


def _require_check(manifest: Manifest) -> None:
    """The check found the same loss as training; an earlier release makes no check."""
    check = manifest.evaluation.check if manifest.evaluation else None
    if check is not None and not check.holds:
        raise Invalid(
            f"checkpoint {manifest.checkpoint_id}: expected the loss {check.loss!r} over the first "
            f"{check.num_examples} examples, saw {check.seen_loss!r}"
        )


@router.post("/ended", status_code=204)
async def post_ended(
    ended: AttemptEnded,
    token: AttemptToken,
    db: Db,
    limiter: ReportLimiter,
    settings: AppSettings,
    bell: Bell,
) -> None:
    """Accept an agent's or a runner's report that the attempt is over. Repeatable."""
    deadlines = Deadlines.from_settings(settings)

    def work() -> None:
        with db.write() as session:
            job, attempt = lock_open_attempt(session, token)
            transition = Transition(session, utc_now(), deadlines)
            end_attempt(transition, job, attempt, reason=ended.reason, message=ended.message)

    await anyio.to_thread.run_sync(work, limiter=limiter)
    bell.ring()
