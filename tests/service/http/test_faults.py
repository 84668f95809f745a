"""Faults: pointers that lead somewhere, and words that stay short whatever was sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.contract.resources import ProblemError
from roadless.service.http.faults import MAX_FAULTS, pointer_of, refusal, short

PARTS = st.lists(st.text(max_size=5) | st.integers(0, 3), max_size=4)
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(PARTS, VALUES)
def test_a_pointer_leads_to_something(path, body):
    """RFC 6901: every part exists, whatever the validation called the way there."""
    for part in pointer_of(path, body, is_missing=False).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        body = body[int(key) if isinstance(body, list) else key]


@pytest.mark.parametrize(
    ("path", "body", "is_missing", "pointer"),
    [
        (["optimizer", "sgd", "lr"], {"optimizer": {"lr": -1}}, False, "/optimizer/lr"),
        (["optimizer", "sgd", "lr"], {"optimizer": {}}, True, "/optimizer/lr"),
        (["optimizer", "sgd"], {"optimizer": {"lr": -1}}, False, "/optimizer"),
        (["events", 0, "step", "loss"], {"events": [{}]}, True, "/events/0/loss"),
        (["betas", 1], {"betas": [0.9]}, True, "/betas/1"),
        (["a"], None, False, ""),
    ],
)
def test_a_member_of_a_union_is_no_part_of_the_pointer(path, body, is_missing, pointer):
    assert pointer_of(path, body, is_missing=is_missing) == pointer


class Unseen:
    """Fails whoever looks at it."""

    def __repr__(self):
        raise AssertionError("it was looked at")


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        b"x" * 10**6,
        {"x" * 10**6: {"x" * 10**6: 1}},
        [*["x" * 10] * 20, Unseen()],
        {**dict.fromkeys(map(str, range(20)), "x" * 10), "last": Unseen()},
        {"a" * 20: {"b" * 20: {"c" * 20: {"d": Unseen()}}}, "e" * 20: 1},
    ],
    ids=["text", "bytes", "long keys", "list", "object", "deep"],
)
def test_what_was_seen_is_shown_without_a_look_at_all_of_it(value):
    assert len(short(value)) == 80
    assert short(value).endswith("...")


@given(st.recursive(st.integers() | st.text(max_size=5), st.lists, max_leaves=5))
def test_what_is_short_is_shown_as_it_is(value):
    assert short(value) == repr(value) or len(repr(value)) > 40


def test_a_refusal_lists_the_first_faults_and_says_how_many_there_are():
    faults = [ProblemError(pointer=f"/{i}", message="wrong") for i in range(2 * MAX_FAULTS)]
    error = refusal(faults, num_faults=12_345)
    assert [fault.pointer for fault in error.errors] == [f"/{i}" for i in range(MAX_FAULTS)]
    assert error.detail.endswith(
        f"; 12345 faults in all, of which the first {MAX_FAULTS} are listed"
    )
