"""Rows to resources."""

from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.resources import Attempt, Job, Progress
from roadless.service.contract.states import Desired, Phase
from roadless.service.db.tables import AttemptRow, JobRow


def job_resource(job: JobRow, attempt: AttemptRow | None) -> Job:
    """The job as the API shows it, with its newest attempt."""
    return Job(
        id=job.id,
        project=job.project,
        name=job.name,
        phase=Phase(job.phase),
        reason=job.reason,
        message=_message(job),
        desired=Desired(job.desired),
        version=job.version,
        spec=JobSpec.model_validate(job.spec),
        progress=progress_of(job),
        attempt=attempt_resource(attempt) if attempt else None,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
    )


def _message(job: JobRow) -> str | None:
    if job.not_before is None:
        return job.message
    return f"{job.message or job.reason}; the next attempt starts at {job.not_before:%H:%M:%S} UTC"


def progress_of(job: JobRow) -> Progress:
    """How far the job is."""
    return Progress(
        step=job.step,
        samples=job.samples,
        tokens=job.tokens,
        wall_seconds=job.wall_seconds,
        gpu_seconds=job.gpu_seconds,
        last_heard_at=job.last_heard_at,
    )


def attempt_resource(attempt: AttemptRow) -> Attempt:
    """The attempt as the API shows it; its token never leaves."""
    return Attempt(
        id=attempt.id,
        fence=attempt.fence,
        world_size=attempt.world_size,
        resumed_step=attempt.resumed_step,
        created_at=attempt.created_at,
        first_step_at=attempt.first_step_at,
        ended_at=attempt.ended_at,
        reason=attempt.reason,
        message=attempt.message,
        provenance=attempt.provenance,
    )
