"""The options that every optimizer of torch.optim takes: taken, or refused with the reason."""

import inspect
from typing import Any

import pytest
import torch
from optim_makes import (
    NAMES,
    PLUS,
    WRAPPERS,
    make,
    parameters,
    parameters_of,
    randoms,
    same_bits,
    step,
)
from torch import Tensor
from torch.nn import Parameter

from roadless import optim
from roadless.optim import averaged_point
from roadless.optim.core.averaged_optimizer import AveragedOptimizer

OURS = [name for name in NAMES if name not in WRAPPERS]
#: What asks for nothing that is not done anyway.
NEUTRAL: dict[str, Any] = {
    "maximize": False,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "foreach": None,
    "amsgrad": False,
    "nesterov": False,
    "dampening": 0,
    "decoupled_weight_decay": True,
}
REFUSED: dict[str, Any] = {
    "capturable": True,
    "differentiable": True,
    "fused": True,
    "amsgrad": True,
    "nesterov": True,
    "dampening": 0.5,
    "decoupled_weight_decay": False,
}

each_name = pytest.mark.parametrize("name", OURS)


def ends(optimizer: Any, *, sign: float = 1.0, num_steps: int = 6) -> list[Tensor]:
    for row in randoms(num_steps, parameters_of(optimizer)):
        step(optimizer, [sign * g for g in row])
    return [*map(torch.clone, parameters_of(optimizer)), *averaged_point(optimizer).values()]


@each_name
def test_options_that_ask_for_nothing_leave_no_trace(name: str) -> None:
    plain = make(name, parameters())
    given = make(name, parameters(), **NEUTRAL)
    added = {"maximize"} | ({"foreach"} & plain.param_groups[0].keys())
    assert given.param_groups[0].keys() - added == plain.param_groups[0].keys() - added
    assert same_bits(ends(given), ends(plain))


@each_name
@pytest.mark.parametrize("option", REFUSED)
def test_what_does_not_exist_is_refused_with_the_reason(name: str, option: str) -> None:
    """In the constructor, in a group's own settings, and in a group that is added later."""
    wanted = {option: REFUSED[option]}
    for build in (
        lambda: make(name, parameters(), **wanted),
        lambda: make(name, [{"params": parameters(), **wanted}]),
        lambda: make(name, parameters()).add_param_group({"params": parameters(), **wanted}),
    ):
        with pytest.raises(ValueError, match=rf"^{option}: expected .*, as .*, seen "):
            build()


@each_name
@pytest.mark.parametrize("option", ["maximize", "foreach", "fused", "capturable"])
def test_text_is_no_option(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: expected .*, seen 'false'"):
        make(name, parameters(), **{option: "false"})


@pytest.mark.parametrize("name", [name for name in OURS if name != PLUS])
def test_maximize_goes_where_the_negative_gradient_is_descended(name: str) -> None:
    upward = make(name, parameters(), lr=0.05, weight_decay=0.1, maximize=True)
    downward = make(name, parameters(), lr=0.05, weight_decay=0.1)
    assert same_bits(ends(upward), ends(downward, sign=-1.0))


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGDScheduleFreeReference", "ForeachADOPT"])
def test_one_group_may_be_maximized_and_the_choice_be_saved(name: str) -> None:
    up, down = Parameter(torch.zeros(3)), Parameter(torch.zeros(3))
    optimizer = make(name, [{"params": [up], "maximize": True}, {"params": [down]}], lr=0.05)
    resumed = make(name, [{"params": [Parameter(torch.zeros(3))]} for _ in range(2)])
    resumed.load_state_dict(optimizer.state_dict())
    for each in (optimizer, resumed):
        for _ in range(4):
            step(each, [torch.ones(3), torch.ones(3)])
        risen, fallen = parameters_of(each)
        assert torch.equal(risen, -fallen)
        assert bool((risen > 0).all())


def test_schedulefree_plus_refuses_to_maximize() -> None:
    """Polyak's rule needs a loss whose least value is near 0."""
    with pytest.raises(ValueError, match=r"^maximize: expected False, as Polyak's rule"):
        optim.AdamCScheduleFreePlusPaper(parameters(), maximize=True)


@pytest.mark.parametrize("name", ["ForeachAdamW", "PaLMForeachSFAdamW", "SOAP"])
def test_foreach_may_be_set_where_the_published_signature_lacks_it(name: str) -> None:
    one_by_one, in_lists = (make(name, parameters(), foreach=value) for value in (False, True))
    assert one_by_one.param_groups[0]["foreach"] is False
    assert same_bits(ends(one_by_one), ends(in_lists))


@each_name
def test_an_unknown_setting_is_still_an_error(name: str) -> None:
    with pytest.raises(TypeError, match="momentumm"):
        make(name, parameters(), momentumm=0.9)


@each_name
def test_options_are_not_in_the_signature(name: str) -> None:
    names = inspect.signature(getattr(optim, name)).parameters.keys()
    assert not names & (NEUTRAL.keys() - {"foreach"})


def test_a_class_derived_by_a_user_takes_them_too() -> None:
    class Mine(optim.AdamWScheduleFree):
        def __init__(self, params: Any, speed: float) -> None:
            super().__init__(params, lr=speed)

    make_mine: Any = Mine
    assert issubclass(Mine, AveragedOptimizer)
    assert make_mine(parameters(), speed=0.5, maximize=True).param_groups[0]["maximize"] is True


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("option", sorted(REFUSED.keys() | {"maximize", "foreach"}))
def test_a_wrapper_leaves_them_to_its_base(name: str, option: str) -> None:
    kind = getattr(optim, name)
    with pytest.raises(ValueError, match=rf"^{option}: expected among the arguments of the base"):
        kind(torch.optim.SGD(parameters(), lr=0.1), **{option: True})
    up, down = (
        kind(torch.optim.SGD(parameters(), lr=0.1, maximize=maximize)) for maximize in (True, False)
    )
    assert same_bits(ends(up), ends(down, sign=-1.0))
