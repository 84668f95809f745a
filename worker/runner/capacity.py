"""What a cluster has and how much of it is free: the runner's own accounting, without I/O.

Ray's view of free resources lags behind its placement groups, so the runner keeps its own count.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from roadless.service.contract.reports.cluster import Node


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """What one rank holds."""

    cpus: float
    gpus: float

    def fits(self, node: Node) -> bool:
        """Whether ``node`` has this much free."""
        return self.cpus <= node.free_cpus and self.gpus <= node.free_gpus


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A bundle, and the node it is on; None while Ray has not placed it."""

    bundle: Bundle
    node_id: str | None


def account(nodes: Sequence[Node], held: Iterable[Held]) -> list[Node]:
    """Return ``nodes`` with what ``held`` leaves free, never below 0.

    Bundles without a node count against the first node with room, so that nothing is promised
    twice while a placement is pending.
    """
    left = {node.node_id: node for node in nodes}
    for item in sorted(held, key=lambda item: item.node_id is None):
        node = left.get(item.node_id) if item.node_id else _first_fit(left.values(), item.bundle)
        if node is not None:
            left[node.node_id] = _take(node, item.bundle)
    return list(left.values())


def _first_fit(nodes: Iterable[Node], bundle: Bundle) -> Node | None:
    return next((node for node in nodes if bundle.fits(node)), None)


def _take(node: Node, bundle: Bundle) -> Node:
    free_cpus = max(0.0, node.free_cpus - bundle.cpus)
    free_gpus = max(0.0, node.free_gpus - bundle.gpus)
    return node.model_copy(update={"free_cpus": free_cpus, "free_gpus": free_gpus})
