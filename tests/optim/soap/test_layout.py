"""How SOAP folds a tensor, and which dimensions it rotates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roadless.optim.soap.layout import layout_of, merged

shapes = st.lists(st.integers(1, 9), max_size=5).map(tuple)


@settings(deadline=None)
@given(shape=shapes, most=st.integers(1, 100))
def test_merging_keeps_the_outputs_and_the_number_of_elements(
    shape: tuple[int, ...], most: int
) -> None:
    found = merged(shape, max_precond_dim=most)
    assert found[:1] == shape[:1]
    assert math.prod(found) == math.prod(shape)


@settings(deadline=None)
@given(shape=shapes.filter(bool), most=st.integers(1, 100))
def test_merging_is_greedy_from_the_right(shape: tuple[int, ...], most: int) -> None:
    """Each group is a product of neighbours that could take no further one."""
    sizes = [size for size in shape[1:] if size != 1]
    for group in reversed(merged(shape, max_precond_dim=most)[1:]):
        taken = [sizes.pop()]
        while sizes and math.prod(taken) * sizes[-1] < most:
            taken.append(sizes.pop())
        assert group == math.prod(taken)
    assert not sizes


@pytest.mark.parametrize(
    ("shape", "most", "expected"),
    [
        ((128, 64, 3, 3), 2048, (128, 576)),
        ((128, 64, 3, 3), 577, (128, 576)),
        ((128, 64, 3, 3), 576, (128, 64, 9)),
        ((50, 3000, 2), 2048, (50, 3000, 2)),
        ((4, 3, 5, 7), 10, (4, 3, 5, 7)),
        ((5,), 10, (5,)),
        ((), 10, ()),
    ],
)
def test_merged_cases(shape: tuple[int, ...], most: int, expected: tuple[int, ...]) -> None:
    assert merged(shape, max_precond_dim=most) == expected


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=5).map(tuple),
    most=st.integers(1, 60),
    merge=st.booleans(),
    is_last=st.booleans(),
)
def test_unfolding_undoes_folding(
    shape: tuple[int, ...], most: int, merge: bool, is_last: bool
) -> None:
    layout = layout_of(
        shape,
        max_precond_dim=most,
        merge_dims=merge,
        precondition_1d=True,
        data_format="channels_last" if is_last else "channels_first",
    )
    tensor = torch.arange(math.prod(shape)).reshape(shape)
    assert torch.equal(layout.unfold(layout.fold(tensor)), tensor)
    assert all(1 < layout.shape[i] <= most for i in layout.rotated)


@pytest.mark.parametrize("shape", [(7,), (7, 1), (1, 7), (1, 1, 7, 1)])
def test_vectors_are_rotated_only_if_asked(shape: tuple[int, ...]) -> None:
    plain = layout_of(shape, max_precond_dim=64, merge_dims=True, precondition_1d=False)
    asked = layout_of(shape, max_precond_dim=64, merge_dims=True, precondition_1d=True)
    assert not plain.rotated
    assert [asked.shape[i] for i in asked.rotated] == [7]


def test_large_dimensions_are_not_rotated() -> None:
    layout = layout_of((65, 64), max_precond_dim=64, merge_dims=True, precondition_1d=False)
    assert layout.rotated == (1,)


def test_channels_last_are_merged_as_channels_first() -> None:
    """Row i of the folded weight is output i, its columns in the order (in, height, width)."""
    weight = torch.randn(4, 3, 2, 2)
    stored_last = weight.permute(0, 2, 3, 1)
    first = layout_of((4, 3, 2, 2), max_precond_dim=64, merge_dims=True, precondition_1d=False)
    last = layout_of(
        (4, 2, 2, 3),
        max_precond_dim=64,
        merge_dims=True,
        precondition_1d=False,
        data_format="channels_last",
    )
    assert torch.equal(first.fold(weight), last.fold(stored_last))


@pytest.mark.parametrize("shape", [(0, 3), (), (0,)])
def test_empty_tensors_and_scalars_have_no_factors(shape: tuple[int, ...]) -> None:
    layout = layout_of(shape, max_precond_dim=64, merge_dims=True, precondition_1d=True)
    assert not layout.rotated
