"""Buffers set for a while: a model has its own back, whatever happened in between."""

import pytest
import torch
from torch import Tensor, nn

from roadless.optim.batchnorm import recalibrate
from roadless.optim.buffers import using_buffers


def model_of_two() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)
    )
    model(torch.randn(5, 2, 6, 6))
    return model


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_buffers_are_used_inside_the_block_only() -> None:
    model = model_of_two().eval()
    inputs, batches = torch.randn(2, 2, 6, 6), [torch.randn(6, 2, 6, 6)]
    buffers = recalibrate(model, batches)
    before, identities = snapshot(model), [id(value) for value in model.buffers()]
    plain = model(inputs)
    with using_buffers(model, buffers):
        inside = snapshot(model)
        assert not torch.equal(model(inputs), plain)
    assert all(torch.equal(inside[name], buffers[name].float()) for name in buffers)
    assert inside["1.running_mean"].dtype == torch.float32
    assert torch.equal(inside["1.num_batches_tracked"], before["1.num_batches_tracked"])
    assert same_bits(before, snapshot(model))
    assert identities == [id(value) for value in model.buffers()]
    assert torch.equal(model(inputs), plain)


def test_an_exception_and_a_change_inside_the_block_leave_no_trace() -> None:
    model = nn.BatchNorm1d(2)
    buffers = {"running_mean": torch.full((2,), 3.0)}
    before = snapshot(model)

    def spoil_and_fail() -> None:
        with using_buffers(model, buffers):
            model.running_mean.fill_(torch.nan)
            raise KeyError

    with pytest.raises(KeyError):
        spoil_and_fail()
    assert same_bits(before, snapshot(model))
    assert torch.equal(buffers["running_mean"], torch.full((2,), 3.0))


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ({"running_men": torch.zeros(2)}, "seen 'running_men'"),
        ({"nowhere.running_mean": torch.zeros(2)}, "seen 'nowhere.running_mean'"),
        ({"weight": torch.zeros(2)}, "seen 'weight'"),
        ({"running_mean": torch.zeros(3)}, r"expected shape \(2,\), seen \(3,\)"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(buffers: dict[str, Tensor], message: str) -> None:
    model = nn.BatchNorm1d(2)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message), using_buffers(model, buffers):
        pass
    assert same_bits(before, snapshot(model))
