"""Laws of buckets: nothing lost, nothing twice, extremes and ends kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.metrics.rollup import MAX_BUCKETS, rollup

X = st.one_of(st.floats(0, 1e300), st.integers(0, 50).map(float))
VALUES = st.one_of(st.floats(), st.sampled_from([np.nan, np.inf, -np.inf]))
SERIES = st.lists(st.tuples(X, VALUES), max_size=200)
BUCKETS = st.integers(1, 60)


def arrays(rows: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(rows, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@given(SERIES, BUCKETS)
def test_every_point_is_in_exactly_one_bucket_and_none_is_empty(rows, buckets):
    made = rollup(*arrays(rows), buckets=buckets)
    assert made.count.sum() == len(rows)
    assert made.count.size <= buckets
    assert np.all(made.count >= 1)
    assert np.all(np.diff(made.x) >= 0)


@given(SERIES, BUCKETS)
def test_each_bucket_sums_up_its_own_slice_of_the_points_in_order(rows, buckets):
    made = rollup(*arrays(rows), buckets=buckets)
    ordered = sorted(rows, key=lambda row: row[0])
    ends = np.cumsum(made.count)
    for i, end in enumerate(ends):
        part = ordered[end - made.count[i] : end]
        finite = [value for _, value in part if np.isfinite(value)]
        assert made.x[i] == part[-1][0]
        assert made.non_finite[i] == len(part) - len(finite)
        expected = (min(finite), max(finite), finite[-1]) if finite else (np.nan,) * 3
        np.testing.assert_array_equal((made.min[i], made.max[i], made.last[i]), expected)


@given(SERIES.filter(lambda rows: any(np.isfinite(value) for _, value in rows)), BUCKETS)
def test_extremes_and_end_of_the_series_survive(rows, buckets):
    made = rollup(*arrays(rows), buckets=buckets)
    finite = [value for _, value in rows if np.isfinite(value)]
    assert np.nanmin(made.min) == min(finite)
    assert np.nanmax(made.max) == max(finite)
    assert made.x[-1] == max(x for x, _ in rows)


@given(SERIES, BUCKETS)
def test_buckets_span_at_most_their_width(rows, buckets):
    x, values = arrays(rows)
    made = rollup(x, values, buckets=buckets)
    if x.size > buckets:
        starts = np.sort(x)[np.cumsum(made.count) - made.count]
        assert np.all(made.x - starts <= (x.max() - x.min()) / buckets * (1 + 1e-9))


def test_few_points_are_shown_one_by_one():
    made = rollup(np.array([0.0, 1.0, 1000.0]), np.array([3.0, 2.0, 1.0]), buckets=3)
    assert made.last.tolist() == [3.0, 2.0, 1.0]


def test_a_million_points_stay_within_the_bound():
    made = rollup(np.arange(1e6), np.arange(1e6), buckets=MAX_BUCKETS)
    assert made.count.tolist() == [500] * MAX_BUCKETS


@pytest.mark.parametrize("buckets", [0, MAX_BUCKETS + 1])
def test_a_number_of_buckets_out_of_range_is_our_mistake(buckets):
    with pytest.raises(AssertionError, match="expected 1 to 2000 buckets"):
        rollup(np.zeros(1), np.zeros(1), buckets=buckets)
