"""Every optimizer of the library can be named in a job, with the library's own defaults."""

import inspect
from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from roadless import optim
from roadless.optim import at_average
from roadless.service.contract.job.optimizers import OptimizerSpec, TorchOptimizerSpec
from roadless.worker.setup import build_optimizer, optimizer_class

#: Arguments that are no user's to set: what is trained, what executes, a second spelling of beta.
NOT_SETTINGS = {"self", "params", "base", "foreach"}
PALM_BETAS = (None, None)

ADAPTER: TypeAdapter[OptimizerSpec] = TypeAdapter(OptimizerSpec)


def names_of(union) -> list[str]:
    members = get_args(get_args(union)[0])
    return [name for spec in members for name in get_args(spec.model_fields["name"].annotation)]


NAMES = names_of(OptimizerSpec)


def spec_of(name: str, **fields) -> OptimizerSpec:
    needed = {"base": {"name": "AdamW"}} if "rapper" in name else {}
    return ADAPTER.validate_python({"name": name, **needed, **fields})


def settings_of(make) -> dict:
    parameters = inspect.signature(make.__init__).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.name not in NOT_SETTINGS and p.default != PALM_BETAS
    }


def test_every_optimizer_of_the_library_has_a_name():
    classes = {
        name
        for name in optim.__all__
        if inspect.isclass(getattr(optim, name))
        and issubclass(getattr(optim, name), torch.optim.Optimizer)
    }
    assert classes <= set(NAMES)


@pytest.mark.parametrize(
    ("short", "made"),
    [
        ("sgd_schedulefree", optim.SGDScheduleFree),
        ("adamw_schedulefree", optim.AdamWScheduleFree),
        ("adamw_schedulefree_paper", optim.AdamWScheduleFreePaper),
        ("radam_schedulefree", optim.RAdamScheduleFree),
        ("adamc_schedulefree_plus", optim.AdamCScheduleFreePlusPaper),
        ("schedulefree_wrapper", optim.ScheduleFreeWrapper),
        ("adamw", optim.ForeachAdamW),
        ("laprop", optim.ForeachLaProp),
        ("adopt", optim.ForeachADOPT),
        ("soap", optim.SOAP),
    ],
)
def test_a_short_name_means_its_class(short, made):
    """Several of them have equal signatures, so only the class itself tells them apart."""
    assert optimizer_class(short) is made
    assert optimizer_class(made.__name__) is made


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_signature(name):
    defaults = spec_of(name).model_dump(exclude={"name", "base"})
    assert defaults == settings_of(optimizer_class(name))


@pytest.mark.parametrize("name", names_of(TorchOptimizerSpec))
def test_defaults_of_a_wrapped_optimizer_are_torchs(name):
    spec = TypeAdapter(TorchOptimizerSpec).validate_python({"name": name})
    signature = inspect.signature(getattr(torch.optim, name)).parameters
    fields = spec.model_dump(exclude={"name"})
    assert fields == {field: signature[field].default for field in fields}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_steps_with_a_closure_and_has_an_average(name):
    parameter = torch.nn.Parameter(torch.full((4, 3), 2.0))
    # A rate that RAdam's silent phase and SOAP's first step cannot hide within six steps.
    optimizer = build_optimizer(spec_of(name), params=[parameter])
    before = parameter.detach().clone()

    def closure() -> float:
        optimizer.zero_grad()
        loss = (parameter**2).sum() / 2
        loss.backward()
        return loss.item()

    for _ in range(6):
        optimizer.step(closure)
    with at_average(optimizer):
        assert torch.isfinite(parameter).all()
        assert not torch.equal(parameter, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("field", "value"), [("lr", -1), ("momentumm", 0.9), ("lr", "fast")])
def test_a_wrong_setting_is_refused(name, field, value):
    if "rapper" in name and field == "lr":
        pytest.skip("a wrapper has its rate in its base")
    with pytest.raises(ValidationError, match=field):
        spec_of(name, **{field: value})
