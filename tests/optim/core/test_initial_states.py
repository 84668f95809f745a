"""Reading a state before the first step leaves no trace, whoever reads it and wherever it goes."""

import copy
import pickle
from typing import Any

import pytest
import torch
from optim_makes import CLOSURES
from optim_travels import (
    ALL,
    BY_NAME,
    FLAT,
    LR,
    Pair,
    assert_alike,
    assert_go_on_alike,
    gradient_like,
    one_process,
)
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

from roadless import optim
from roadless.optim import at_average
from roadless.optim.core.initial_states import InitialStates, is_idle

pytestmark = pytest.mark.filterwarnings("ignore")

EVERY = pytest.mark.parametrize("name", sorted(ALL))


@EVERY
@pytest.mark.parametrize("position", ["train", "eval", "block"])
def test_reading_before_the_first_step_changes_nothing(name: str, position: str) -> None:
    quiet, read = Pair(ALL[name]), Pair(ALL[name])
    groups = [dict(group) for group in read.optimizer.param_groups]
    if position == "eval":
        read.optimizer.eval()
        read.read()
        read.optimizer.train()
    elif position == "block":
        with at_average(read.optimizer):
            read.read()
    else:
        read.read().read()
    assert read.optimizer.param_groups == groups
    assert not read.optimizer.state
    assert_go_on_alike(read, quiet, first=0)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_lists_all_that_the_state_has_after_steps(
    name: str, dtype: torch.dtype
) -> None:
    """So that a checkpoint can be read into it."""
    fresh, trained = Pair(ALL[name], dtype=dtype), Pair(ALL[name], dtype=dtype)
    trained.train(0, 3, is_all_used=True)
    before, after = fresh.saved(FLAT), trained.saved(FLAT)
    assert before.keys() == after.keys()
    for key, value in after.items():
        if isinstance(value, torch.Tensor):
            assert (before[key].shape, before[key].dtype) == (value.shape, value.dtype), key


@EVERY
def test_weights_that_come_after_the_reading_are_the_averaged_point(name: str) -> None:
    quiet, read = Pair(ALL[name]), Pair(ALL[name]).read()
    for pair in (quiet, read):
        for parameter in pair.model.parameters():
            parameter.data.mul_(3)
    assert_go_on_alike(read, quiet, first=0)


@EVERY
def test_a_request_whose_answer_nobody_reads_is_forgotten(name: str) -> None:
    """What torch's initialiser does, as copied by trainers; then the weights are loaded."""
    quiet, asked = Pair(ALL[name]), Pair(ALL[name])
    for parameter in asked.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in asked.optimizer.param_groups:
        group["lr"] = 0.0
    asked.optimizer.step()
    for group in asked.optimizer.param_groups:
        group["lr"] = LR
    asked.optimizer.zero_grad()
    for pair in (quiet, asked):
        for parameter in pair.model.parameters():
            parameter.data.add_(1)
    assert_go_on_alike(asked, quiet, first=0)


@EVERY
def test_a_checkpoint_of_before_the_first_step_starts_a_run(name: str, tmp_path: Any) -> None:
    """Written and read in torch's format; the weights come last."""
    source, fresh = Pair(ALL[name]), Pair(ALL[name])
    for parameter in fresh.model.parameters():
        parameter.data.fill_(7.0)
    with one_process():
        checkpoint.save({"optimizer": source.saved(FLAT)}, checkpoint_id=tmp_path)
        place = {"optimizer": fresh.saved(FLAT)}
        checkpoint.load(place, checkpoint_id=tmp_path)
    set_optimizer_state_dict(fresh.model, fresh.optimizer, place["optimizer"], options=FLAT)
    fresh.model.load_state_dict(source.model.state_dict())
    assert_go_on_alike(fresh, source, first=0)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_tensor_learning_rate_is_put_back(name: str) -> None:
    rate = torch.tensor(LR)
    quiet, read = (Pair(lambda params: getattr(optim, name)(params, lr=rate)) for _ in range(2))
    read.read()
    assert read.optimizer.param_groups[0]["lr"] is rate
    assert_go_on_alike(read, quiet, first=0)


@EVERY
def test_copies_made_of_a_read_optimizer_start_alike(name: str) -> None:
    right, read = Pair(ALL[name]).train(0, 3), Pair(ALL[name]).read()
    for duplicate in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        twin = copy.copy(read)
        twin.model, twin.optimizer = duplicate((read.model, read.optimizer))
        assert_alike(twin.train(0, 3), right)


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - set(CLOSURES) - {"SOAP"}))
def test_a_step_at_rate_0_counts_once_there_is_a_gradient(name: str) -> None:
    """Only where nothing can be learnt is a step no step."""
    pair = Pair(BY_NAME[name])
    pair.optimizer.param_groups[0]["lr"] = 0.0
    for parameter in pair.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert is_idle(pair.optimizer.param_groups, None)
    assert not is_idle(pair.optimizer.param_groups, lambda: 0.0)
    pair.model["used"].weight.grad = gradient_like(pair.model["used"].weight, 0)
    assert not is_idle(pair.optimizer.param_groups, None)
    pair.optimizer.step()
    assert not isinstance(pair.optimizer.state, InitialStates)
    assert pair.optimizer.state
