"""The driver of one Ray cluster: reports to the service, and starts and releases gangs.

It owns nothing: agents, seats and placement groups are detached, so when a runner dies the next one
finds all of them again, and training is not affected. A cluster has one runner: a process that
another one has replaced ends. Run it with ``python -m roadless.worker.runner``.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import NoReturn, Protocol

from ray.exceptions import RayError

from roadless.service.contract.reports.cluster import Assignment, AttemptEnded, Sync, SyncReply
from roadless.worker import retry
from roadless.worker.api import (
    ApiError,
    AttemptApi,
    Away,
    NameTaken,
    Refused,
    Replaced,
    RunnerApi,
)
from roadless.worker.retry import call_with_retry
from roadless.worker.runner.capacity import Held, account
from roadless.worker.runner.gang import Group, NotReleased, StartFailed, View, bundle_of

_log = logging.getLogger(__name__)

_TOKEN_REFUSED = (401, 403)
_POLL_SECONDS = 10.0
#: The same while attempts run: only polling reveals a lost node.
_WATCH_SECONDS = 1.0
#: How long a round waits for its own work before it asks the service again.
_BUSY_SECONDS = 0.2
_RELEASE_AGAIN_SECONDS = 1.0
_TELL_FOR_SECONDS = 30.0
_WORKERS = 16
_AGENTS_SECONDS = 60.0
#: How long a name that another cluster's runner has is asked for: longer than the usual lease, in
#: which that runner may turn out to be dead.
_NAME_SECONDS = 120.0


class Cluster(Protocol):
    """What a runner needs from its cluster; ``roadless.worker.runner.gang.Gangs`` on Ray."""

    def look(self) -> View:
        """Return the current state of the cluster."""

    def start(self, assignment: Assignment) -> None:
        """Start a gang; raise StartFailed."""

    def release(self, attempt_id: str) -> None:
        """Release everything of the attempt; raise NotReleased."""


@dataclass(frozen=True, slots=True)
class _Start:
    assignment: Assignment
    future: "Future[None]"


class Runner:
    """Syncs in one thread; starts and releases in others, so that a slow one delays no other."""

    def __init__(
        self, *, api: RunnerApi, cluster: Cluster, service_url: str, name: str, cluster_id: str
    ) -> None:
        """``cluster_id``: tells this cluster from all others (``RegisterRunner.cluster``)."""
        self._api = api
        self._cluster = cluster
        self._service_url = service_url
        self._name = name
        self._cluster_id = cluster_id
        self._session = f"{socket.gethostname()[:100]}:{os.getpid()}:{secrets.token_hex(8)}"
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="gang")
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._starting: dict[str, _Start] = {}
        self._releasing: set[str] = set()
        self._released: set[str] = set()  #: until the service has received it
        self._homes: dict[str, frozenset[str | None]] = {}  #: attempt -> nodes it started on

    def run(self) -> NoReturn:
        """Serve the cluster until the process is told to exit.

        Raises Replaced when another process does so from now on, NameTaken when another cluster's
        runner keeps the name of this one, and Refused when the service does not know the token.
        """
        runner_id, pauses = None, retry.pauses()
        while True:
            try:
                runner_id = runner_id or self._register()
                self.round(runner_id)
                pauses = retry.pauses()
                continue
            except Away as error:
                _log.warning("the service is away; training continues: %s", error)
            except (Replaced, NameTaken):
                raise
            except Refused as error:
                if error.status in _TOKEN_REFUSED:  # it may be a newer one after a restart
                    raise
                _log.error("the service refuses this runner: %s", error)
                runner_id = None
            except RayError:
                _log.exception("the cluster does not answer")
            time.sleep(next(pauses))

    def round(self, runner_id: str) -> None:
        """Report the cluster's state, and start and release what the service requests."""
        self._changed.clear()
        seen = self._look()
        reply = self._api.sync(runner_id, seen=seen)
        with self._lock:
            self._released.difference_update(seen.released)
        self._apply(reply)
        if self._is_busy():
            self._changed.wait(_BUSY_SECONDS)

    def close(self) -> None:
        """Finish what is being started or released, and leave everything else as it is."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _register(self) -> str:
        give_up_at, pauses = time.monotonic() + _NAME_SECONDS, retry.pauses()
        while True:
            try:
                registered = self._api.register(
                    self._name, cluster=self._cluster_id, session=self._session
                )
            except NameTaken as error:
                if time.monotonic() > give_up_at:
                    raise
                _log.warning("waiting for the name: %s", error)
                time.sleep(next(pauses))
            else:
                _log.info("registered %s as %s", self._name, registered.runner_id)
                return registered.runner_id

    def _look(self) -> Sync:
        # In this order, a gang that comes up in between is seen twice rather than never.
        with self._lock:
            starting = {key: start.assignment for key, start in self._starting.items()}
            released = sorted(self._released)
        view = self._cluster.look()
        alive = sorted(starting.keys() | self._whole(view))
        return Sync(
            session=self._session,
            nodes=account(view.nodes, _held(view.groups, starting.values())),
            alive=alive,
            held=sorted(_with_anything(view)),
            released=released,
            still_seconds=_still_seconds(view),
            wait_seconds=self._wait_seconds(is_watching=bool(alive)),
        )

    def _wait_seconds(self, *, is_watching: bool) -> float:
        if self._is_busy():
            return 0.0
        return _WATCH_SECONDS if is_watching else _POLL_SECONDS

    def _whole(self, view: View) -> set[str]:
        """Return the attempts with live ranks that have lost no node.

        Ranks that outlive a lost node would wait for the others forever.
        """
        with_ranks = {attempt_id for ids in view.ranks.values() for attempt_id in ids}
        now = {group.attempt_id: group.node_ids for group in view.groups}
        self._homes = {key: self._homes.get(key, now[key]) for key in with_ranks & now.keys()}
        return {
            attempt_id
            for attempt_id, home in self._homes.items()
            if home == now[attempt_id] and home <= view.ranks.keys()
        }

    def _is_busy(self) -> bool:
        with self._lock:
            return bool(self._starting or self._releasing)

    def _apply(self, reply: SyncReply) -> None:
        with self._lock:
            for assignment in reply.start:
                if assignment.attempt_id not in self._starting:
                    future = self._pool.submit(self._start, assignment)
                    self._starting[assignment.attempt_id] = _Start(assignment, future)
            for attempt_id in set(reply.stop) - self._releasing:
                self._releasing.add(attempt_id)
                self._pool.submit(self._stop, attempt_id, self._starting.get(attempt_id))

    def _start(self, assignment: Assignment) -> None:
        attempt_id = assignment.attempt_id
        try:
            self._cluster.start(assignment)
            _log.info("started %s of %s", attempt_id, assignment.job_id)
        except StartFailed as error:
            _log.error("cannot start %s: %s", attempt_id, error)
            self._give_up(assignment, error)
        except (
            Exception
        ) as error:  # of Ray, say: a start that fails unseen would be handed out again
            _log.exception("cannot start %s", attempt_id)
            self._give_up(assignment, StartFailed(f"{type(error).__name__}: {error}"))
        finally:
            with self._lock:
                del self._starting[attempt_id]
            self._changed.set()

    def _give_up(self, assignment: Assignment, error: StartFailed) -> None:
        self._tell_failed(assignment, error)
        self._release(assignment.attempt_id)

    def _stop(self, attempt_id: str, start: _Start | None) -> None:
        try:
            if start is not None:
                wait([start.future])
            self._release(attempt_id)
        finally:
            with self._lock:
                self._releasing.discard(attempt_id)
            self._changed.set()

    def _release(self, attempt_id: str) -> None:
        """Release once; as long as that fails, the service keeps requesting it."""
        try:
            self._cluster.release(attempt_id)
        except Exception as error:
            how = _log.warning if isinstance(error, NotReleased) else _log.exception
            how("not released: %s", error)
            time.sleep(_RELEASE_AGAIN_SECONDS)
            return
        _log.info("released %s", attempt_id)
        with self._lock:
            self._released.add(attempt_id)

    def _tell_failed(self, assignment: Assignment, error: StartFailed) -> None:
        ended = AttemptEnded(reason=error.reason, message=str(error)[:10_000])
        with AttemptApi(
            self._service_url, attempt_id=assignment.attempt_id, token=assignment.token
        ) as api:
            try:
                call_with_retry(lambda: api.ended(ended), seconds=_TELL_FOR_SECONDS)
            except ApiError as refusal:
                _log.warning(
                    "the service did not accept the end of %s: %s", assignment.attempt_id, refusal
                )


def _with_anything(view: View) -> set[str]:
    """Attempts of which anything is left on the cluster: seats, actors or ranks, whole or not."""
    ranks = {attempt_id for on_node in view.ranks.values() for attempt_id in on_node}
    return ranks | view.holders | {group.attempt_id for group in view.groups}


def _still_seconds(view: View) -> dict[str, float]:
    """For how long no rank of each attempt, on whatever node, has used processor time."""
    seconds: dict[str, float] = {}
    for on_node in view.ranks.values():
        for attempt_id, still in on_node.items():
            seconds[attempt_id] = min(still, seconds.get(attempt_id, still))
    return seconds


def _held(groups: Iterable[Group], starting: Iterable[Assignment]) -> list[Held]:
    """Everything held, and what starts without a group yet are about to hold."""
    by_attempt = {group.attempt_id: group.held for group in groups}
    for assignment in starting:
        seat = Held(bundle=bundle_of(assignment), node_id=None)
        by_attempt.setdefault(assignment.attempt_id, (seat,) * assignment.num_workers)
    return [item for items in by_attempt.values() for item in items]
