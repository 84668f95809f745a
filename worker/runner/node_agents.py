"""The node agents of a Ray cluster, as detached actors that outlive their creator.

Translates between Ray's futures and plain values; the agent itself is in
``worker/agent/node_agent.py``. A node has a second one on standby, warm as well: when the first
dies or hangs, ranks start at once, while Ray and the imports take seconds to replace it.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from roadless.worker.agent.launcher import PRELOAD, RANK_ENTRY, LaunchError
from roadless.worker.agent.node_agent import Killed, NodeAgent
from roadless.worker.agent.node_launcher import NodeLauncher
from roadless.worker.rank_launch import RankLaunch
from roadless.worker.runner.agent_handle import AgentHandle, Role, hear

_log = logging.getLogger(__name__)

NAMESPACE = "roadless"
_LOG_NAMES: dict[Role, str] = {"agent": "forkserver.log", "standby": "forkserver-standby.log"}
_ANSWER_SECONDS = 2.0
_LAUNCH_SECONDS = 15.0
_KILL_SECONDS = 15.0
_CALLS_AT_ONCE = 16


class Agents:
    """The agents of each node, created when it appears and dropped when it disappears.

    ``has_standby``: whether each node gets a second one; it takes memory, but no seats.
    """

    def __init__(
        self,
        *,
        scratch: str,
        entry: str = RANK_ENTRY,
        preload: tuple[str, ...] = PRELOAD,
        has_standby: bool = True,
    ) -> None:
        self._scratch = scratch
        self._make_launcher = partial(NodeLauncher, entry=entry, preload=preload)
        self._has_standby = has_standby
        self._nodes: dict[str, list[AgentHandle]] = {}  #: by node id; lists are never changed
        self._lock = (
            threading.Lock()
        )  #: held by whoever listens to them, or changes which there are

    def ensure(self, node_ids: Iterable[str]) -> None:
        """Ensure agents on each of these nodes, the cluster's live ones, and on no other."""
        with self._lock:
            self._nodes = {node_id: self._agents_of(node_id) for node_id in set(node_ids)}

    def wait_ready(self, timeout_seconds: float) -> None:
        """Return once each node is warm and has answered, or after the timeout; log bad nodes.

        A new runner needs an answer from every node before its first ``attempts``: it has no
        earlier one to fall back on.
        """
        deadline = time.monotonic() + timeout_seconds
        calls = {
            node_id: [agent.handle.ready.remote() for agent in agents]
            for node_id, agents in self._nodes.items()
        }
        for node_id, mine in calls.items():
            _wait_ready(node_id, mine, timeout_seconds=deadline - time.monotonic())
        self._hear(max(_ANSWER_SECONDS, deadline - time.monotonic()))

    def attempts(self) -> dict[str, dict[str, float]]:
        """Return the attempts with live ranks, by node id; only nodes that have answered.

        Each with the seconds since any of its ranks on that node was seen to use processor time.
        For a node that does not answer for a moment, the last answers count, and age: declaring
        its ranks dead would end their attempts.
        """
        asked_at = time.monotonic()
        self._hear(_ANSWER_SECONDS)
        now = time.monotonic()
        known = {
            node_id: [agent for agent in agents if agent.state is not None]
            for node_id, agents in self._nodes.items()
        }
        return {
            # Each agent sees all of its node's ranks, so one that answers is enough.
            node_id: _merged(
                agent.still_seconds(now)
                for agent in [one for one in agents if one.heard_at >= asked_at] or agents
            )
            for node_id, agents in known.items()
            if agents
        }

    def free_port(self, node_id: str) -> int:
        """Return a port of the node that is free at this moment."""
        handle = self._by_fitness(node_id)[0].handle
        port: int = ray.get(handle.free_port.remote(), timeout=_LAUNCH_SECONDS)
        return port

    def launch(self, attempt_id: str, by_node: Mapping[str, Sequence[RankLaunch]]) -> None:
        """Start the attempt's ranks on their nodes; raise LaunchError when that fails.

        Where an agent fails or does not answer, the other one of its node is asked; no rank begins
        twice, since it must claim itself first.
        """
        tries = {
            node_id: _tries(self._by_fitness(node_id), attempt_id, launches)
            for node_id, launches in by_node.items()
        }
        calls = {node_id: next(mine) for node_id, mine in tries.items()}
        for node_id, call in calls.items():
            _settle(call, others=tries[node_id])
            self._note_launched(node_id, attempt_id, by_node[node_id])

    def kill(self, attempt_id: str) -> bool:
        """Kill the attempt's ranks on all nodes; return whether none is left, and none can begin.

        One agent can say so for its node, or all of a node for themselves.
        """
        agents = [agent for mine in self._nodes.values() for agent in mine]
        calls = {agent.handle.kill.remote(attempt_id): agent for agent in agents}
        missing, deadline = set(agents), time.monotonic() + _KILL_SECONDS
        while missing and calls:
            done, _ = ray.wait(list(calls), timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                break
            missing -= self._confirmed(calls.pop(done[0]), done[0])
        for agent in missing:
            _log.warning("%s did not confirm the end of %s", agent, attempt_id)
        return not missing

    def _agents_of(self, node_id: str) -> list[AgentHandle]:
        known = self._nodes.get(node_id) or _existing(node_id)
        living = [agent for agent in known if not agent.is_dead]
        return living + [self._get_or_create(node_id, role) for role in self._missing(living)]

    def _missing(self, agents: Sequence[AgentHandle]) -> list[Role]:
        """The standby comes once the first agent is warm, so that it does not slow that one."""
        by_role = {agent.role: agent for agent in agents}
        if (first := by_role.get("agent")) is None:
            return ["agent"]
        wants_standby = self._has_standby and first.is_warm and "standby" not in by_role
        return ["standby"] if wants_standby else []

    def _get_or_create(self, node_id: str, role: Role) -> AgentHandle:
        options: dict[str, Any] = {
            "name": _name(node_id, role),
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": -1,
            "max_concurrency": _CALLS_AT_ONCE,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
        }
        actor: Any = ray.remote(NodeAgent)
        handle = actor.options(**options).remote(
            node_id=node_id,
            scratch=self._scratch,
            make_launcher=partial(self._make_launcher, log_name=_LOG_NAMES[role]),
        )
        return AgentHandle(node_id=node_id, role=role, handle=handle)

    def _hear(self, timeout_seconds: float) -> None:
        with self._lock:
            agents = [agent for mine in self._nodes.values() for agent in mine]
            hear(agents, timeout_seconds=timeout_seconds)

    def _by_fitness(self, node_id: str) -> list[AgentHandle]:
        """Return the node's agents: those first that answer, and among them the warm ones."""
        return sorted(
            self._nodes[node_id],
            key=lambda agent: (agent.state is None, agent.missed_rounds > 0, not agent.is_warm),
        )

    def _note_launched(self, node_id: str, attempt_id: str, launches: Sequence[RankLaunch]) -> None:
        """Until its next answer, each of the node's agents counts as having told of the attempt."""
        for agent in self._nodes.get(node_id, []):
            agent.handle.stand_by.remote(attempt_id, launches)
            if (state := agent.state) is not None:
                still = {**state.still_seconds, attempt_id: 0.0}
                agent.state = replace(state, still_seconds=still)

    def _confirmed(self, agent: AgentHandle, call: Any) -> set[AgentHandle]:
        """Return the agents that this answer to a kill speaks for."""
        try:
            killed: Killed = ray.get(call)
        except RayError as error:
            _log.warning("%s does not kill: %s", agent, error)
            return set()
        if killed.is_gone and killed.is_barred:
            return set(self._nodes.get(agent.node_id, [agent]))
        return {agent} if killed.is_gone else set()


def _name(node_id: str, role: Role) -> str:
    return f"{role}:{node_id}"


def _existing(node_id: str) -> list[AgentHandle]:
    """Return the standby that an earlier runner has made; the first is got by creating it."""
    try:
        handle = ray.get_actor(_name(node_id, "standby"), namespace=NAMESPACE)
    except ValueError:
        return []
    return [AgentHandle(node_id=node_id, role="standby", handle=handle)]


def _wait_ready(node_id: str, calls: list[Any], *, timeout_seconds: float) -> None:
    done, _ = ray.wait(calls, timeout=max(0.0, timeout_seconds))
    if not done:
        _log.error("no agent of node %s is warm yet", node_id)
        return
    try:
        ray.get(done[0])
    except RayError:
        _log.exception("an agent of node %s starts no ranks", node_id)


def _merged(told: Iterable[Mapping[str, float]]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for still_seconds in told:
        for attempt_id, still in still_seconds.items():
            merged[attempt_id] = min(still, merged.get(attempt_id, still))
    return merged


def _tries(
    agents: Iterable[AgentHandle], attempt_id: str, launches: Sequence[RankLaunch]
) -> Iterator[Any]:
    """Ask one agent after the other, each when the one before has failed."""
    for agent in agents:
        yield agent.handle.launch.remote(attempt_id, launches)


def _settle(call: Any, *, others: Iterator[Any]) -> None:
    """Wait for a launch, and for the next try while it fails; raise LaunchError when all have."""
    failures: list[str] = []
    while call is not None:
        try:
            ray.get(call, timeout=_LAUNCH_SECONDS)
            return
        except RayError as error:
            failures.append(_words(error))
        call = next(others, None)
    raise LaunchError("; ".join(dict.fromkeys(failures)))


def _words(error: RayError) -> str:
    """What the agent itself has said, rather than Ray's report of where."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, GetTimeoutError):
        return f"expected an agent to answer within {_LAUNCH_SECONDS:g} s, saw none"
    return str(cause) if isinstance(cause, LaunchError) else f"{type(cause).__name__}: {cause}"
