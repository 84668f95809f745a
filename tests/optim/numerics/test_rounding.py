"""Stochastic rounding: neighbours only, right on average, and a function of where it is made."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roadless.optim.numerics.rounding import (
    random_words,
    rounding_key,
    stochastically_round_into,
    stochastically_rounded,
)

NARROW = st.sampled_from([torch.bfloat16, torch.float16])
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


def neighbours(value: float, dtype: torch.dtype) -> set[float]:
    """The nearest of the dtype and those beside it, of which the value lies between two."""
    nearest = torch.tensor(value).to(dtype)
    bits = nearest.abs().view(torch.int16) + torch.tensor([-1, 0, 1], dtype=torch.int16)
    around = bits[bits >= 0].view(dtype).double() * (1 if value >= 0 else -1)
    exact = float(nearest)
    if exact == value:
        return {exact}
    other = around[(around > value) == (exact < value)]
    return {exact, *(float(v) for v in other[(other - value).abs().argsort()][:1])}


@settings(max_examples=200, deadline=None)
@given(value=FLOATS, dtype=NARROW, key=st.integers(0, 2**64 - 1))
def test_only_the_two_neighbours_occur(value: float, dtype: torch.dtype, key: int) -> None:
    rounded = stochastically_rounded(torch.full((64,), value), dtype, key=key)
    assert rounded.dtype == dtype
    if torch.tensor(value).to(dtype).isfinite():
        assert set(rounded.double().tolist()) <= neighbours(float(torch.tensor(value)), dtype)


@settings(max_examples=50, deadline=None)
@given(bits=st.integers(-(2**15), 2**15 - 1), dtype=NARROW, key=st.integers(0, 2**64 - 1))
def test_what_can_be_represented_stays(bits: int, dtype: torch.dtype, key: int) -> None:
    """Zeros with their sign, subnormals, infinities and NaN too."""
    value = torch.full((8,), bits, dtype=torch.int16).view(dtype)
    rounded = stochastically_rounded(value.float(), dtype, key=key)
    if value.isnan().any():
        assert rounded.isnan().all()
    else:
        assert torch.equal(rounded.view(torch.int16), value.view(torch.int16))


#: All payloads are too many: those at either end, and any that is drawn.
PAYLOADS = st.sampled_from([1, 2, 2**16 - 1, 2**16, 2**22, 2**23 - 2**16, 2**23 - 1])


@settings(max_examples=200, deadline=None)
@given(
    payload=PAYLOADS | st.integers(1, 2**23 - 1),
    is_negative=st.booleans(),
    dtype=NARROW,
    key=st.integers(0, 2**64 - 1),
    num=st.integers(1, 40),
)
def test_not_a_number_stays_one_whatever_its_payload(
    payload: int, is_negative: bool, dtype: torch.dtype, key: int, num: int
) -> None:
    """A payload may be all in the bits that are dropped, or one that a carry runs through."""
    pattern = 0x7F800000 + payload - is_negative * 2**31
    values = torch.full((num,), pattern, dtype=torch.int32).view(torch.float32)
    assert stochastically_rounded(values, dtype, key=key).isnan().all()
    index = torch.arange(num)
    assert stochastically_rounded(values, dtype, key=key, index=index).isnan().all()


def test_every_payload_of_a_float32_stays_not_a_number() -> None:
    """All 2²⁴ - 2 patterns, by the words of one key, and by none that rounds up."""
    for sign in (0, -(2**31)):
        values = (torch.arange(1, 2**23, dtype=torch.int32) + 0x7F800000 + sign).view(torch.float32)
        for dtype in (torch.bfloat16, torch.float16):
            assert stochastically_rounded(values, dtype, key=3).isnan().all()


def test_a_split_changes_no_bit_of_what_is_not_a_number() -> None:
    """torch's own conversion gives other patterns at the end of a tensor than before."""
    values = torch.full((41,), float("nan"))
    whole = stochastically_rounded(values, torch.bfloat16, key=1).view(torch.int16)
    assert whole.unique().numel() == 1
    assert torch.equal(
        stochastically_rounded(values[:3], torch.bfloat16, key=1).view(torch.int16), whole[:3]
    )


def test_values_above_the_largest_become_it_or_infinite() -> None:
    values = torch.tensor([65519.0, -65519.0, 65520.0, torch.inf, 1e30])
    rounded = stochastically_rounded(values, torch.float16, key=3)
    assert rounded.tolist() == [65504.0, -65504.0, torch.inf, torch.inf, torch.inf]
    largest = torch.finfo(torch.bfloat16).max
    above = torch.full((64,), torch.finfo(torch.float32).max)
    assert set(stochastically_rounded(above, torch.bfloat16, key=3).tolist()) <= {
        largest,
        torch.inf,
    }


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**63), dtype=NARROW)
def test_the_mean_is_the_value(seed: int, dtype: torch.dtype) -> None:
    """Within 6 standard errors, of values everywhere between two neighbours."""
    share = torch.linspace(0.01, 0.99, 99).view(-1, 1)
    gap = torch.finfo(dtype).eps
    values = -(1 + gap * share).expand(-1, 4096)
    index = torch.arange(values.numel()).view(values.shape)
    key = rounding_key(seed=seed, step=1, parameter=0)
    rounded = stochastically_rounded(values, dtype, key=key, index=index).double()
    error = (rounded.mean(1) - values[:, 0].double()) / gap
    assert bool((error.abs() < 6 * (share * (1 - share) / 4096).sqrt().view(-1)).all())


@given(cut=st.integers(0, 50), key=st.integers(0, 2**64 - 1), dtype=NARROW)
def test_any_split_rounds_the_same_way(cut: int, key: int, dtype: torch.dtype) -> None:
    """Given the index of the first element, or that of each."""
    values = torch.randn(50, generator=torch.Generator().manual_seed(1))
    whole = stochastically_rounded(values, dtype, key=key)
    first = stochastically_rounded(values[:cut], dtype, key=key)
    for index in (cut, torch.arange(cut, 50)):
        second = stochastically_rounded(values[cut:], dtype, key=key, index=index)
        assert torch.equal(whole, torch.cat([first, second]))


def test_blocks_and_gaps_in_memory_round_the_same_way() -> None:
    """A large tensor goes in blocks, a transposed one whole: the element's index decides."""
    values = torch.randn(300, 401)
    whole = stochastically_rounded(values, torch.bfloat16, key=5)
    in_blocks = torch.empty(300, 401, dtype=torch.bfloat16)
    transposed = torch.empty(401, 300, dtype=torch.bfloat16).T
    for parameter in (in_blocks, transposed):
        stochastically_round_into(parameter, values, key=5)
        assert torch.equal(parameter, whole)


def test_seed_step_parameter_and_element_all_matter() -> None:
    keys = {
        rounding_key(seed=seed, step=step, parameter=parameter)
        for seed in range(-2, 8)
        for step in range(1, 11)
        for parameter in range(10)
    }
    assert len(keys) == 1000
    words = torch.stack([random_words(key, torch.arange(1000)) for key in sorted(keys)])
    assert words.unique().numel() == words.numel()


def test_words_are_those_of_splitmix64() -> None:
    """The first outputs for seed 1234567 as published with the algorithm's reference code."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert unsigned(random_words(1234567, torch.arange(3))) == published


def test_bits_of_neighbouring_words_are_independent() -> None:
    """Each bit flips between neighbours in half of the cases: elements, steps and parameters."""
    index = torch.arange(20_000)
    base = rounding_key(seed=0, step=1, parameter=0)
    words = random_words(base, index)
    for other in (
        random_words(base, index + 1),
        random_words(rounding_key(seed=0, step=2, parameter=0), index),
        random_words(rounding_key(seed=0, step=1, parameter=1), index),
    ):
        flips = words ^ other
        share = torch.stack([(flips >> bit & 1).double().mean() for bit in range(64)])
        assert bool(((share - 0.5).abs() < 5 * 0.5 / 20_000**0.5).all())


def unsigned(words: Tensor) -> list[int]:
    return [word & 2**64 - 1 for word in words.tolist()]
