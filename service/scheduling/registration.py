"""Which process speaks for a cluster: the one that registered last, and no other.

A runner's word releases seats, so it counts for its own cluster only. The id of a runner stands for
the cluster: what was started there is found by it, whatever the runner's process or name. Two
clusters never share a name, or their runners would take each other's attempts for lost.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from roadless.service.attempts.leases import LeasePolicy
from roadless.service.contract.reports.cluster import RegisterRunner
from roadless.service.db.tables import RunnerRow
from roadless.service.errors import Conflict
from roadless.service.scheduling import store

#: How much of a name is kept when another cluster takes it over.
_KEPT_OF_NAME = 60


class NameTaken(Conflict):
    """The runner of another cluster has this name, and is alive."""

    code, title = "runner_name_taken", "Another cluster's runner has this name"


class Replaced(Conflict):
    """Another process has registered for this runner's cluster since."""

    code, title = "runner_replaced", "Another process is the runner of this cluster now"


def register(
    session: Session, said: RegisterRunner, *, lease: LeasePolicy, now: datetime
) -> RunnerRow:
    """The runner of this cluster, spoken for by this session from now on.

    Raises NameTaken while another cluster's runner of this name is not silent for a lease.
    """
    found = store.runners_called(session, name=said.name, cluster=said.cluster)
    owner = next((one for one in found if one.name == said.name), None)
    runner = _of_cluster(found, said.cluster) or (owner if _may_be(owner, said) else None)
    if owner is not None and owner is not runner:
        _take_name_from(owner, lease=lease, now=now)
        session.flush()
    if runner is None:
        runner = store.add_runner(session, said.name, now=now)
    runner.name, runner.session, runner.last_seen_at = said.name, said.session, now
    runner.cluster = said.cluster or runner.cluster
    return runner


def require_current(runner: RunnerRow, session_id: str) -> None:
    """Raise Replaced for a process that another one has replaced."""
    if session_id != (runner.session or ""):
        raise Replaced(
            f"expected the process that registered last for this cluster ({runner.session!r}, as "
            f"{runner.name!r}), saw {session_id!r}: two of them would undo each other's work, so "
            "this one must stop"
        )


def _of_cluster(found: Sequence[RunnerRow], cluster: str) -> RunnerRow | None:
    return next((one for one in found if cluster and one.cluster == cluster), None)


def _may_be(owner: RunnerRow | None, said: RegisterRunner) -> bool:
    """Whether the name alone tells who it is: where one side, of an older release, has no more."""
    return owner is not None and (not said.cluster or owner.cluster is None)


def _take_name_from(owner: RunnerRow, *, lease: LeasePolicy, now: datetime) -> None:
    if owner.last_seen_at >= lease.silent_since(now):
        raise NameTaken(
            f"expected a name that no other cluster's runner has, saw {owner.name!r}, which is "
            f"{owner.session!r} on the cluster {owner.cluster!r}; give this runner a name of its "
            "own with ROADLESS_RUNNER_NAME, or stop the other one: its name is free once it has "
            f"been silent for {lease.seconds:g} s"
        )
    owner.name = f"{owner.name[:_KEPT_OF_NAME]} ({owner.id})"
