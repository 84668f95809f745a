"""Whatever numbers a request or a rank brings: an answer of finite numbers, or a typed refusal."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from theory_jobs import LAST_ITERATE, SPEC, WITH_WSD

from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.theory.plan import LARGEST, SMALLEST, PlanRequest
from roadless.service.errors import Invalid
from roadless.service.theory.arithmetic import within_doubles
from roadless.service.theory.planner import plan_of
from roadless.service.theory.reading import Record, TheoryUnavailable
from roadless.service.theory.steps import Steps, blocks_of
from roadless.service.theory.views import Wanted, theory_of

few = settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
EDGES = [0.0, 5e-324, 1e-300, 1e-160, 1e-154, 1e-12, 0.5, 1.0, 1e6, 1e12, 1e154, 1e308]


def floats(low, high):
    """Numbers of a range, often at its ends and where squares leave double precision."""
    edges = [edge for edge in EDGES if low <= edge <= high]
    return st.one_of(st.floats(low, high), st.sampled_from([low, high, *edges]))


share, scale = floats(0, 1), floats(SMALLEST, LARGEST)
horizons = st.one_of(st.integers(2, 60), st.sampled_from([1000, 25_000]))
warmup = {"warmup_steps": st.integers(0, 30), "warmup_lr": share}
ending = warmup | {"final_lr": share}
cooldown = ending | {"cooldown_len": share, "decay_type": st.sampled_from(["linear", "sqrt"])}
alpha = {"alpha": floats(5e-324, 100)}
ARGUMENTS = {
    "schedule_free": {},
    "constant": warmup,
    "wsd": cooldown,
    "cosine": ending,
    "linear": ending,
    "one_minus_sqrt": ending,
    "sqrt": cooldown,
    "polynomial_backward": ending | alpha,
    "polynomial_cooldown": cooldown | alpha,
}


@st.composite
def piecewise_constant(draw):
    milestones = sorted(draw(st.sets(st.integers(1, 40), max_size=4)))
    factors = [draw(floats(5e-324, 1e6)) for _ in milestones]
    return {"name": "piecewise_constant", "milestones": milestones, "factors": factors}


schedules = st.one_of(
    piecewise_constant(),
    *(
        st.fixed_dictionaries({"name": st.just(name)}, optional=optional)
        for name, optional in ARGUMENTS.items()
    ),
)


@st.composite
def plan_requests(draw):
    horizon = draw(horizons)
    request = {"horizon": horizon}
    optional = {
        "schedules": st.lists(schedules, min_size=1, max_size=3),
        "grad_norm": st.one_of(scale, st.lists(scale, min_size=horizon, max_size=horizon))
        if horizon <= 60
        else scale,
        "distance": scale,
        "tuned": st.fixed_dictionaries({"schedule": schedules, "horizon": horizons, "lr": scale}),
        "extend": extensions(),
    }
    for name, values in optional.items():
        if draw(st.booleans()):
            request[name] = draw(values)
    return request


@st.composite
def extensions(draw):
    start = draw(horizons)
    end = draw(st.integers(start + 1, 10 * start))
    return {"schedule": draw(schedules), "from_steps": start, "to_steps": end}


def numbers_in(value):
    if isinstance(value, float):
        yield value
    for inner in value.values() if isinstance(value, dict) else ():
        yield from numbers_in(inner)
    for inner in value if isinstance(value, list | tuple) else ():
        yield from numbers_in(inner)


def test_the_law_can_see_a_number_that_is_not_finite():
    assert not np.isfinite(list(numbers_in({"a": [{"b": 1.0}, {"c": float("inf")}]}))).all()


@few
@given(plan_requests())
@example({"horizon": 9, "distance": SMALLEST, "grad_norm": SMALLEST})
@example({"horizon": 9, "distance": LARGEST, "grad_norm": SMALLEST})
def test_a_plan_has_finite_numbers_or_is_refused_where_it_stands(request):
    try:
        asked = PlanRequest.model_validate(request)
    except ValidationError:
        return
    try:
        plan = plan_of(asked)
    except Invalid as error:
        (fault,) = error.errors
        assert "expected" in fault.message
        return
    assert np.isfinite(list(numbers_in(plan.model_dump()))).all()
    assert [one.schedule for one in plan.ranking] == [
        one.schedule for one in sorted(plan.ranking, key=lambda one: one.bound)
    ]


@pytest.mark.parametrize("factors", [[5e-324, 1e-300], [1e6] * 60], ids=["zero", "infinite"])
def test_rates_without_a_bound_are_named(factors):
    schedule = {
        "name": "piecewise_constant",
        "milestones": list(range(1, len(factors) + 1)),
        "factors": factors,
    }
    asked = PlanRequest.model_validate({"horizon": 90, "schedules": [{"name": "wsd"}, schedule]})
    with pytest.raises(Invalid) as refused:
        plan_of(asked)
    assert [fault.pointer for fault in refused.value.errors] == ["/schedules/1"]


@pytest.mark.parametrize("distance", [5e-324, 1e-13, 1e13])
def test_a_distance_beyond_the_range_is_refused_by_the_contract(distance):
    with pytest.raises(ValidationError, match="distance"):
        PlanRequest.model_validate({"horizon": 9, "distance": distance})


logged = floats(0, 1.7e308)


@few
@given(
    data=st.data(),
    spec=st.sampled_from([SPEC, SPEC | LAST_ITERATE, SPEC | WITH_WSD]),
    num_steps=st.integers(2, 30),
    distance=st.one_of(st.none(), scale),
)
def test_whatever_a_job_has_logged_its_theory_is_finite_or_unavailable(
    data, spec, num_steps, distance
):
    def row(values):
        return np.array(data.draw(st.lists(values, min_size=num_steps, max_size=num_steps)))

    eta, norms, losses = row(logged), row(logged), row(floats(-1.7e308, 1.7e308))
    with np.errstate(all="ignore"):
        blocks = blocks_of([Steps(eta, norms)], num_steps=num_steps)
    record = Record(
        job_id="job_1",
        spec=JobSpec.model_validate(spec),
        blocks=blocks,
        largest_rate=float(eta.max()),
        evaluated=np.arange(1, num_steps + 1),
        losses=losses,
        num_missing=0,
    )
    try:
        theory = theory_of(record, Wanted(distance=distance))
    except TheoryUnavailable:
        return
    assert np.isfinite(list(numbers_in(theory.model_dump()))).all()


@pytest.mark.parametrize(
    "compute",
    [
        lambda: np.float64(1e308) * np.float64(10),
        lambda: np.float64(0) / np.float64(0),
        lambda: 1.0 / 0.0,
        lambda: 10.0**400,
    ],
)
def test_what_leaves_double_precision_is_refused_with_words(compute):
    with (
        pytest.raises(Invalid, match="expected a bound within double precision, saw"),
        within_doubles(Invalid),
    ):
        compute()
