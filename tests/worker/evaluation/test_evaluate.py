"""Evaluation: one number at any world size, which training does not notice."""

import math

import numpy as np
import pytest
import torch
from ranks_in_turn import over_ranks
from torch import nn

from roadless.optim import using_buffers
from roadless.service.contract.job.evaluation import EvaluationSpec
from roadless.service.contract.job.models import ConvnetPreset, GptPreset
from roadless.service.contract.job.spec import JobSpec
from roadless.worker.data.base import UNCOUNTED, Batch, Description
from roadless.worker.data.builtin.digits import Digits
from roadless.worker.data.prepared.token_dataset import TokenString, TokenWindows
from roadless.worker.data.sampler import global_indices, reserved_seed
from roadless.worker.errors import DataInvalid, ModelInvalid
from roadless.worker.evaluation.evaluate import evaluate, recalibrated_buffers, reevaluate
from roadless.worker.evaluation.sets import Datasets
from roadless.worker.evaluation.task import (
    example_scores,
    num_counted,
    score_names,
    training_loss,
)
from roadless.worker.model.convnet import Convnet
from roadless.worker.model.gpt import Gpt

DIGITS = Digits()
SPEC = EvaluationSpec(batch_size=50, batchnorm_batches=5)


TOKENS = score_names("causal_lm", num_classes=256)


def windows(content: np.ndarray, *, kind: type[TokenWindows] = TokenWindows) -> TokenWindows:
    """Bytes in windows of 8; the last 5 % are held out."""
    string = TokenString(
        tokens=content,
        num_train=len(content) - len(content) // 20,
        vocabulary=256,
        bytes_per_token=1.0,
        fingerprint="",
        source="test",
    )
    return kind(string, context=8)


def alone(values: torch.Tensor) -> torch.Tensor:
    return values


def convnet() -> Convnet:
    torch.manual_seed(0)
    model = Convnet(ConvnetPreset(kind="preset", name="convnet", width=4), data=DIGITS.description)
    with torch.no_grad():
        model(torch.randn(64, 1, 8, 8))  # running statistics that differ from the initial ones
    return model


def score(model, *, data=DIGITS, task="classification", spec=SPEC, rank=0, world_size=1, **options):
    gather = options.get("gather", alone)
    return evaluate(
        model, data=data, task=task, spec=spec, rank=rank, world_size=world_size, gather=gather
    )


def recalibrate(model, *, spec=SPEC, seed=1, rank=0, world_size=1, gather=alone):
    return recalibrated_buffers(
        model, data=DIGITS, spec=spec, seed=seed, rank=rank, world_size=world_size, gather=gather
    )


@pytest.mark.parametrize("world_size", [2, 3, 11])
def test_any_world_size_finds_the_same_bits(world_size):
    """11 ranks for 8 batches: some ranks have nothing to do."""
    model = convnet()
    shared = over_ranks(lambda **ranks: score(model, **ranks), world_size)
    assert shared == score(model)


def test_loss_and_accuracy_are_means_over_the_held_out_examples():
    model = convnet().eval()
    with torch.no_grad():
        whole = DIGITS.eval_batch(0, DIGITS.num_eval)
        logits = model(whole.inputs)
        loss = nn.functional.cross_entropy(logits, whole.targets).item()
    result = score(model)
    assert result.num_examples == 359
    assert result.loss == pytest.approx(loss, rel=1e-6)
    hits = (logits.argmax(1) == whole.targets).double().mean().item()
    top5 = (logits.topk(5).indices == whole.targets[:, None]).any(dim=1).double().mean().item()
    assert result.metrics == {
        "eval.accuracy": pytest.approx(hits),
        "eval.top5_accuracy": pytest.approx(top5),
    }


def test_a_language_model_is_scored_in_nats_per_token_and_bits_per_byte():
    content = np.random.default_rng(0).integers(0, 256, 2000).astype(np.uint8)
    data = windows(content)
    model = Gpt(GptPreset(kind="preset", name="gpt", context=8), data=data.description)
    result = score(model, data=data, task="causal_lm")
    whole = data.eval_batch(0, data.num_eval)
    loss = training_loss(
        model(whole.inputs),
        whole.targets,
        task="causal_lm",
        count=num_counted(whole, task="causal_lm"),
    ).item()
    assert result.num_examples == 12
    assert result.loss == pytest.approx(loss, rel=1e-6)
    assert result.metrics["eval.bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-6)


def test_the_tokens_of_a_window_are_added_up_in_float64():
    logits, targets = torch.randn(1, 333, 7), torch.randint(0, 7, (1, 333))
    losses = nn.functional.cross_entropy(logits[0], targets[0], reduction="none")
    count, loss, _ = (float(row) for row in example_scores(logits, targets, names=TOKENS)[:, 0])
    assert count == 333
    assert loss == pytest.approx(math.fsum(losses.tolist()), rel=1e-14)


class Masked(TokenWindows):
    """Windows of which some have few counted tokens, and one has none."""

    def eval_batch(self, start: int, stop: int) -> Batch:
        batch = super().eval_batch(start, stop)
        targets = batch.targets.clone()
        for row, example in enumerate(range(start, start + len(targets))):
            targets[row, : example % 9] = UNCOUNTED
        return Batch(batch.inputs, targets)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_masked_tokens_count_nowhere_and_every_other_once(world_size):
    """The mean over tokens, not over windows, at any world size: that of a plain loop."""
    content = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)
    data = windows(content, kind=Masked)
    model = Gpt(GptPreset(kind="preset", name="gpt", context=8), data=data.description)
    nn.init.normal_(model.embedding.weight)
    spec = EvaluationSpec(batch_size=4)

    def evaluated(**ranks):
        return score(model, data=data, task="causal_lm", spec=spec, **ranks)

    losses = []
    for example in range(data.num_eval):
        batch = data.eval_batch(example, example + 1)
        with torch.no_grad():
            logs = model(batch.inputs)[0].log_softmax(dim=-1)
        for token, target in enumerate(batch.targets[0].tolist()):
            if target != UNCOUNTED:
                losses.append(-logs[token, target].item())
    result = over_ranks(evaluated, world_size)
    assert len(losses) < 8 * data.num_eval
    assert result.loss == pytest.approx(math.fsum(losses) / len(losses), rel=1e-6)
    assert result == evaluated()


def test_held_out_data_without_a_counted_target_is_invalid():
    class Unscored(Digits):
        def eval_batch(self, start, stop):
            batch = super().eval_batch(start, stop)
            return Batch(batch.inputs, torch.full_like(batch.targets, UNCOUNTED))

    with pytest.raises(DataInvalid, match="expected targets to score in 359 held-out samples"):
        score(convnet(), data=Unscored())


def test_max_batches_bounds_the_examples_in_data_set_order():
    model = convnet()
    first = score(model, spec=EvaluationSpec(batch_size=50, max_batches=2))
    assert first.num_examples == 100
    whole = DIGITS.eval_batch(0, 100)
    with torch.no_grad():
        outputs = model.eval()(whole.inputs)
        expected = training_loss(
            outputs, whole.targets, task="classification", count=len(whole.targets)
        ).item()
    assert first.loss == pytest.approx(expected, rel=1e-6)
    assert score(model, spec=EvaluationSpec(batch_size=50, max_batches=99)) == score(model)


class Listed:
    """Held-out examples whose loss is known: the model's logits are the inputs."""

    description = Description((2,), 2, 0, "")
    num_train = 1

    def __init__(self, logits: list[float]) -> None:
        self._logits = torch.tensor(logits, dtype=torch.float64)
        self.num_eval = len(logits)

    def train_batch(self, indices) -> Batch:
        raise NotImplementedError

    def eval_batch(self, start: int, stop: int) -> Batch:
        column = self._logits[start:stop, None]
        inputs = torch.cat([torch.zeros_like(column), column], dim=1)
        return Batch(inputs, torch.zeros(len(column), dtype=torch.int64))


class Echo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


def test_losses_are_summed_from_left_to_right_in_float64():
    """A sum in another order, or one that carries more digits, has other last bits."""
    data = Listed([1e16, *[1.0] * 999])
    losses = [float(example_scores(*_pair(data, i), names=TOKENS)[1]) for i in range(1000)]
    expected = 0.0
    for loss in losses:
        expected += loss
    assert expected != math.fsum(losses)
    assert score(Echo(), data=data).loss == expected / 1000


def _pair(data: Listed, i: int):
    batch = data.eval_batch(i, i + 1)
    return batch.inputs, batch.targets


def test_training_does_not_notice_an_evaluation():
    """No random numbers drawn, no gradient, and every module in the mode that it had."""
    model = convnet()
    model.head.eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    score(model)
    recalibrate(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(buffers[name], value) for name, value in model.state_dict().items())


def test_modes_come_back_when_the_model_fails():
    model = convnet()
    with pytest.raises(ModelInvalid), using_buffers(model, {}):
        score(model, data=windows(np.zeros(2000, np.uint8)))
    assert all(module.training for module in model.modules())


def test_batch_norm_is_evaluated_by_its_running_statistics():
    """The score of an example does not depend on its neighbours in the batch."""
    model = convnet()
    small, large = (score(model, spec=EvaluationSpec(batch_size=size)) for size in (2, 359))
    assert small.loss == pytest.approx(large.loss, rel=1e-6)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_recalibrated_statistics_have_the_same_bits_at_any_world_size(world_size):
    model = convnet()
    shared = over_ranks(lambda **ranks: recalibrate(model, **ranks), world_size)
    single = recalibrate(model)
    assert shared.keys() == single.keys()
    assert all(torch.equal(shared[name], single[name]) for name in single)


def normed_model() -> nn.Sequential:
    """A layer of each kind of norm with statistics, and one more for training alone."""

    class Skipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.norm(inputs) if self.training else inputs
            return outputs

    torch.manual_seed(0)
    model = nn.Sequential(
        Skipped(),
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 3, 3),
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.SyncBatchNorm(3),
        nn.BatchNorm2d(3, momentum=0.0),
        nn.Flatten(),
        nn.LazyLinear(10),
    )
    model[1].eval()
    model(DIGITS.train_batch(np.arange(2)).inputs)
    return model


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_kind_of_norm_layer_that_trains_gets_the_same_bits_at_any_world_size(world_size):
    """Frozen layers keep theirs, and one that no evaluation reaches has none to send."""
    model = normed_model()
    shared = over_ranks(lambda **ranks: recalibrate(model, **ranks), world_size)
    single = recalibrate(model)
    assert list(shared) == list(single)
    assert {name.partition(".")[0] for name in single} == {"3", "4"}
    assert all(torch.equal(shared[name], single[name]) for name in single)


def test_recalibrated_statistics_are_those_of_the_training_images():
    """One batch of all images: the first layer's mean and variance, computed here directly."""
    model = convnet()
    spec = EvaluationSpec(batch_size=10_000, batchnorm_batches=1)
    buffers = recalibrate(model, spec=spec)
    images = DIGITS.train_batch(np.arange(DIGITS.num_train)).inputs
    with torch.no_grad():
        seen = model.features[0][0](images).double()
    assert {name for name in model.state_dict() if "running" in name} == set(buffers)
    mean, var = buffers["features.0.1.running_mean"], buffers["features.0.1.running_var"]
    torch.testing.assert_close(mean, seen.mean((0, 2, 3)), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(var, seen.var((0, 2, 3)), rtol=1e-6, atol=1e-9)


def test_recalibration_reads_the_batches_of_its_seed():
    model = convnet()
    first, again, other = (recalibrate(model, seed=seed) for seed in (1, 1, 2))
    name = "features.0.1.running_mean"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_recalibration_reads_batches_that_training_does_not():
    class Recorder(Digits):
        def train_batch(self, indices):
            seen.append(tuple(indices))
            return super().train_batch(indices)

    seen: list[tuple[int, ...]] = []
    recalibrated_buffers(
        convnet(), data=Recorder(), spec=SPEC, seed=1, rank=0, world_size=1, gather=alone
    )
    sizes = {"batch_size": 50, "num_train": DIGITS.num_train}
    assert [len(set(numbers)) for numbers in seen] == [50] * 5
    assert seen == [tuple(global_indices(i, seed=reserved_seed(1), **sizes)) for i in range(5)]
    assert seen[0] != tuple(global_indices(0, seed=1, **sizes))


def test_a_model_without_batch_norm_exchanges_nothing():
    def refuse(values: torch.Tensor) -> torch.Tensor:
        raise AssertionError("expected no exchange")

    assert recalibrate(nn.Linear(2, 2), gather=refuse) == {}


def test_a_stranger_finds_the_same_result_from_the_job_spec():
    spec = JobSpec.model_validate(
        {
            "model": {"kind": "preset", "name": "convnet", "width": 4},
            "data": {"kind": "builtin", "name": "digits"},
            "task": "classification",
            "optimizer": {"name": "sgd_schedulefree"},
            "evaluation": {"batch_size": 50, "max_batches": 3},
        }
    )
    model = convnet()
    expected = over_ranks(lambda **ranks: score(model, spec=spec.evaluation, **ranks), 2)
    assert reevaluate(model, datasets=Datasets.of(DIGITS), spec=spec) == expected
