"""Settings are numbers, or refused by the constructor by name: no step fails on one."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optim_makes import NAMES, WRAPPERS, make, parameters, parameters_of, randoms, step
from torch import Tensor

from roadless import optim
from roadless.optim.checks import plain, require_at_least_zero, require_steps

OURS = [name for name in NAMES if name not in WRAPPERS]
#: Counts of steps and of dimensions, and flags, are no plain numbers.
COUNTS = {"precondition_frequency", "max_precond_dim", "precond_seed"}


def settings_of(name: str, *kinds: type) -> list[str]:
    """The constructor's settings whose default is of one of these types, bools apart."""
    arguments = inspect.signature(getattr(optim, name)).parameters.values()
    return [a.name for a in arguments if type(a.default) in kinds]


NUMBERS = [(name, setting) for name in OURS for setting in settings_of(name, int, float)]
PAIRS = [(name, setting) for name in OURS for setting in settings_of(name, tuple)]
FLAGS = [(n, s) for n in OURS for s in settings_of(n, bool) if s != "foreach"]


def ends(name: str, **chosen: Any) -> list[Tensor]:
    optimizer = make(name, parameters(), **chosen)
    for row in randoms(6, parameters_of(optimizer)):
        step(optimizer, row)
    return [p.detach() for p in parameters_of(optimizer)]


NO_NUMBERS = [
    *("1", "1e-8", " 2 ", b"1", np.array("1")),
    *(True, np.bool_(True), torch.tensor(True)),
    *(math.nan, math.inf, -1, [1], 1j, torch.ones(2)),
]
NO_PAIRS = [
    *(("0.9", "0.9"), ("0.5", 0.5), (0.5, "0.5"), (True, False), (0.5, math.nan), (0.9,)),
    *("0.9", 0.9, None, torch.tensor([0.9, 0.9])),
]


@pytest.mark.parametrize(("name", "setting"), NUMBERS)
def test_what_is_no_number_is_refused_by_name(name: str, setting: str) -> None:
    """In the constructor and in a group's own settings; PyYAML reads 1e-8 as text."""
    for value in NO_NUMBERS:
        with pytest.raises(ValueError, match=rf"^{setting}.*: expected .*, seen "):
            make(name, parameters(), **{setting: value})
        with pytest.raises(ValueError, match=rf"^{setting}.*: expected .*, seen "):
            make(name, [{"params": parameters(), setting: value}])


@pytest.mark.parametrize(("name", "setting"), PAIRS)
def test_what_is_no_pair_of_numbers_is_refused_by_name(name: str, setting: str) -> None:
    for value in NO_PAIRS:
        with pytest.raises(ValueError, match=rf"^{setting}.*: expected .*, seen "):
            make(name, parameters(), **{setting: value})


@pytest.mark.parametrize(("name", "setting"), FLAGS)
def test_what_is_no_flag_is_refused_by_name(name: str, setting: str) -> None:
    """The text "false" would count as true."""
    for value in ("false", "no", 0, 1.0, None):
        with pytest.raises(ValueError, match=rf"^{setting}: expected True or False, seen "):
            make(name, parameters(), **{setting: value})


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "kind",
    [
        np.float32,
        np.array,
        lambda v: torch.tensor([v], dtype=torch.float64),
    ],
    ids=["float32", "array", "tensor of one"],
)
def test_other_numbers_mean_what_they_say(name: str, kind: Any) -> None:
    """torch takes a tensor for some arguments of its operators, and no array."""
    right = ends(name)
    arguments = inspect.signature(getattr(optim, name)).parameters
    for setting in settings_of(name, int, float):
        if setting not in COUNTS:
            chosen = {setting: kind(arguments[setting].default)}
            for a, b in zip(ends(name, **chosen), right, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=setting)


@pytest.mark.parametrize("name", [n for n in OURS if "warmup_steps" in settings_of(n, int)])
def test_a_share_is_no_number_of_warmup_steps(name: str) -> None:
    """It would mean no warmup, without a word; 1e2, as YAML has it, is a whole number."""
    for share in (0.05, 0.5, 1.5):
        with pytest.raises(ValueError, match=r"^warmup_steps: expected a whole number of steps"):
            make(name, parameters(), warmup_steps=share)
    both = [ends(name, warmup_steps=steps) for steps in (1e2, 100)]
    assert all(map(torch.equal, *both))


def test_averaging_is_chosen_for_all_groups_at_once() -> None:
    """SOAP's class is chosen by it: in a group it would be ignored."""
    group = {"params": parameters(), "schedule_free": True}
    with pytest.raises(ValueError, match=r"^schedule_free: expected among the constructor's"):
        optim.SOAP([group])


@pytest.mark.parametrize("name", OURS)
def test_minus_zero_is_zero(name: str) -> None:
    both = [ends(name, lr=0.05, weight_decay=value) for value in (-0.0, 0.0)]
    assert all(map(torch.equal, *both))


@pytest.mark.parametrize("name", ["PaLMForeachSOAP", "SFPaLMForeachSOAP", "PaLMForeachSFAdamW"])
def test_a_group_may_have_its_own_beta_under_either_name(name: str) -> None:
    """A group's ``beta`` was ignored by SOAP, which holds it as the first of ``betas``."""
    whole = ends(name, beta=0.5)
    for own in ({"beta": 0.5}, {"betas": (0.5, None)}):
        optimizer = make(name, [{"params": parameters(), **own}])
        for row in randoms(6, parameters_of(optimizer)):
            step(optimizer, row)
        assert all(map(torch.equal, whole, parameters_of(optimizer)))


def test_a_learning_rate_in_a_tensor_stays_the_programs_own() -> None:
    lr = torch.tensor(0.5)
    optimizer = optim.SGDScheduleFree(parameters(), lr=lr, weight_decay=torch.tensor(0.25))
    assert optimizer.param_groups[0]["lr"] is lr
    assert optimizer.param_groups[0]["weight_decay"] == 0.25
    assert type(optimizer.param_groups[0]["weight_decay"]) is float


@given(value=st.integers(0, 10**12) | st.floats(0, 1e300))
def test_a_number_of_steps_is_whole(value: float) -> None:
    if value == int(value):
        require_steps({"steps": value}, "steps")
    else:
        with pytest.raises(ValueError, match=r"^steps: expected a whole number"):
            require_steps({"steps": value}, "steps")


@given(value=st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_plain_numbers_are_themselves(value: float) -> None:
    assert plain(value) is value
    assert plain((value, [np.float64(1.5), torch.tensor([2])])) == (value, [1.5, 2])


@given(text=st.text())
def test_no_text_is_a_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"^eps: expected a finite number >= 0|^eps: expected one"):
        require_at_least_zero({"eps": text}, "eps")
