"""One node agent as its runner knows it: an actor handle, and what the agent has last said."""

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import ActorDiedError, RayError

from roadless.worker.agent.node_agent import NodeState

_log = logging.getLogger(__name__)

#: How long one agent is waited for once the other one of its node has answered.
GRACE_SECONDS = 0.2
#: An agent that has been silent for so long is replaced, and its ranks end with it; the next one
#: has twice as long for its first answer, and so on, since a busy machine may take its time.
SILENT_SECONDS = 60.0
#: At least so often it was asked meanwhile: a runner that was frozen itself has not listened.
SILENT_ROUNDS = 5

Role = Literal["agent", "standby"]


@dataclass(eq=False, slots=True)
class AgentHandle:
    """One of a node's agents. ``handle``: an actor handle, which answers to any method."""

    node_id: str
    role: Role
    handle: Any
    state: NodeState | None = None  #: its last answer
    heard_at: float = float("-inf")
    question: Any = None  #: a call that it owes an answer to: one at a time
    missed_rounds: int = 0
    missed_since: float = 0.0
    num_replaced: int = 0  #: without an answer since
    is_dead: bool = False  #: for good; another one takes its place

    def __str__(self) -> str:
        return f"the {self.role} of node {self.node_id}"

    @property
    def is_warm(self) -> bool:
        """Whether it starts ranks at full speed, as far as is known."""
        return self.state is not None and self.state.is_warm

    def still_seconds(self, now: float) -> dict[str, float]:
        """Return the attempts that it has last told of, and for how long each has not moved."""
        told = self.state.still_seconds if self.state is not None else {}
        return {key: still + now - self.heard_at for key, still in told.items()}


def hear(agents: Iterable[AgentHandle], *, timeout_seconds: float) -> None:
    """Ask all agents and note what they answer, until each node has answered or the time is up.

    Who owes an answer from before is not waited for; one that is silent for too long is replaced.
    """
    asked_at = time.monotonic()
    late = {agent for agent in agents if agent.question is not None}
    waiting = {agent for agent in agents if agent.question is None}
    for agent in waiting:
        agent.question = agent.handle.state.remote()
    _listen(waiting, late, deadline=asked_at + timeout_seconds)
    for agent in late | waiting:
        if agent.heard_at < asked_at:
            _note_silence(agent, asked_at)


def _listen(waiting: set[AgentHandle], late: set[AgentHandle], *, deadline: float) -> None:
    """Note the answers of ``waiting`` in time, and those of ``late`` that are there."""
    heard = {agent.node_id for agent in _answered(late, timeout_seconds=0.0) if _note(agent)}
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        is_urgent = any(agent.node_id not in heard for agent in waiting)
        answered = _answered(waiting, timeout_seconds=left if is_urgent else GRACE_SECONDS)
        if not answered:
            return
        heard |= {agent.node_id for agent in answered if _note(agent)}
        waiting = waiting - answered


def _answered(agents: Iterable[AgentHandle], *, timeout_seconds: float) -> set[AgentHandle]:
    """Wait until one of them has answered; return who has."""
    by_question = {agent.question: agent for agent in agents}
    if not by_question:
        return set()
    done, _ = ray.wait(list(by_question), timeout=timeout_seconds)
    return {by_question[question] for question in done}


def _note(agent: AgentHandle) -> bool:
    """Note what the agent has answered; return whether that was its state."""
    question, agent.question = agent.question, None
    try:
        agent.state = ray.get(question)
    except ActorDiedError:
        _log.exception("%s is dead", agent)
        agent.is_dead, agent.state = True, None
        return False
    except RayError as error:
        _log.warning("%s is away: %s", agent, error)
        return False
    agent.heard_at, agent.missed_rounds, agent.num_replaced = time.monotonic(), 0, 0
    return True


def _note_silence(agent: AgentHandle, now: float) -> None:
    agent.missed_since = agent.missed_since if agent.missed_rounds else now
    agent.missed_rounds += 1
    silent_seconds, bound = now - agent.missed_since, SILENT_SECONDS * 2**agent.num_replaced
    if agent.missed_rounds >= SILENT_ROUNDS and silent_seconds >= bound:
        _log.error("%s has been silent for %.0f s; it is replaced", agent, silent_seconds)
        _replace(agent)


def _replace(agent: AgentHandle) -> None:
    """Have Ray kill the agent's process, frozen or not, and start another."""
    agent.state, agent.question, agent.missed_rounds = None, None, 0
    agent.num_replaced += 1
    with suppress(RayError):
        ray.kill(agent.handle, no_restart=False)
