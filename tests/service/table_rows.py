"""Rows as tables have them, for tests of queries on tables that no service has filled."""

from datetime import datetime, timedelta

from roadless.service.db.tables import AttemptRow, JobRow, RunnerRow

LEASE = timedelta(seconds=30)


def a_job(id: str, at: datetime, *, project: str = "default") -> JobRow:
    """A job that trains, created then."""
    return JobRow(
        id=id,
        project=project,
        name="a job",
        spec={},
        spec_version=1,
        priority=0,
        phase="RUNNING",
        desired="run",
        created_at=at,
    )


def a_runner(id: str, at: datetime) -> RunnerRow:
    """A runner without nodes, registered then."""
    return RunnerRow(id=id, name=id, nodes=[], created_at=at, last_seen_at=at)


def an_attempt(job: JobRow, runner_id: str, *, fence: int, resumed_step: int = 0) -> AttemptRow:
    """An attempt of the job, as old as it, called ``att_`` and its fence."""
    return AttemptRow(
        id=f"att_{fence}",
        job_id=job.id,
        project=job.project,
        runner_id=runner_id,
        fence=fence,
        token_sha256=str(fence),
        world_size=1,
        cpus_per_worker=1,
        gpus_per_worker=0,
        resumed_step=resumed_step,
        provenance={},
        lease_until=job.created_at + LEASE,
        created_at=job.created_at,
    )
