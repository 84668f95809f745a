"""Batch-norm statistics: exact, computed aside, and the same however the work is shared."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from roadless.optim.batchnorm import (
    Moments,
    batch_statistics,
    blank_statistics,
    combine,
    packed,
    recalibrate,
    unpacked,
)
from roadless.optim.buffers import using_buffers


def batches_of(sizes: list[int], *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *shape, generator=generator) * (1 + i) + i for i, n in enumerate(sizes)]


def instance_norm(**settings: Any) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(2, track_running_stats=True, **settings)


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


# What is frozen stays as it is.


def partly_frozen(frozen: nn.Module) -> nn.Sequential:
    """A norm layer with statistics of its own, in evaluation before one that trains."""
    torch.manual_seed(0)
    model = nn.Sequential(frozen, nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    frozen.running_mean.fill_(2.0)
    frozen.running_var.fill_(9.0)
    model.train()
    frozen.eval()
    return model


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.BatchNorm2d(2),
        lambda: nn.BatchNorm2d(2, momentum=None, affine=False),
        lambda: nn.SyncBatchNorm(2),
        lambda: nn.InstanceNorm2d(2, track_running_stats=True),
    ],
)
def test_a_frozen_layer_keeps_its_statistics_and_those_behind_it_see_them(
    layer: Callable[[], nn.Module],
) -> None:
    batches = batches_of([3, 5], 2, 6, 6)
    buffers = recalibrate(partly_frozen(layer()), batches)
    alone = nn.Sequential(*partly_frozen(layer()))
    inputs = [alone[1]((batch - 2) / (9 + alone[0].eps) ** 0.5) for batch in batches]
    values = torch.cat(inputs).transpose(0, 1).flatten(1)
    assert list(buffers) == ["2.running_mean", "2.running_var"]
    torch.testing.assert_close(buffers["2.running_mean"].float(), values.mean(1))
    torch.testing.assert_close(buffers["2.running_var"].float(), values.var(1))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(2, momentum=0.0), instance_norm(momentum=None)])
def test_statistics_without_momentum_do_not_change_in_training_and_so_not_here(
    layer: nn.Module,
) -> None:
    model, batches = nn.Sequential(layer, nn.BatchNorm2d(2)), batches_of([3, 5], 2, 6, 6)
    assert list(recalibrate(model, batches)) == ["1.running_mean", "1.running_var"]
    model(batches[0])
    assert not layer.running_mean.any()


def test_a_model_in_evaluation_as_a_whole_is_taken_to_train_as_a_whole() -> None:
    model, batches = deep_model(), batches_of([3, 5], 2, 6, 6)
    trained = recalibrate(model.train(), batches)
    assert same_bits(recalibrate(model.eval(), batches), trained)


def test_a_frozen_model_behind_a_head_that_trains_costs_nothing() -> None:
    model = nn.Sequential(deep_model().eval(), nn.LayerNorm(2))
    assert recalibrate(model, []) == {}


# Instance norm.


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_gets_the_mean_over_instances(affine: bool) -> None:
    batches = batches_of([3, 1, 5], 2, 6, 4)
    model = nn.Sequential(instance_norm(affine=affine))
    per_instance = torch.cat(batches).double().flatten(2)
    buffers = recalibrate(model, batches)
    torch.testing.assert_close(buffers["0.running_mean"], per_instance.mean(2).mean(0))
    torch.testing.assert_close(buffers["0.running_var"], per_instance.var(2).mean(0))


def test_one_batch_equals_what_instance_norm_itself_records() -> None:
    batch = batches_of([5], 2, 6, 6)[0]
    recording = nn.Sequential(nn.Conv2d(2, 2, 3), instance_norm(momentum=1.0))
    buffers = recalibrate(recording, [batch])
    assert not recording[1].running_mean.any()
    recording(batch)
    for name, value in buffers.items():
        torch.testing.assert_close(value.float(), recording.get_buffer(name))


def test_an_instance_without_a_batch_dimension_is_one_instance() -> None:
    layer, inputs = instance_norm(), torch.randn(2, 6, 6)
    with_dimension = recalibrate(layer, [inputs.unsqueeze(0)])
    assert same_bits(recalibrate(layer, [inputs]), with_dimension)


def test_instance_norm_without_statistics_is_left_alone() -> None:
    assert recalibrate(nn.Sequential(nn.InstanceNorm2d(2), nn.GroupNorm(1, 2)), []) == {}


# Other forms of batch norm.


def test_a_synchronised_layer_asks_nobody() -> None:
    batches = batches_of([3, 5], 2, 6, 6)
    alone = recalibrate(nn.Sequential(nn.BatchNorm2d(2)), batches)
    assert same_bits(recalibrate(nn.Sequential(nn.SyncBatchNorm(2)), batches), alone)


def test_a_lazy_layer_is_refused_by_name_until_it_knows_its_channels() -> None:
    model, batches = nn.Sequential(nn.Identity(), nn.LazyBatchNorm2d()), batches_of([3], 2, 6, 6)
    with pytest.raises(ValueError, match="seen the lazy '1', which has seen no batch"):
        recalibrate(model, batches)
    model(batches[0])
    assert list(recalibrate(model, batches)) == ["1.running_mean", "1.running_var"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_is_refused_unless_it_has_no_buffers() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm1d(3)))
    for model, name in ((scripted, "a model"), (nn.Sequential(scripted, nn.Linear(3, 3)), "0")):
        for call in (recalibrate, batch_statistics):
            with pytest.raises(ValueError, match=f"seen '{name}' made by torch.jit"):
                call(model, batches_of([4], 3))
    assert recalibrate(torch.jit.script(nn.Linear(3, 3)), []) == {}


def test_inputs_may_be_given_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.norm(input=inputs)
            return out

    batches = batches_of([3, 4], 2, 6, 6)
    plain = recalibrate(nn.Sequential(nn.BatchNorm2d(2)), batches)
    assert next(iter(recalibrate(Named(), batches).values())).equal(plain["0.running_mean"])


def test_a_single_value_has_no_variance() -> None:
    """torch refuses it as a batch; in all, it would be 0 / 0."""
    one = Moments.of(torch.ones(1, 2))
    with pytest.raises(ValueError, match="expected more than one value in each channel, seen one"):
        combine([{"norm": one}])
    assert combine([{"norm": one}, {"norm": one}])["norm.running_var"].tolist() == [0, 0]


# Other buffers that training changes.


class Centred(nn.Module):
    """A normaliser of one's own: a running mean, how often it was updated, and a table."""

    def __init__(self, momentum: float = 0.5) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("num_updates", torch.tensor(0))
        self.register_buffer("table", torch.ones(3))
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.cache = inputs.detach().clone()
        if self.training:
            self.mean.lerp_(inputs.mean(0), self.momentum)
            self.num_updates = self.num_updates + 1
        return (inputs - self.mean) * self.table


def test_a_buffer_of_ones_own_is_what_training_passes_make_of_it() -> None:
    """From its present value, in the order of batches, with dropout as in training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), Centred(), nn.BatchNorm1d(3))
    batches, random_state = batches_of([4, 6, 5], 3), torch.get_rng_state()
    before, identities = snapshot(model), [id(value) for value in model.buffers()]
    buffers = recalibrate(model, batches)
    assert same_bits(before, snapshot(model))
    assert identities == [id(value) for value in model.buffers()]
    assert torch.equal(random_state, torch.get_rng_state())
    names = {"2.mean", "2.num_updates", "3.running_mean", "3.running_var"}
    assert buffers.keys() == names
    torch.random.set_rng_state(random_state)
    expected = model[2].mean.clone()
    for batch in batches:
        torch.random.set_rng_state(random_state)
        expected.lerp_(model[1](model[0](batch)).mean(0), 0.5)
    assert torch.equal(buffers["2.mean"], expected)
    assert buffers["2.num_updates"] == 3
    with using_buffers(model.eval(), buffers):
        assert torch.equal(model[2].mean, expected)


@pytest.mark.parametrize(
    "normed", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm]
)
def test_the_vectors_of_spectral_norm_become_those_of_the_weights(
    normed: Callable[[nn.Module], nn.Module],
) -> None:
    """After a change of weights, as from y to x, the largest singular value is 1 again."""
    torch.manual_seed(0)
    model = nn.Sequential(normed(nn.Linear(3, 4)))
    batches = batches_of([2] * 40, 3)
    trained = [p for name, p in model.named_parameters() if "orig" in name]
    with torch.no_grad():
        trained[0].copy_(torch.randn(4, 3))
    model(batches[0])
    with using_buffers(model, recalibrate(model, batches)):
        model.eval()(batches[0])
        assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(1, abs=1e-4)


def test_frozen_buffers_and_those_that_nothing_changes_are_left_out() -> None:
    model = nn.Sequential(Centred().eval(), nn.BatchNorm1d(3))
    assert list(recalibrate(model, batches_of([4], 3))) == ["1.running_mean", "1.running_var"]
    assert recalibrate(Centred(momentum=0.0), batches_of([4], 3)).keys() == {"num_updates"}


def test_tied_buffers_stay_tied() -> None:
    model = nn.Sequential(Centred(), Centred())
    model[1].mean = model[0].mean
    buffers = recalibrate(model, batches_of([4], 3))
    assert torch.equal(buffers["0.mean"], model[0].mean + buffers["0.mean"])
    assert model[1].mean is model[0].mean


class WantsTargets(Centred):
    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            raise TypeError("targets")
        return super().forward(inputs)


class Grows(Centred):
    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean = torch.cat([self.mean, self.mean])
        return inputs


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            WantsTargets(),
            "what 0.mean, 0.num_updates, 0.table would be .* seen one that fails: Typ",
        ),
        (Grows(), "what 0.mean would be .* seen another shape"),
    ],
    ids=["a pass that fails", "another shape"],
)
def test_buffers_whose_values_cannot_be_found_are_warned_of_by_name(
    layer: nn.Module, message: str
) -> None:
    model = nn.Sequential(layer, nn.BatchNorm1d(3))
    before = snapshot(model)
    with pytest.warns(UserWarning, match=message):
        buffers = recalibrate(model, batches_of([4], 3))
    assert list(buffers) == ["1.running_mean", "1.running_var"]
    assert same_bits(before, snapshot(model))


# Statistics that processes send to each other.


def test_statistics_go_through_a_row_of_numbers_and_back() -> None:
    """A layer that the batch does not reach is not there afterwards either."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.BatchNorm2d(2), instance_norm(), nn.BatchNorm2d(2)])

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.norms[1](self.norms[0](inputs))
            return self.norms[2](out) if self.training else out

    model, batch = Auxiliary(), batches_of([3], 2, 6, 6)[0]
    found, blank = batch_statistics(model, batch), blank_statistics(model)
    row = packed(found, like=blank)
    assert len(row) == 3 * (1 + 2 + 2)
    again = unpacked(row, like=blank)
    assert list(again) == list(found) == ["norms.0", "norms.1"]
    assert same_bits(combine([again]), combine([found]))


def test_ranks_that_send_rows_get_the_bits_of_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, 3), instance_norm(), nn.BatchNorm2d(2))
    batches, blank = batches_of([3, 5, 2], 2, 6, 6), blank_statistics(model)
    rows = [packed(batch_statistics(model, batch), like=blank) for batch in batches]
    sent = combine([unpacked(row, like=blank) for row in rows])
    assert same_bits(sent, recalibrate(model, batches))
