"""Where files can be: what no node could ever read is told from what some node might."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.contract.job.locations import require_possible, scheme_of

POSSIBLE = [
    *("/data/a.csv", "a.csv", "../a", "/data/a://b", " https://h/a", "s3:/b/a", "/data/[x]*.csv"),
    *("/data/" + "ü" * 127, "/data/[" + "x" * 300 + "]", "/data/**/*.csv"),
    *("https://h/a", "http://h:1/a", "https://h:65535/", "https://h:/a", "http://h/a b?c=*#d"),
    *("http://10.0.0.1/a", "http://[::1]:8080/a", "https://bücher.example/a", "http://a_b.c./a"),
    *("s3://bucket/a", "s3://bucket//a", "gs://b/run[1]/*.csv", "s3://b/a b", "s3://Old_Bucket/a"),
]
IMPOSSIBLE = [
    *[(f"http://h:{port}/a", "a port from 1 to 65535, or none") for port in ("0", "65536", "x")],
    ("s3://bucket:0/a", "a port from 1 to 65535, or none"),
    *[
        (f"https://{host}/a", "the name or address of a host")
        for host in (":80", "a..b", "x" * 64, "a b", "-a", "xn--", "[fe80::1%25eth0]", "a." * 128)
    ],
    ("https://[::1/a", "brackets around an IPv6 address alone"),
    ("https://[host]/a", "brackets around an IPv6 address alone"),
    ("s3://b[x/a", "brackets around an IPv6 address alone"),
    ("https://h/a\nb", "a URL without control characters"),
    ("https://h/*.csv", "the URL of one file, saw a pattern"),
    ("s3://bucket", "the key of an object"),
    ("s3://bucket/", "the key of an object"),
    ("gs://bucket/a/../b", "a key whose parts are names"),
    ("gs://bucket/a//b", "a key whose parts are names"),
    ("gs://bucket/./*", "a key whose parts are names"),
    ("/data/a\0b", "a null byte"),
    ("/data/" + "ü" * 128, "names have at most 255, saw 262 and 256"),
    ("/data" * 900, "at most 4095 bytes"),
]


@pytest.mark.parametrize("location", POSSIBLE)
def test_what_some_node_might_read_is_left_to_the_nodes(location):
    require_possible(location)


@pytest.mark.parametrize(("location", "expected"), IMPOSSIBLE)
def test_what_no_node_can_read_is_refused_with_what_was_expected(location, expected):
    with pytest.raises(ValueError, match="expected") as caught:
        require_possible(location)
    assert expected in str(caught.value)


@given(st.text(st.sampled_from("sh3t:p/@[]*.%0123aü \n\0"), max_size=30))
def test_whatever_is_written_gets_an_answer(text):
    """Of the libraries below, several raise errors of their own for some of these."""
    for location in (text, f"https://{text}", f"s3://{text}"):
        assert scheme_of(location) in ("", "https", "s3", *location.split("://")[:1])
        try:
            require_possible(location)
        except ValueError as error:
            assert str(error).startswith("expected ")  # noqa: PT017 - of either outcome
