"""Losses and scores: each task against the plain formula, masked targets left out everywhere."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from roadless.worker.data.base import UNCOUNTED, Batch
from roadless.worker.evaluation.task import (
    example_scores,
    metrics,
    num_counted,
    score_names,
    training_loss,
)

CLASSIFICATION = score_names("classification", num_classes=10)


def masked(targets: torch.Tensor, *, share: float = 0.5) -> torch.Tensor:
    return targets.masked_fill(torch.rand(targets.shape) < share, UNCOUNTED)


# ---- training loss -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 5), (4, 6, 5)])
def test_the_loss_of_classes_is_torchs_mean_cross_entropy_bit_for_bit(shape):
    """The gradient too: what was trained before masks existed trains on unchanged."""
    torch.manual_seed(0)
    outputs = torch.randn(shape, requires_grad=True)
    targets = torch.randint(0, 5, shape[:-1])
    ours = training_loss(outputs, targets, task="causal_lm", count=targets.numel())
    theirs = nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())
    gradients = [torch.autograd.grad(loss, outputs)[0] for loss in (ours, theirs)]
    assert torch.equal(ours, theirs)
    assert torch.equal(*gradients)


def test_masked_tokens_are_not_learnt():
    """Loss and gradient are those of the counted tokens alone."""
    torch.manual_seed(0)
    outputs = torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)
    targets = masked(torch.randint(0, 5, (4, 6)))
    counted = targets != UNCOUNTED
    count = num_counted(Batch(outputs, targets), task="causal_lm")
    assert count == int(counted.sum())
    loss = training_loss(outputs, targets, task="causal_lm", count=count)
    expected = nn.functional.cross_entropy(outputs[counted], targets[counted])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert (gradient[~counted] == 0).all()
    assert (gradient[counted] != 0).any(dim=-1).all()


def test_a_batch_without_counted_targets_teaches_nothing():
    outputs = torch.randn(2, 3, 5, requires_grad=True)
    loss = training_loss(outputs, torch.full((2, 3), UNCOUNTED), task="causal_lm", count=0)
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert loss.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("target_shape", [(8,), (8, 1)])
def test_one_target_a_sample_may_come_with_or_without_its_axis(target_shape):
    """Broadcast, (8, 1) - (8,) would be an 8x8 table of wrong errors."""
    outputs, targets = torch.randn(8, 1), torch.randn(target_shape)
    loss = training_loss(outputs, targets, task="regression", count=8)
    assert loss.item() == pytest.approx((outputs.flatten() - targets.flatten()).square().mean())


# ---- scores --------------------------------------------------------------------------------------


def test_classes_are_scored_by_loss_accuracy_and_top_five():
    torch.manual_seed(0)
    outputs, targets = torch.randn(64, 10), torch.randint(0, 10, (64,))
    count, loss, hits, top5 = example_scores(outputs, targets, names=CLASSIFICATION)
    order = outputs.argsort(dim=-1, descending=True)
    assert count.tolist() == [1.0] * 64
    expected = nn.functional.cross_entropy(outputs, targets, reduction="none").double()
    assert torch.equal(loss, expected)
    assert hits.tolist() == [float(row[0] == t) for row, t in zip(order, targets, strict=True)]
    assert top5.tolist() == [float(t in row[:5]) for row, t in zip(order, targets, strict=True)]
    assert 0 < hits.sum() < top5.sum() < 64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@settings(deadline=None)
@given(seed=st.integers(0, 10**6), num_classes=st.integers(6, 40), levels=st.integers(1, 4))
def test_of_equal_outputs_the_lower_class_comes_first_in_every_score(
    dtype, seed, num_classes, levels
):
    """So five guesses contain the one, and no order of a library's own decides between them."""
    torch.manual_seed(seed)
    outputs = torch.randint(0, levels, (20, num_classes)).to(dtype)
    targets = torch.randint(0, num_classes, (20,))
    _, _, hits, top5 = example_scores(outputs, targets, names=CLASSIFICATION)
    order = [
        sorted(range(num_classes), key=lambda number: (-row[number], number))
        for row in outputs.tolist()
    ]
    assert hits.tolist() == [float(row[0] == t) for row, t in zip(order, targets, strict=True)]
    assert top5.tolist() == [float(t in row[:5]) for row, t in zip(order, targets, strict=True)]
    assert (hits <= top5).all()


def test_narrow_outputs_that_are_equal_score_as_wide_ones_do():
    """In bfloat16 1.001 and 1 are one number: both scores see a tie, and break it alike."""
    outputs = torch.full((9, 9), 1.0) + torch.arange(9) * 1e-4
    narrow = outputs.bfloat16()
    _, _, hits, top5 = example_scores(narrow, torch.arange(9), names=CLASSIFICATION)
    assert hits.tolist() == [1.0] + [0.0] * 8
    assert top5.tolist() == [1.0] * 5 + [0.0] * 4


def test_infinite_and_uncounted_outputs_have_their_place_too():
    outputs = torch.full((3, 8), -math.inf)
    outputs[:, 6] = 0.0
    targets = torch.tensor([6, 3, UNCOUNTED])
    count, _, hits, top5 = example_scores(outputs, targets, names=CLASSIFICATION)
    assert (count.tolist(), hits.tolist()) == ([1, 1, 0], [1, 0, 0])
    assert top5.tolist() == [1, 1, 0]


@pytest.mark.parametrize(("num_classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top_five_is_told_where_it_can_be_wrong(num_classes, has_top5):
    assert ("top5_accuracy" in score_names("classification", num_classes=num_classes)) == has_top5


def test_outputs_that_are_nan_hit_nothing():
    scores = example_scores(
        torch.full((3, 10), math.nan), torch.tensor([7, 8, 9]), names=CLASSIFICATION
    )
    assert scores[1].isnan().all()
    assert scores[2:].sum() == 0


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), batch_size=st.integers(1, 9))
def test_scores_of_tokens_are_the_plain_loop_over_counted_tokens(seed, batch_size):
    """Sums and counts over any cut into batches give the loop's mean, masked windows included."""
    torch.manual_seed(seed)
    outputs, targets = torch.randn(9, 7, 5), masked(torch.randint(0, 5, (9, 7)), share=0.6)
    targets[0] = UNCOUNTED
    names = score_names("causal_lm", num_classes=5)
    parts = [
        example_scores(outputs[i : i + batch_size], targets[i : i + batch_size], names=names)
        for i in range(0, 9, batch_size)
    ]
    count, loss, hits = (math.fsum(row.tolist()) for row in torch.cat(parts, dim=1))
    plain = [
        (-outputs[i, j].log_softmax(0)[t].item(), outputs[i, j].argmax().item() == t)
        for i in range(9)
        for j in range(7)
        if (t := targets[i, j].item()) != UNCOUNTED
    ]
    assert count == len(plain)
    assert loss == pytest.approx(sum(value for value, _ in plain), rel=1e-5)
    assert hits == sum(hit for _, hit in plain)


def test_regression_is_scored_by_squared_and_absolute_errors_of_every_target():
    outputs, targets = torch.randn(6, 3), torch.randn(6, 3)
    scores = example_scores(outputs, targets, names=score_names("regression", num_classes=0))
    count, squares, sizes = scores.sum(dim=1).tolist()
    assert count == 18
    assert squares / count == pytest.approx((outputs - targets).square().mean().item(), rel=1e-6)
    assert sizes / count == pytest.approx((outputs - targets).abs().mean().item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_outputs_are_widened_before_they_are_scored(dtype):
    outputs, targets = torch.randn(16, 10).to(dtype), torch.randint(0, 10, (16,))
    narrow = example_scores(outputs, targets, names=CLASSIFICATION)
    assert torch.equal(narrow, example_scores(outputs.float(), targets, names=CLASSIFICATION))


# ---- metrics -------------------------------------------------------------------------------------


def test_a_language_model_tells_bits_and_perplexity():
    means = {"loss": 2 * math.log(2), "accuracy": 0.5}
    assert metrics("causal_lm", means, bytes_per_token=4.0) == {
        "accuracy": 0.5,
        "bits_per_token": pytest.approx(2),
        "bits_per_byte": pytest.approx(0.5),
        "perplexity": pytest.approx(4),
    }
    assert "bits_per_byte" not in metrics("causal_lm", means)


def test_a_perplexity_beyond_all_floats_is_infinite():
    assert metrics("causal_lm", {"loss": 1e4, "accuracy": 0.0})["perplexity"] == math.inf


def test_the_loss_is_not_told_twice_but_a_regressions_error_has_its_name():
    assert metrics("classification", {"loss": 1.0, "accuracy": 0.5}) == {"accuracy": 0.5}
    means = {"mse": 1.0, "mae": 0.5}
    assert metrics("regression", means) == {"mse": 1.0, "mae": 0.5}
