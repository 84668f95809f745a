"""From the spec to live objects: each choice is built, and weights follow from the seed."""

import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter

from roadless import optim
from roadless.service.contract.job.models import ModelSpec
from roadless.service.contract.job.optimizers import OptimizerSpec
from roadless.worker.agent.launcher import rank_environment
from roadless.worker.data.base import Description
from roadless.worker.model.build import build_model
from roadless.worker.model.convnet import Convnet
from roadless.worker.model.gpt import Gpt
from roadless.worker.model.mlp import Mlp
from roadless.worker.setup import build_optimizer

IMAGES = Description(input_shape=(1, 8, 8), num_classes=10, tokens_per_sample=0, fingerprint="")
BYTES = Description(input_shape=(64,), num_classes=256, tokens_per_sample=64, fingerprint="")


def model_spec(name: str, **fields) -> ModelSpec:
    return TypeAdapter(ModelSpec).validate_python({"kind": "preset", "name": name, **fields})


def optimizer_spec(name: str, **fields) -> OptimizerSpec:
    return TypeAdapter(OptimizerSpec).validate_python({"name": name, **fields})


PRESETS = [("mlp", IMAGES, Mlp), ("convnet", IMAGES, Convnet), ("gpt", BYTES, Gpt)]


@pytest.mark.parametrize(("name", "data", "kind"), PRESETS)
def test_weights_are_a_function_of_the_seed(name, data, kind):
    spec = model_spec(name)
    torch.manual_seed(1)
    first = build_model(spec, data=data, seed=5)
    torch.manual_seed(2)
    again, other = (build_model(spec, data=data, seed=seed) for seed in (5, 6))
    assert isinstance(first, kind)
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = list(zip(first.parameters(), other.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_building_a_model_draws_no_random_numbers_of_the_caller():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_model(model_spec("mlp"), data=IMAGES, seed=2**63 - 1)
    assert torch.equal(torch.rand(4), expected)


def test_the_optimizer_gets_every_field_of_its_spec():
    fields = {"lr": 0.5, "weight_decay": 0.1, "warmup_steps": 3, "r": 1.0, "weight_lr_power": 1.5}
    choices = [
        ("sgd_schedulefree", {"momentum": 0.8}, optim.SGDScheduleFree),
        ("adamw_schedulefree", {"betas": (0.8, 0.7), "eps": 1e-5}, optim.AdamWScheduleFree),
    ]
    for name, own, kind in choices:
        parameter = torch.nn.Parameter(torch.zeros(2))
        optimizer = build_optimizer(optimizer_spec(name, **fields, **own), params=[parameter])
        assert isinstance(optimizer, kind)
        group = optimizer.param_groups[0]
        assert {key: group[key] for key in fields | own} == fields | own
        assert group["params"] == [parameter]


@pytest.mark.parametrize("name", ["sgd_schedulefree", "adamw_schedulefree"])
def test_spec_defaults_are_the_optimizers_defaults(name):
    built = build_optimizer(optimizer_spec(name), params=[torch.nn.Parameter(torch.zeros(1))])
    bare = type(built)([torch.nn.Parameter(torch.zeros(1))])
    assert built.defaults == bare.defaults


def test_importing_everything_a_rank_needs_starts_no_thread():
    """A fork server preloads this module, and a process with threads must not fork."""
    script = "import roadless.worker.setup, os; print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=rank_environment({}),  # without it numpy's BLAS starts threads on import
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1"
