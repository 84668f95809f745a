"""What the theory does not cover is said of every job that it does not cover, and of no other."""

import pytest
from theory_jobs import SPEC

from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.theory.analysis import CaveatCode
from roadless.service.theory.averaging import Averaging, averaging_of
from roadless.service.theory.caveats import of_spec


def codes(**changes):
    return {str(one.code) for one in of_spec(JobSpec.model_validate(SPEC | changes))}


def optimizer(name, **settings):
    return {"optimizer": {"name": name, **settings}}


def test_plain_steps_on_a_convex_loss_have_none():
    assert codes() == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": {"kind": "preset", "name": "mlp"}}, {"non_convex"}),
        ({"model": {"kind": "preset", "name": "convnet"}}, {"non_convex"}),
        (optimizer("sgd_schedulefree", weight_decay=0.1), {"weight_decay"}),
        (optimizer("adamw_schedulefree"), {"adaptive_optimizer"}),
        (optimizer("adamw_schedulefree", inner_momentum=0.5), {"adaptive_optimizer", "momentum"}),
        (optimizer("adamc_schedulefree_plus"), {"adaptive_optimizer", "momentum"}),
        (optimizer("adamw"), {"adaptive_optimizer", "momentum"}),
        (optimizer("schedulefree_wrapper", base={"name": "SGD"}), set()),
        (optimizer("schedulefree_wrapper", base={"name": "SGD", "momentum": 0.9}), {"momentum"}),
        (
            optimizer("schedulefree_wrapper", base={"name": "AdamW"}),
            {"adaptive_optimizer", "momentum", "weight_decay"},
        ),
        (
            optimizer("schedulefree_wrapper", base={"name": "SGD"}, weight_decay_at_y=1),
            {"weight_decay"},
        ),
        ({"training": {"max_grad_norm": 1}}, {"clipping"}),
        (
            optimizer("SFPaLMForeachSOAP", weight_decay=0),
            {"adaptive_optimizer", "clipping"},
        ),
        (
            optimizer("soap", weight_decay=0, schedule_free=True, gradient_clip_val=1),
            {"adaptive_optimizer", "clipping"},
        ),
    ],
)
def test_each_departure_from_the_theory_is_told(changes, expected):
    assert codes(**changes) == expected


def test_every_code_is_in_the_document(request):
    text = (request.config.rootpath / "docs" / "theory.md").read_text()
    assert [code for code in CaveatCode if f"`{code}`" not in text] == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "sgd_schedulefree"}, Averaging(0, 2)),
        ({"name": "radam_schedulefree", "r": 1, "weight_lr_power": 1}, Averaging(1, 1)),
        ({"name": "adamc_schedulefree_plus", "c_warmup": 7}, Averaging(0, 2, skipped=7)),
        ({"name": "schedulefree_wrapper", "base": {"name": "SGD"}}, Averaging(0, 2)),
        ({"name": "soap", "schedule_free": True}, Averaging(0, 2)),
        ({"name": "SFPaLMForeachSOAP"}, Averaging(0, 2)),
        ({"name": "PrecondScheduleSFPaLMForeachSOAP"}, Averaging(0, 2)),
        ({"name": "ForeachSFAdamW"}, Averaging(0, 2)),
        ({"name": "soap"}, None),
        ({"name": "ForeachSOAP"}, None),
        ({"name": "PrecondSchedulePaLMForeachSOAP"}, None),
        ({"name": "adamw"}, None),
    ],
)
def test_what_is_averaged_is_read_off_the_specification(settings, expected):
    spec = JobSpec.model_validate(SPEC | {"optimizer": settings})
    assert averaging_of(spec.optimizer) == expected
