"""Batch-norm statistics: exact, computed aside, and the same however the work is shared."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from roadless.optim.batchnorm import batch_statistics, combine, recalibrate, using_buffers


def batches_of(sizes: list[int], *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *shape, generator=generator) * (1 + i) + i for i, n in enumerate(sizes)]


def deep_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, momentum=None, affine=False)),
    )
    model(torch.randn(5, 2, 6, 6))
    return model


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=6),
    layer=st.sampled_from(
        [
            lambda: nn.BatchNorm1d(3),
            lambda: nn.BatchNorm1d(3, momentum=None),
            lambda: nn.BatchNorm1d(3, affine=False),
            lambda: nn.BatchNorm1d(3, momentum=0.9, eps=0.1),
        ]
    ),
)
@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_one_layer_gets_mean_and_variance_of_all_data(
    shape: tuple[int, ...], sizes: list[int], layer: Callable[[], nn.Module]
) -> None:
    batches = batches_of(sizes, *shape)
    by_channel = torch.cat(batches).double().transpose(0, 1).flatten(1)
    buffers = recalibrate(nn.Sequential(layer()), batches)
    assert list(buffers) == ["0.running_mean", "0.running_var"]
    torch.testing.assert_close(
        buffers["0.running_mean"], by_channel.mean(1), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(buffers["0.running_var"], by_channel.var(1), rtol=1e-12, atol=1e-12)


def test_one_batch_equals_what_batch_norm_itself_records() -> None:
    """With momentum 1 the layers' own buffers hold the last batch: deep layers must agree too."""
    batch = torch.randn(5, 2, 6, 6)
    buffers = recalibrate(deep_model(), [batch])
    recording = deep_model()
    recording[3].p = 0.0
    for module in recording.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    recording(batch)
    own = {name: value for name, value in recording.named_buffers() if "running" in name}
    assert list(own) == list(buffers)
    for name, value in buffers.items():
        torch.testing.assert_close(value.float(), own[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_training", [True, False])
def test_training_is_untouched(is_training: bool) -> None:
    """Parameters, buffers (the very tensors), modes, hooks and the random state stay."""
    model = deep_model().train(is_training)
    model[4].train(not is_training)
    before, modes = snapshot(model), [module.training for module in model.modules()]
    identities = [id(value) for value in model.buffers()]
    random_state = torch.get_rng_state()
    recalibrate(model, batches_of([3, 4], 2, 6, 6))
    assert same_bits(before, snapshot(model))
    assert identities == [id(value) for value in model.buffers()]
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(random_state, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_failing_batch_leaves_the_model_as_it_was() -> None:
    model = deep_model()
    before, modes = snapshot(model), [module.training for module in model.modules()]
    with pytest.raises(RuntimeError):
        recalibrate(model, [torch.randn(3, 2, 6, 6), torch.randn(3, 5, 6, 6)])
    assert same_bits(before, snapshot(model))
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_statistics_follow_the_parameters_of_the_moment() -> None:
    model, batches = deep_model(), batches_of([4], 2, 6, 6)
    before = recalibrate(model, batches)
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[0].bias.mul_(2)
    after = recalibrate(model, batches)
    torch.testing.assert_close(after["1.running_mean"], 2 * before["1.running_mean"])
    torch.testing.assert_close(after["1.running_var"], 4 * before["1.running_var"])


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_sharing_batches_among_ranks_does_not_change_a_bit(world_size: int) -> None:
    batches = batches_of([3, 5, 2, 7, 4], 2, 6, 6)
    alone = recalibrate(deep_model(), batches)
    shared = {}
    for rank in range(world_size):
        model = deep_model()
        for i in range(rank, len(batches), world_size):
            shared[i] = batch_statistics(model, batches[i])
    assert same_bits(alone, combine([shared[i] for i in range(len(batches))]))


def test_a_batch_does_not_depend_on_those_before_it() -> None:
    model, batches = deep_model(), batches_of([3, 5], 2, 6, 6)
    fresh = batch_statistics(model, batches[1])
    batch_statistics(model, batches[0])
    again = batch_statistics(model, batches[1])
    assert fresh.keys() == again.keys() == {"1", "4.1"}
    for name, moments in fresh.items():
        assert torch.equal(moments.mean, again[name].mean)
        assert torch.equal(moments.var, again[name].var)
        assert moments.mean.dtype == moments.var.dtype == moments.count.dtype == torch.float64
    assert fresh["1"].count == 5 * 4 * 4


def test_a_layer_used_twice_pools_both_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2, affine=False)

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.norm(self.norm(inputs) + 10)
            return out

    batch = torch.randn(50, 2, dtype=torch.float64)
    buffers = recalibrate(Twice().double(), [batch])
    expected = torch.stack([batch.mean(0), torch.full((2,), 10.0, dtype=torch.float64)]).mean(0)
    torch.testing.assert_close(buffers["norm.running_mean"], expected)


def test_a_batch_norm_layer_by_itself_has_names_without_prefix() -> None:
    layer = nn.BatchNorm1d(2)
    buffers = recalibrate(layer, batches_of([4], 2))
    assert list(buffers) == ["running_mean", "running_var"]
    with using_buffers(layer, buffers):
        assert torch.equal(layer.running_mean.double(), buffers["running_mean"].float().double())


def test_batches_of_any_kind_go_through_the_given_forward() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    data = batches_of([3, 4], 3)
    pairs = [(batch, "label") for batch in data]
    through = recalibrate(model, pairs, forward=lambda pair: model(pair[0]))
    assert same_bits(through, recalibrate(model, data))


def test_without_tracking_layers_nothing_is_run() -> None:
    def never(_: object) -> None:
        raise AssertionError

    for model in (
        nn.Linear(2, 2),
        nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2)),
    ):
        assert recalibrate(model, [object()], forward=never) == {}
        assert batch_statistics(model, object(), forward=never) == {}
    assert combine([{}]) == {}


def test_no_batches_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected at least one, seen none"):
        recalibrate(nn.BatchNorm1d(2), [])


def test_buffers_are_used_inside_the_block_only() -> None:
    model = deep_model().eval()
    inputs, batches = torch.randn(2, 2, 6, 6), batches_of([6, 6], 2, 6, 6)
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
