"""Choosing jobs: nothing is given out twice, order is kept, gangs are whole."""

from hypothesis import given
from hypothesis import strategies as st

from roadless.service.scheduling.policy import Ask, Capacity, choose, grow, seat

FREE = st.lists(st.builds(Capacity, st.integers(0, 8), st.integers(0, 4)), max_size=5)
ASKS = st.lists(
    st.builds(Ask, st.uuids().map(str), st.integers(1, 6), st.integers(1, 4), st.integers(0, 1)),
    max_size=8,
)


@given(ASKS, FREE)
def test_no_more_is_chosen_than_is_free(asks, free):
    chosen, _ = choose(asks, free)
    assert sum(ask.workers * ask.cpus for ask in chosen) <= sum(node.cpus for node in free)
    assert sum(ask.workers * ask.gpus for ask in chosen) <= sum(node.gpus for node in free)


@given(ASKS, FREE)
def test_chosen_jobs_keep_the_order_of_the_queue(asks, free):
    chosen, _ = choose(asks, free)
    assert chosen == [ask for ask in asks if ask in chosen]


@given(ASKS, FREE)
def test_what_is_left_out_does_not_fit_beside_what_was_chosen_before_it(asks, free):
    chosen, _ = choose(asks, free)
    left = free
    for ask in asks:
        if ask in chosen:
            left = seat(ask, left)
        else:
            assert seat(ask, left) is None


def test_a_gang_spreads_over_nodes_but_a_worker_does_not():
    assert seat(Ask("a", workers=2, cpus=2, gpus=0), [Capacity(3, 0), Capacity(3, 0)]) is not None
    assert seat(Ask("a", workers=1, cpus=4, gpus=0), [Capacity(3, 0), Capacity(3, 0)]) is None


def test_a_job_without_gpus_takes_none():
    assert seat(Ask("a", workers=1, cpus=1, gpus=0), [Capacity(1, 1)]) == [Capacity(0, 1)]


def test_a_small_job_fills_what_a_large_one_cannot_use():
    large, small = Ask("large", 4, 1, 0), Ask("small", 1, 1, 0)
    assert choose([large, small], [Capacity(2, 0)])[0] == [small]


# ---- elastic jobs --------------------------------------------------------------------------------

ELASTIC = st.builds(
    lambda sizes, cpus: Ask("elastic", max(sizes), cpus, 0, tuple(sorted(sizes)[-2::-1])),
    st.sets(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 3),
)


@given(ELASTIC, FREE)
def test_an_elastic_job_gets_the_largest_of_its_sizes_that_fits(ask, free):
    chosen, left = choose([ask], free)
    fitting = [one.workers for one in ask.sizes() if seat(one, free) is not None]
    assert [one.workers for one in chosen] == fitting[:1]
    held = sum(one.workers * one.cpus for one in chosen)
    assert sum(node.cpus for node in left) == sum(node.cpus for node in free) - held


def test_an_elastic_job_takes_less_when_a_job_before_it_takes_the_rest():
    first, elastic = Ask("first", 3, 1, 0), Ask("elastic", 4, 1, 0, (2, 1))
    chosen, _ = choose([first, elastic], [Capacity(4, 0), Capacity(1, 0)])
    assert [(one.job_id, one.workers) for one in chosen] == [("first", 3), ("elastic", 2)]
    assert choose([first, elastic], [Capacity(3, 0)])[0] == [first]


@given(ELASTIC, FREE, st.data())
def test_a_running_job_grows_as_far_as_it_fits_with_the_seats_that_it_has(ask, free, data):
    """Larger than before or not at all; what it would take is really free."""
    sizes = [one.workers for one in ask.sizes()]
    now = data.draw(st.sampled_from(sizes))
    size, left = grow(ask, now, free)
    assert size in sizes
    assert size >= now
    taken = sum(node.cpus for node in free) - sum(node.cpus for node in left)
    assert taken == (size - now) * ask.cpus
    larger = [n for n in sizes if n > size]
    assert all(seat(Ask("more", n - now, ask.cpus, 0), free) is None for n in larger)
