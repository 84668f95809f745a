"""Windows over tokens: what one sample holds, and what one epoch and one evaluation cover."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.contract.states import Reason
from roadless.worker.data.prepared.token_dataset import TokenString, TokenWindows
from roadless.worker.errors import DataInvalid


def string(tokens: np.ndarray, num_train: int) -> TokenString:
    return TokenString(
        tokens=tokens,
        num_train=num_train,
        vocabulary=251,
        bytes_per_token=1.5,
        fingerprint="f",
        source="corpus",
    )


def numbered(num_train: int, num_eval: int) -> TokenString:
    return string((np.arange(num_train + num_eval) % 251).astype(np.uint8), num_train)


@st.composite
def windows(draw):
    context = draw(st.integers(2, 12))
    num_train = draw(st.integers(2 * context, 2 * context + 200))
    num_eval = draw(st.integers(context + 1, context + 100))
    return (
        TokenWindows(numbered(num_train, num_eval), context=context),
        context,
        num_train,
        num_eval,
    )


@given(windows(), st.integers(0, 30))
def test_the_target_is_the_token_after_each_input(case, epoch):
    data, context, _, _ = case
    indices = epoch * data.num_train + np.arange(data.num_train)
    for batch in (data.train_batch(indices), data.eval_batch(0, data.num_eval)):
        assert batch.inputs.shape == batch.targets.shape == (len(batch.inputs), context)
        assert ((batch.inputs + 1) % 251 == batch.targets).all()


@given(windows(), st.integers(0, 30))
def test_an_epoch_predicts_no_token_twice_and_misses_less_than_two_windows(case, epoch):
    _, context, num_train, num_eval = case
    positions = np.arange(num_train + num_eval, dtype=np.uint16)
    distinct = TokenWindows(string(positions, num_train), context=context)
    batch = distinct.train_batch(epoch * distinct.num_train + np.arange(distinct.num_train))
    predicted = Counter(batch.targets.flatten().tolist())
    assert set(predicted.values()) == {1}
    assert len(predicted) > num_train - 2 * context - 1
    assert max(predicted) < num_train


@given(windows())
def test_held_out_windows_cover_the_held_out_part_but_for_a_rest(case):
    data, context, num_train, num_eval = case
    held_out = numbered(num_train, num_eval).tokens[num_train:]
    batch = data.eval_batch(0, data.num_eval)
    covered = data.num_eval * context
    assert batch.targets.flatten().tolist() == held_out[1 : covered + 1].tolist()
    assert batch.inputs.flatten().tolist() == held_out[:covered].tolist()
    assert len(held_out) - 1 - covered < context


def test_epochs_cut_at_every_offset_before_one_comes_again():
    context = 6
    data = TokenWindows(numbered(120, 7), context=context)
    firsts = [data.train_batch(np.array([e * data.num_train])).inputs[0, 0] for e in range(context)]
    assert sorted(int(first) for first in firsts) == list(range(context))


@pytest.mark.parametrize(
    ("num_train", "num_eval", "problem"), [(8, 4, "5 tokens to hold out"), (7, 5, "8 tokens to tr")]
)
def test_one_token_too_few_for_a_sample_is_refused(num_train, num_eval, problem):
    TokenWindows(numbered(8, 5), context=4)
    with pytest.raises(DataInvalid, match=f"expected corpus to have at least {problem}") as caught:
        TokenWindows(numbered(num_train, num_eval), context=4)
    assert caught.value.reason is Reason.DATA_INVALID


def test_the_description_names_the_shapes_and_the_content():
    description = TokenWindows(numbered(100, 100), context=4).description
    assert description.input_shape == (4,)
    assert description.num_classes == description.num_outputs == 251
    assert description.tokens_per_sample == 4
    assert description.fingerprint == "f"
    assert description.bytes_per_token == 1.5
