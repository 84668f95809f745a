"""In which dtype a narrow model keeps what a running mean needs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_bench import Bench, make_brief

from roadless.worker.distributed.precision import set_precision

WRAPPED = {"name": "schedulefree_wrapper", "base": {"name": "AdamW"}}


@pytest.mark.parametrize("optimizer", [{"name": "adamw_schedulefree"}, WRAPPED], ids=str)
def test_a_narrow_job_learns_what_a_wide_one_does(
    optimizer: dict[str, Any], tmp_path: Path
) -> None:
    """To within 3 % of the loss at x: no optimizer loses what bfloat16 has no room for."""
    losses = []
    for precision in ("fp32", "bf16"):
        brief = make_brief(
            model={"kind": "preset", "name": "mlp"},
            data={"kind": "builtin", "name": "digits"},
            task="classification",
            optimizer=optimizer,
            training={"batch_size": 32, "precision": precision},
            budget={"max_steps": 400},
            evaluation={"every_steps": 400},
        )
        bench = Bench(brief, tmp_path / precision)
        bench.training.run()
        losses.append(bench.reporter.evals[-1].loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(3),
        nn.SyncBatchNorm(3),
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.InstanceNorm2d(3, track_running_stats=True, affine=True),
    ],
)
def test_running_statistics_stay_wide_and_go_on_moving(norm: nn.Module) -> None:
    """From 100 a step of 0.1 · 0.25 is less than half a unit in bfloat16."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm)
    set_precision(model, "bf16")
    assert model[0].weight.dtype == torch.bfloat16
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    norm.running_mean.fill_(100.0)
    norm.eval()
    assert model(torch.randn(2, 3, 4, 4)).dtype == torch.float32
    if not isinstance(norm, nn.SyncBatchNorm):  # trains on accelerators only
        norm.train()
        halves = torch.tensor([100.0, 100.5]).expand(2, 3, 4, 2)
        assert norm(halves.bfloat16()).dtype == torch.bfloat16
        assert torch.allclose(norm.running_mean, torch.tensor(100.025), rtol=1e-6)


def test_norms_without_statistics_are_as_narrow_as_the_rest() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.GroupNorm(1, 3))
    set_precision(model, "bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_norm_without_statistics_computes_as_narrow_as_it_is_asked() -> None:
    norm = nn.InstanceNorm2d(3)
    set_precision(norm, "amp_bf16")
    assert norm(torch.randn(2, 3, 4, 4).bfloat16()).dtype is torch.bfloat16


@pytest.mark.parametrize("is_affine", [False, True])
def test_running_statistics_of_narrow_activations_stay_wide(is_affine: bool) -> None:
    norm = nn.InstanceNorm2d(3, track_running_stats=True, affine=is_affine)
    set_precision(norm, "amp_bf16")
    norm.running_mean.fill_(100.0)
    norm(torch.tensor([100.0, 100.5]).expand(2, 3, 4, 2).bfloat16())
    assert torch.allclose(norm.running_mean, torch.tensor(100.025), rtol=1e-6)
