"""The node agents of a Ray cluster, as detached actors that outlive their creator.

Translates between Ray's futures and plain values; the agent itself is in
``worker/agent/node_agent.py``.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from roadless.worker.agent.launcher import PRELOAD, RANK_ENTRY
from roadless.worker.agent.node_agent import NodeAgent
from roadless.worker.agent.node_launcher import NodeLauncher
from roadless.worker.rank_launch import RankLaunch

_log = logging.getLogger(__name__)

NAMESPACE = "roadless"
_ANSWER_SECONDS = 2.0
_LAUNCH_SECONDS = 30.0
_KILL_SECONDS = 15.0
_CALLS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """What an agent has said, and when."""

    still_seconds: dict[str, float]  #: by attempt: how long no rank of it had moved
    at: float

    def aged(self, now: float) -> dict[str, float]:
        return {key: still + now - self.at for key, still in self.still_seconds.items()}

    def with_launched(self, attempt_id: str) -> "_Answer":
        return replace(self, still_seconds={**self.still_seconds, attempt_id: 0.0})


class Agents:
    """One agent per node, created when the node appears and dropped when it disappears."""

    def __init__(
        self, *, scratch: str, entry: str = RANK_ENTRY, preload: tuple[str, ...] = PRELOAD
    ) -> None:
        self._scratch = scratch
        self._make_launcher = partial(NodeLauncher, entry=entry, preload=preload)
        self._handles: dict[str, Any] = {}  #: by node id; an actor handle answers to any method
        self._answers: dict[str, _Answer] = {}  #: by node id, the last one

    def ensure(self, node_ids: Iterable[str]) -> None:
        """Ensure one agent on each of these nodes, the cluster's live ones, and on no other."""
        live = set(node_ids)
        self._handles = {
            node_id: self._handles.get(node_id) or self._get_or_create(node_id) for node_id in live
        }
        self._answers = {node: last for node, last in self._answers.items() if node in live}

    def wait_ready(self, timeout_seconds: float) -> None:
        """Return once all agents are warm and have answered, or after the timeout; log bad nodes.

        A new runner needs an answer from every agent before its first ``attempts``: it has no
        earlier one to fall back on.
        """
        calls = {handle.ready.remote(): node for node, handle in self._handles.items()}
        done, late = ray.wait(list(calls), num_returns=len(calls), timeout=timeout_seconds)
        for call in late:
            _log.error("the agent of node %s is not warm yet", calls[call])
        for call in done:
            try:
                ray.get(call)
            except RayError:
                _log.exception("the agent of node %s starts no ranks", calls[call])
        self._hear(timeout_seconds)

    def attempts(self) -> dict[str, dict[str, float]]:
        """Return the attempts with live ranks, by node id; only nodes whose agent has answered.

        Each with the seconds since any of its ranks on that node was seen to use processor time.
        For an agent that does not answer for a moment, its last answer counts, and ages: declaring
        its ranks dead would end their attempts.
        """
        self._hear(_ANSWER_SECONDS)
        now = time.monotonic()
        return {node: last.aged(now) for node, last in self._answers.items()}

    def free_port(self, node_id: str) -> int:
        """Return a port of the node that is free at this moment."""
        port: int = ray.get(self._handles[node_id].free_port.remote(), timeout=_LAUNCH_SECONDS)
        return port

    def launch(self, attempt_id: str, by_node: Mapping[str, Sequence[RankLaunch]]) -> None:
        """Start the attempt's ranks on their nodes; raise RayError when that fails."""
        calls = [
            self._handles[node_id].launch.remote(attempt_id, launches)
            for node_id, launches in by_node.items()
        ]
        ray.get(calls, timeout=_LAUNCH_SECONDS)
        for node_id in by_node:
            last = self._answers.get(node_id, _Answer(still_seconds={}, at=time.monotonic()))
            self._answers[node_id] = last.with_launched(attempt_id)

    def kill(self, attempt_id: str) -> bool:
        """Kill the attempt's ranks on all nodes; return whether every agent confirms it."""
        calls = [handle.kill.remote(attempt_id) for handle in self._handles.values()]
        try:
            return all(ray.get(calls, timeout=_KILL_SECONDS))
        except (RayError, GetTimeoutError) as error:
            _log.warning("an agent did not confirm the end of %s: %s", attempt_id, error)
            return False

    def _get_or_create(self, node_id: str) -> Any:
        options: dict[str, Any] = {
            "name": f"agent:{node_id}",
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": -1,
            "max_concurrency": _CALLS_AT_ONCE,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
        }
        actor: Any = ray.remote(NodeAgent)
        return actor.options(**options).remote(
            scratch=self._scratch, make_launcher=self._make_launcher
        )

    def _hear(self, timeout_seconds: float) -> None:
        calls = {handle.attempts.remote(): node for node, handle in self._handles.items()}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=timeout_seconds)
        for call in done:
            self._note(calls[call], call)

    def _note(self, node_id: str, call: Any) -> None:
        try:
            self._answers[node_id] = _Answer(still_seconds=ray.get(call), at=time.monotonic())
        except ActorDiedError:
            # Its ranks died with it, and it never answers again; the next round creates another.
            _log.exception("the agent of node %s is dead", node_id)
            self._answers.pop(node_id, None)
            del self._handles[node_id]
        except RayError as error:
            _log.warning("the agent of node %s is away: %s", node_id, error)
