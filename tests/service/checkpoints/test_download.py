"""The Range header: RFC 9110's examples, and the law that a range is a slice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.checkpoints.download import parse_range
from roadless.service.errors import RangeNotSatisfiable


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-499", (0, 500)),
        ("bytes=500-", (500, 1000)),
        ("bytes=-200", (800, 1000)),
        ("bytes=-2000", (0, 1000)),
        ("bytes=900-5000", (900, 1000)),
        ("bytes=5-2", None),
        ("bytes=0-1,5-6", None),
        ("bytes=-", None),
        ("lines=0-1", None),
    ],
)
def test_a_header_is_a_slice_or_is_ignored(header, expected):
    assert parse_range(header, 1000) == expected


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=2000-3000", "bytes=-0"])
def test_a_range_outside_the_file_is_refused(header):
    with pytest.raises(RangeNotSatisfiable, match="1000 bytes"):
        parse_range(header, 1000)


@given(st.binary(min_size=1, max_size=50), st.data())
def test_first_and_last_are_inclusive(content, data):
    first = data.draw(st.integers(0, len(content) - 1))
    last = data.draw(st.integers(first, len(content) + 5))
    start, stop = parse_range(f"bytes={first}-{last}", len(content))
    assert content[start:stop] == content[first : last + 1]
