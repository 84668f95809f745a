"""Nested state survives the trip through JSON and a table of tensors, types included."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roadless.worker.checkpointing.state_tree import join, split

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.text(max_size=3) | st.integers(-5, 5)
NESTS = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)


@given(NESTS)
def test_what_is_joined_equals_what_was_split(nest):
    encoded, tensors = split(nest)
    back = join(json.loads(json.dumps(encoded)), tensors)
    assert back == nest
    assert repr(back) == repr(nest)


def test_tensors_go_into_the_table_under_their_path():
    weight = torch.ones(2)
    encoded, tensors = split({"state": {0: {"z": weight}}, "groups": [(weight, 1)]}, path="opt")
    assert list(tensors) == ["opt/state/0/z", "opt/groups/0/0"]
    back = join(json.loads(json.dumps(encoded)), tensors)
    assert back["state"][0]["z"] is weight
    assert back["groups"][0][1] == 1


def test_infinities_survive():
    encoded, tensors = split({"lr_max": float("-inf")})
    assert join(json.loads(json.dumps(encoded)), tensors) == {"lr_max": float("-inf")}


def test_what_cannot_be_written_is_named():
    with pytest.raises(TypeError, match="/a/b: expected a tensor or a plain value, saw set"):
        split({"a": {"b": {1}}})
    with pytest.raises(TypeError, match=r"as key, saw 1\.5"):
        split({1.5: 0})


def test_a_missing_tensor_is_a_key_error():
    encoded, _ = split({"z": torch.ones(1)})
    with pytest.raises(KeyError, match="/z"):
        join(encoded, {})
