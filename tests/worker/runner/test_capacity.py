"""The runner's account of free capacity: laws over any cluster and any load."""

from hypothesis import given
from hypothesis import strategies as st

from roadless.service.contract.reports.cluster import Node
from roadless.worker.runner.capacity import Bundle, Held, account


def node(name: str, cpus: float, gpus: float = 0) -> Node:
    return Node(node_id=name, cpus=cpus, gpus=gpus, free_cpus=cpus, free_gpus=gpus)


def held(cpus: float, node_id: str | None, gpus: float = 0) -> Held:
    return Held(bundle=Bundle(cpus=cpus, gpus=gpus), node_id=node_id)


nodes_strategy = st.lists(
    st.builds(node, st.sampled_from("abcd"), st.integers(0, 8), st.integers(0, 4)),
    unique_by=lambda item: item.node_id,
)
held_strategy = st.lists(
    st.builds(held, st.integers(0, 4), st.sampled_from(["a", "b", "c", None]), st.integers(0, 2))
)


def test_placed_bundles_are_taken_from_their_node() -> None:
    left = account([node("a", 4), node("b", 4, 2)], [held(3, "b", gpus=1)])
    assert [(item.free_cpus, item.free_gpus) for item in left] == [(4, 0), (1, 1)]


def test_bundle_on_its_way_is_taken_where_the_placed_ones_leave_room() -> None:
    left = account([node("a", 4), node("b", 4)], [held(3, None), held(2, "a")])
    assert [item.free_cpus for item in left] == [2, 1]


def test_bundle_on_an_unknown_node_or_without_room_changes_nothing() -> None:
    nodes = [node("a", 1)]
    assert account(nodes, [held(1, "gone"), held(2, None)]) == nodes


@given(nodes_strategy, held_strategy)
def test_free_is_within_bounds_and_totals_stay(nodes: list[Node], load: list[Held]) -> None:
    for before, after in zip(nodes, account(nodes, load), strict=True):
        assert (after.node_id, after.cpus, after.gpus) == (before.node_id, before.cpus, before.gpus)
        assert 0 <= after.free_cpus <= before.cpus
        assert 0 <= after.free_gpus <= before.gpus


@given(nodes_strategy, held_strategy)
def test_order_of_placed_bundles_does_not_matter(nodes: list[Node], load: list[Held]) -> None:
    placed = [item for item in load if item.node_id]
    assert account(nodes, placed) == account(nodes, placed[::-1])
