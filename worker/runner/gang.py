"""One attempt's seats on a Ray cluster, and the ranks that take them.

Everything here is detached and named after the attempt, so that any runner of the cluster can find
and release it, whichever runner created it.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RaySystemError
from ray.util import list_named_actors
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from roadless.service.contract.reports.cluster import Assignment, Node
from roadless.service.contract.states import Reason
from roadless.worker.agent.launcher import LaunchError
from roadless.worker.model.sources import ALLOW_WHEELS_VARIABLE
from roadless.worker.rank_launch import (
    DataSources,
    LaunchMethod,
    ModelSources,
    RankLaunch,
    WheelFile,
)
from roadless.worker.runner.capacity import Bundle, Held
from roadless.worker.runner.node_agents import NAMESPACE, Agents

_log = logging.getLogger(__name__)

_NO_SOURCES = ModelSources()
_GROUP_PREFIX = "attempt:"
_HOLDER_PREFIX = "seat:"
_PLACE_SECONDS = 10.0
_SEAT_SECONDS = 30.0
_REMOVE_SECONDS = 10.0
_POLL_SECONDS = 0.005
#: Ray counts freed seats as free up to 0.1 s late, and a group requested before that waits up to a
#: second for its next try.
_SETTLE_SECONDS = 0.12


class StartFailed(Exception):
    """The gang does not start; ``release`` frees what it holds."""

    def __init__(self, message: str, *, reason: Reason = Reason.START_FAILED) -> None:
        super().__init__(message)
        self.reason = reason


class NotReleased(Exception):
    """Some of the attempt's resources may still be held; try again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """An attempt's placement group: what it holds, and where."""

    attempt_id: str
    held: tuple[Held, ...]

    @property
    def node_ids(self) -> frozenset[str | None]:
        """The nodes it is on; includes None while Ray is placing a bundle."""
        return frozenset(item.node_id for item in self.held)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A cluster at one moment. ``nodes``: live ones that can start ranks, shown as all free.

    ``holders``: attempts of which an actor holds GPUs.
    """

    nodes: list[Node]
    groups: list[Group]
    ranks: dict[str, dict[str, float]]  #: by node id: attempts with live ranks, seconds without CPU
    holders: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seat:
    """Where one rank runs, and with which GPUs."""

    bundle_index: int
    node_id: str
    gpu_ids: tuple[str, ...]


class _GpuHolder:
    """An actor that holds a bundle's GPUs, since only Ray knows which ones they are."""

    def gpu_ids(self) -> tuple[str, ...]:
        """Return the ids as CUDA_VISIBLE_DEVICES expects them."""
        return tuple(str(gpu_id) for gpu_id in ray.get_gpu_ids())


class Gangs:
    """Starts and releases gangs.

    Seats of CPU ranks are bundles of the placement group and nothing more: the group itself holds
    the CPUs, ranks are forked by the node agents, and an actor per seat would cost 0.14-0.47 s.
    """

    def __init__(
        self,
        *,
        agents: Agents,
        service_url: str,
        data_sources: DataSources,
        model_sources: ModelSources = _NO_SOURCES,
        method: LaunchMethod = "fork",
    ) -> None:
        self._agents = agents
        self._service_url = service_url
        self._data_sources = data_sources
        self._model_sources = model_sources
        self._method = method

    def wait_ready(self, timeout_seconds: float) -> None:
        """Return once every node can start ranks without a cold import, or after the timeout."""
        self._agents.ensure(_live_nodes())
        self._agents.wait_ready(timeout_seconds)

    def look(self) -> View:
        """Return what the cluster has, holds and runs; first ensure an agent on every live node."""
        nodes = _live_nodes()
        self._agents.ensure(nodes)
        ranks = self._agents.attempts()
        return View(
            nodes=[_all_free(node) for node_id, node in nodes.items() if node_id in ranks],
            groups=_groups(),
            ranks=ranks,
            holders=_attempts_with_holders(),
        )

    def start(self, assignment: Assignment) -> None:
        """Reserve the seats and launch the ranks; raise StartFailed when that fails.

        Idempotent: starting twice, from one runner or two, launches once.
        """
        if assignment.wheel is not None and not self._model_sources.allow_wheels:
            raise StartFailed(
                f"expected a job without an uploaded wheel, saw {assignment.wheel.file_name}: the "
                f"operator of these nodes does not allow them ({ALLOW_WHEELS_VARIABLE}=1 does)",
                reason=Reason.MODEL_FORBIDDEN,
            )
        try:
            seats = _take_seats(assignment)
            if not self._is_running(assignment.attempt_id, {seat.node_id for seat in seats}):
                self._agents.launch(assignment.attempt_id, self._launches(assignment, seats))
        except LaunchError as error:
            raise StartFailed(str(error)) from error
        except (RayError, GetTimeoutError, KeyError) as error:
            raise StartFailed(f"{type(error).__name__}: {error}") from error

    def release(self, attempt_id: str) -> None:
        """Make sure that nothing of the attempt is left; raise NotReleased when in doubt."""
        if not self._agents.kill(attempt_id):
            raise NotReleased(f"ranks of {attempt_id} may be alive")
        try:
            _kill_holders(attempt_id)
            _remove_group(attempt_id)
        except RayError as error:
            raise NotReleased(f"{attempt_id}: {error}") from error

    def _is_running(self, attempt_id: str, node_ids: set[str]) -> bool:
        attempts = self._agents.attempts()
        running = {node_id for node_id in node_ids if attempt_id in attempts.get(node_id, {})}
        if running and running != node_ids:
            # The other ranks would wait at another rendezvous than these.
            raise StartFailed("an earlier runner has started only some of its ranks")
        return bool(running)

    def _launches(
        self, assignment: Assignment, seats: Sequence[_Seat]
    ) -> dict[str, list[RankLaunch]]:
        """Number the ranks node by node, rank 0 where bundle 0 is."""
        address, port = self._rendezvous(seats)
        by_node: dict[str, list[RankLaunch]] = {seat.node_id: [] for seat in seats}
        for rank, seat in enumerate(_by_node(seats)):
            launch = RankLaunch(
                attempt_id=assignment.attempt_id,
                job_id=assignment.job_id,
                fence=assignment.fence,
                token=assignment.token,
                service_url=self._service_url,
                rank=rank,
                local_rank=len(by_node[seat.node_id]),
                world_size=assignment.num_workers,
                master_addr=address,
                master_port=port,
                threads=assignment.cpus_per_worker,
                gpu_ids=seat.gpu_ids,
                scratch=assignment.attempt_id,
                data_sources=self._data_sources,
                model_sources=self._model_sources,
                method=self._method,
                wheel=_wheel_of(assignment),
            )
            by_node[seat.node_id].append(launch)
        return by_node

    def _rendezvous(self, seats: Sequence[_Seat]) -> tuple[str, int]:
        first_id = seats[0].node_id
        port = self._agents.free_port(first_id)
        if all(seat.node_id == first_id for seat in seats):
            return "127.0.0.1", port
        return str(_live_nodes()[first_id]["NodeManagerAddress"]), port


def _live_nodes() -> dict[str, dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own gap
    return {node["NodeID"]: node for node in nodes if node["Alive"]}


def _all_free(node: dict[str, Any]) -> Node:
    cpus, gpus = node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)
    return Node(node_id=node["NodeID"], cpus=cpus, gpus=gpus, free_cpus=cpus, free_gpus=gpus)


def _groups() -> list[Group]:
    return [
        Group(attempt_id=row["name"].removeprefix(_GROUP_PREFIX), held=_held(row))
        for row in placement_group_table().values()
        if row["name"].startswith(_GROUP_PREFIX) and row["state"] != "REMOVED"
    ]


def bundle_of(assignment: Assignment) -> Bundle:
    """Return what one rank of the assignment holds."""
    return Bundle(cpus=assignment.cpus_per_worker, gpus=assignment.gpus_per_worker)


def _wheel_of(assignment: Assignment) -> WheelFile | None:
    if (wheel := assignment.wheel) is None:
        return None
    return WheelFile(file_name=wheel.file_name, sha256=wheel.sha256)


def _held(row: dict[str, Any]) -> tuple[Held, ...]:
    return tuple(
        Held(
            bundle=Bundle(cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0)),
            node_id=row["bundles_to_node_id"].get(index) or None,
        )
        for index, resources in row["bundles"].items()
    )


def _take_seats(assignment: Assignment) -> list[_Seat]:
    group = _get_or_create_group(assignment)
    if not group.wait(_PLACE_SECONDS):
        raise StartFailed(f"no room for {assignment.num_workers} ranks in {_PLACE_SECONDS:g} s")
    node_ids: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    gpu_ids = _hold_gpus(assignment, group) if assignment.gpus_per_worker else [()] * len(node_ids)
    return [
        _Seat(bundle_index=index, node_id=node_ids[index], gpu_ids=gpu_ids[index])
        for index in sorted(node_ids)
    ]


def _get_or_create_group(assignment: Assignment) -> PlacementGroup:
    name = _GROUP_PREFIX + assignment.attempt_id
    bundle = bundle_of(assignment)
    resources = {"CPU": bundle.cpus} | ({"GPU": bundle.gpus} if bundle.gpus else {})
    try:
        group: PlacementGroup = placement_group(
            [resources] * assignment.num_workers,
            strategy="PACK",  # on one node where they fit, else on few
            name=name,
            lifetime="detached",
        )
    except RaySystemError:
        group = get_placement_group(name)
    return group


def _hold_gpus(assignment: Assignment, group: PlacementGroup) -> list[tuple[str, ...]]:
    holders = [
        _get_or_create_holder(assignment, group, index=index)
        for index in range(assignment.num_workers)
    ]
    answers = [holder.gpu_ids.remote() for holder in holders]
    gpu_ids: list[tuple[str, ...]] = ray.get(answers, timeout=_SEAT_SECONDS)
    return gpu_ids


def _get_or_create_holder(assignment: Assignment, group: PlacementGroup, *, index: int) -> Any:
    options: dict[str, Any] = {
        "name": f"{_holder_prefix(assignment.attempt_id)}{index}",
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "num_gpus": assignment.gpus_per_worker,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=index
        ),
    }
    actor: Any = ray.remote(_GpuHolder)
    return actor.options(**options).remote()


def _by_node(seats: Sequence[_Seat]) -> list[_Seat]:
    """Order the seats node by node, nodes by their first bundle."""
    first_of = {seat.node_id: seat.bundle_index for seat in reversed(seats)}
    return sorted(seats, key=lambda seat: (first_of[seat.node_id], seat.bundle_index))


def _attempts_with_holders() -> frozenset[str]:
    names = [name for name in list_named_actors() if name.startswith(_HOLDER_PREFIX)]
    return frozenset(name.removeprefix(_HOLDER_PREFIX).partition(":")[0] for name in names)


def _holder_prefix(attempt_id: str) -> str:
    return f"{_HOLDER_PREFIX}{attempt_id}:"


def _kill_holders(attempt_id: str) -> None:
    for name in list_named_actors():
        if name.startswith(_holder_prefix(attempt_id)):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def _remove_group(attempt_id: str) -> None:
    try:
        group = get_placement_group(_GROUP_PREFIX + attempt_id)
    except ValueError:
        return
    remove_placement_group(group)
    deadline = time.monotonic() + _REMOVE_SECONDS
    while placement_group_table(group).get("state", "REMOVED") != "REMOVED":
        if time.monotonic() > deadline:
            raise NotReleased(f"the placement group of {attempt_id} is still there")
        time.sleep(_POLL_SECONDS)
    time.sleep(_SETTLE_SECONDS)
