"""Packing loses nothing, and merging sorts by step without reordering equals."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.metrics import chunks
from roadless.service.metrics.chunks import Points

STEPS = st.integers(0, 2**63 - 1)
SERIES = st.lists(st.tuples(STEPS, st.floats(allow_nan=True, allow_infinity=True)), max_size=40)


def columns(rows: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in rows], [value for _, value in rows]


def bits(part: Points) -> list[tuple[int, bytes]]:
    return [(int(s), struct.pack("<d", v)) for s, v in zip(part.steps, part.values, strict=True)]


def test_layout_is_little_endian_steps_then_values():
    assert chunks.pack([1, 2], [0.5, -1.0]) == struct.pack("<qqdd", 1, 2, 0.5, -1.0)


@given(SERIES)
def test_unpack_returns_what_was_packed_bit_for_bit(rows):
    steps, values = columns(rows)
    found = chunks.unpack(chunks.pack(steps, values))
    assert bits(found) == [(s, struct.pack("<d", v)) for s, v in rows]


@given(st.lists(SERIES, max_size=5))
def test_merge_is_a_stable_sort_of_all_points(parts):
    merged = chunks.merge([chunks.points(*columns(rows)) for rows in parts])
    expected = sorted((row for rows in parts for row in rows), key=lambda row: row[0])
    assert bits(merged) == [(s, struct.pack("<d", v)) for s, v in expected]


@given(
    st.lists(st.integers(0, 50), unique=True, max_size=30).map(sorted),
    st.floats(-5, 60),
    st.floats(-5, 60),
)
def test_select_keeps_both_ends(steps, first, last):
    found = chunks.select(chunks.points(steps, [0.0] * len(steps)), first=first, last=last)
    assert found.steps.tolist() == [step for step in steps if first <= step <= last]


def test_a_blob_cut_short_is_refused():
    with pytest.raises(ValueError, match="multiple of 16 bytes, saw 15"):
        chunks.unpack(chunks.pack([1], [1.0])[:-1])


def test_more_steps_than_values_are_refused():
    with pytest.raises(ValueError, match="as many values as steps, saw 1 for 2"):
        chunks.pack([1, 2], np.array([1.0]))
