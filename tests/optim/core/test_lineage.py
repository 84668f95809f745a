"""Whose state a state is: another optimizer's is refused and both are named, kin goes on."""

import re
from typing import Any

import pytest
import schedulefree
import torch
from optim_makes import make, parameters_of, randoms, step
from optim_travels import ALL, BY_NAME, FLAT, LR, TORCH_BASES, WRAPPED, Pair, assert_alike
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions
from torch.nn import Parameter

from roadless import optim
from roadless.optim import ScheduleFreeWrapper, averaged_point

pytestmark = pytest.mark.filterwarnings("ignore")

#: Whose states mean the same, under whatever settings the file has.
FAMILIES = [
    {
        "SOAP",
        "ForeachSOAP",
        "PaLMForeachSOAP",
        "PrecondScheduleForeachSOAP",
        "PrecondSchedulePaLMForeachSOAP",
    },
    {"SFPaLMForeachSOAP", "PrecondScheduleSFPaLMForeachSOAP", "PrecondScheduleSFPaLMSOAP"},
    *({f"{rule}ScheduleFree", f"{rule}ScheduleFreeClosure"} for rule in ("SGD", "AdamW", "RAdam")),
]


def is_kin(saved: str, wanted: str) -> bool:
    """A reference text's state has all that the fast forms need; theirs lack its x."""
    family = next((names for names in FAMILIES if wanted in names), {wanted})
    return saved in family or saved.removesuffix("Reference") in family


def averages(optimizer: Any) -> list[Tensor]:
    return list(averaged_point(optimizer).values())


@pytest.mark.parametrize("saved", sorted(BY_NAME))
@pytest.mark.parametrize("wanted", sorted(BY_NAME))
def test_a_state_goes_on_with_its_kin_and_is_refused_elsewhere(saved: str, wanted: str) -> None:
    source, target = Pair(BY_NAME[saved]).train(0, 4), Pair(BY_NAME[wanted])
    state = source.optimizer.state_dict()
    if not is_kin(saved, wanted):
        names = rf"state of {type(target.optimizer).__name__}, seen that of "
        with pytest.raises(ValueError, match=names + type(source.optimizer).__name__):
            target.optimizer.load_state_dict(state)
        return
    target.model.load_state_dict(source.model.state_dict())
    target.optimizer.load_state_dict(state)
    target.optimizer.train()
    for pair in (source, target):
        pair.train(4, 3)
    for a, b in zip(averages(target.optimizer), averages(source.optimizer), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("base", sorted(TORCH_BASES))
@pytest.mark.parametrize(
    "wanted", ["AdamWScheduleFree", "ForeachLaProp", "SOAP", "SGDScheduleFree"]
)
def test_a_state_of_torch_is_refused(base: str, wanted: str) -> None:
    source, target = Pair(TORCH_BASES[base]).train(0, 3), Pair(BY_NAME[wanted])
    before = target.points()
    with pytest.raises(ValueError, match=rf"{wanted}, seen that of torch's .*{base.split()[0]}"):
        target.optimizer.load_state_dict(source.optimizer.state_dict())
    assert not target.optimizer.state
    assert target.optimizer.param_groups[0]["lr"] == LR
    for a, b in zip(target.points(), before, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("base", sorted(TORCH_BASES))
def test_a_wrapper_takes_the_state_of_its_base_alone(base: str) -> None:
    """Not the base's own, not the published wrapper's, and not that of a wrapper over another."""
    wanted = f"ScheduleFreeWrapper({base.split()[0]})"
    target = Pair(WRAPPED[f"ScheduleFreeWrapper({base})"])
    other = "RMSprop" if base == "Adagrad" else "Adagrad"
    published = Pair(TORCH_BASES["SGD"])
    published.optimizer = schedulefree.ScheduleFreeWrapper(published.optimizer)
    published.optimizer.train()
    others = [Pair(TORCH_BASES[base]), Pair(WRAPPED[f"ScheduleFreeWrapper({other})"]), published]
    for source in others:
        state = source.train(0, 2).optimizer.state_dict()
        with pytest.raises(ValueError, match=re.escape(f"expected the state of {wanted}, seen")):
            target.optimizer.load_state_dict(state)


def test_adam_with_decoupled_decay_is_adamw() -> None:
    """They are one class in torch, with a setting; so is a subclass that only adds to it."""

    class Logged(torch.optim.AdamW):
        def zero_grad(self, set_to_none: bool = True) -> None:
            super().zero_grad(set_to_none)

    makes = [torch.optim.Adam, torch.optim.AdamW, Logged]
    source = Pair(lambda params: ScheduleFreeWrapper(makes[1](params, lr=LR))).train(0, 3)
    for kind in makes:
        target = Pair(lambda params, kind=kind: ScheduleFreeWrapper(kind(params, lr=LR)))
        target.model.load_state_dict(source.model.state_dict())
        target.optimizer.load_state_dict(source.optimizer.state_dict())
        twin = Pair(lambda params: ScheduleFreeWrapper(makes[1](params, lr=LR))).train(0, 5)
        assert_alike(target.train(3, 2), twin)


def test_a_subclass_of_a_base_with_a_step_of_its_own_is_another() -> None:
    class Louder(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            super().step()

    source = Pair(lambda params: ScheduleFreeWrapper(Louder(params, lr=LR))).train(0, 3)
    with pytest.raises(ValueError, match=r"ScheduleFreeWrapper\(SGD\), .*Wrapper\(Louder\)"):
        Pair(WRAPPED["ScheduleFreeWrapper(SGD)"]).optimizer.load_state_dict(
            source.optimizer.state_dict()
        )


def nameless(state: dict[str, Any]) -> dict[str, Any]:
    """As an earlier release saved it."""
    groups = [
        {k: v for k, v in group.items() if k != "saved_by"} for group in state["param_groups"]
    ]
    return state | {"param_groups": groups}


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_state_without_a_name_goes_on_bit_for_bit(name: str) -> None:
    source, target = Pair(ALL[name]).train(0, 4), Pair(ALL[name])
    target.model.load_state_dict(source.model.state_dict())
    target.optimizer.load_state_dict(nameless(source.optimizer.state_dict()))
    for pair in (source, target):
        pair.train(4, 3, is_all_used=True)
    assert_alike(target, source)


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        ("SGDScheduleFree", "AdamWScheduleFree"),
        ("AdamWScheduleFree", "SGDScheduleFree"),
        ("RAdamScheduleFree", "AdamWScheduleFree"),
        ("AdamWScheduleFree", "RAdamScheduleFree"),
        ("AdamWScheduleFree", "AdamWScheduleFreeReference"),
        ("AdamWScheduleFreeReference", "RAdamScheduleFree"),
        ("AdamWScheduleFreePaper", "SOAP"),
    ],
)
def test_published_states_of_another_kind_are_refused(saved: str, wanted: str) -> None:
    params = [Parameter(torch.ones(3, 2))]
    published = getattr(schedulefree, saved)(params)
    published.train()
    params[0].grad = torch.ones(3, 2)
    published.step()
    with pytest.raises(ValueError, match=f"expected the state of {wanted}, seen"):
        make(wanted, [Parameter(torch.ones(3, 2))]).load_state_dict(published.state_dict())


def test_entries_of_users_and_schedulers_make_no_other_optimizer() -> None:
    """A file from before a setting, with a scheduler's and a user's entries."""
    source = Pair(BY_NAME["AdamWScheduleFree"])
    torch.optim.lr_scheduler.ExponentialLR(source.optimizer, gamma=0.9)
    source.optimizer.param_groups[0]["label"] = "decoder"
    state = nameless(source.train(0, 2).optimizer.state_dict())
    for group in state["param_groups"]:
        del group["rounding_seed"], group["inner_momentum"], group["foreach"], group["held_beta"]
    target = Pair(BY_NAME["AdamWScheduleFree"])
    target.optimizer.load_state_dict(state)
    assert target.optimizer.param_groups[0]["label"] == "decoder"
    assert target.optimizer.param_groups[0]["k"] == 2


def test_a_form_with_decay_at_z_has_no_fast_kin() -> None:
    source = Pair(lambda p: optim.AdamWScheduleFreeReference(p, lr=LR, decay_at_z=True)).train(0, 2)
    with pytest.raises(ValueError, match="expected decay_at_z=False"):
        Pair(BY_NAME["AdamWScheduleFree"]).optimizer.load_state_dict(source.optimizer.state_dict())


def test_an_unflattened_distributed_checkpoint_carries_the_name() -> None:
    saved = Pair(BY_NAME["ForeachLaProp"]).train(0, 2, is_all_used=True)
    wanted = Pair(BY_NAME["ForeachAdamW"])
    with pytest.raises(ValueError, match="state of ForeachAdamW, seen that of ForeachLaProp"):
        wanted.load(saved, saved.saved())


@pytest.mark.parametrize("options", [FLAT, StateDictOptions()])
def test_after_a_refusal_the_optimizer_trains_on(options: StateDictOptions) -> None:
    quiet, refused = Pair(BY_NAME["SOAP"]), Pair(BY_NAME["SOAP"])
    source = Pair(BY_NAME["AdamWScheduleFree"]).train(0, 2, is_all_used=True)
    with pytest.raises((ValueError, KeyError)):
        refused.load(quiet, source.saved(options), options)
    assert_alike(refused.train(0, 3), quiet.train(0, 3))


def test_settings_of_the_file_win_among_kin() -> None:
    params = [Parameter(torch.ones(4, 3))]
    source = optim.PaLMForeachSOAP(params, lr=LR)
    for row in randoms(3, params):
        step(source, row)
    target = optim.ForeachSOAP([Parameter(p.detach().clone()) for p in params])
    target.load_state_dict(source.state_dict())
    assert target.param_groups[0]["palm_beta2"] is True
    for row in randoms(2, params, seed=1):
        step(source, row)
        step(target, row)
    assert torch.equal(parameters_of(source)[0], parameters_of(target)[0])
