"""POST /v1/plan: the paper's numbers, transfer, extensions, and what is refused."""

import pytest

from roadless.optim.planning import Family, transfer_base

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def plan(service, **body):
    answer = service.post("/plan", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def by_name(seen):
    return {one["schedule"]["name"]: one for one in seen["ranking"]}


def test_the_papers_numbers_for_400_steps(service):
    """G = D = 1; schedule-free's is DG / sqrt(T), but for the step that its average begins with."""
    seen = plan(service, horizon=400)
    assert {
        n: (round(o["base_lr"], 6), round(o["bound"], 6)) for n, o in by_name(seen).items()
    } == {
        "schedule_free": (0.049938, 0.050062),
        "linear": (0.049563, 0.100630),
        "one_minus_sqrt": (0.073797, 0.101243),
        "cosine": (0.048242, 0.103386),
        "wsd": (0.025374, 0.109323),
        "constant": (0.018176, 0.137545),
    }
    bounds = [one["bound"] for one in seen["ranking"]]
    assert bounds == sorted(bounds)
    assert seen["ranking"][0]["relative_bound"] == 1
    assert (seen["distance"], seen["distance_source"], seen["extension"]) == (1, "unit", None)


def test_rates_scale_with_the_distance_and_bounds_with_both(service):
    unit = by_name(plan(service, horizon=400))["wsd"]
    seen = plan(service, horizon=400, distance=3, grad_norm=2, schedules=[{"name": "wsd"}])
    (scaled,) = seen["ranking"]
    assert scaled["base_lr"] == pytest.approx(unit["base_lr"] * 3 / 2)
    assert scaled["bound"] == pytest.approx(unit["bound"] * 6)
    assert seen["distance_source"] == "given"


def test_arguments_of_schedules_count(service):
    """A cooldown over all steps is linear decay."""
    schedules = [{"name": "wsd", "cooldown_len": 1.0}, {"name": "linear"}, {"name": "wsd"}]
    whole, linear, fifth = (
        one["bound"] for one in plan(service, horizon=400, schedules=schedules)["ranking"]
    )
    assert whole == pytest.approx(linear, rel=1e-12)
    assert linear < fifth


def test_a_tuned_rate_goes_to_other_schedules_and_horizons(service):
    """As the planner transfers it; the tuned schedule itself gets its rate back."""
    tuned = {"schedule": {"name": "wsd"}, "horizon": 2000, "lr": 0.001}
    same = by_name(plan(service, horizon=2000, tuned=tuned))
    assert same["wsd"]["base_lr"] == pytest.approx(0.001)
    seen = plan(service, horizon=8000, tuned=tuned)
    assert seen["distance_source"] == "tuned"
    wsd = Family("wsd", {"cooldown_len": 0.2})
    for name in ("linear", "cosine"):
        expected = transfer_base(
            0.001, source=wsd, source_horizon=2000, target=Family(name), target_horizon=8000
        )
        assert by_name(seen)[name]["base_lr"] == pytest.approx(expected)


def test_one_gradient_norm_a_step(service):
    """Constant ones are one number; falling ones prefer another rate."""
    one = by_name(plan(service, horizon=50, grad_norm=2))
    row = by_name(plan(service, horizon=50, grad_norm=[2] * 50))
    assert row == one
    falling = by_name(plan(service, horizon=50, grad_norm=[4 / (1 + t) for t in range(50)]))
    assert falling["linear"]["base_lr"] != pytest.approx(one["linear"]["base_lr"], rel=0.01)


def test_an_extension_of_wsd_is_the_papers(service):
    seen = plan(service, horizon=400, extend={"from_steps": 4000, "to_steps": 8000})["extension"]
    found = {one["name"]: one for one in seen["continuations"]}
    assert {name: round(one["bound"], 6) for name, one in found.items()} == {
        "tuned": 0.022372,
        "cooldown": 0.022518,
        "second_stage": 0.02309,
        "stretch": 0.025628,
    }
    assert (seen["advised"], seen["made_for"]) == ("cooldown", 4000)
    assert found["cooldown"]["predicted"] is None


def test_an_extension_of_schedule_free_needs_nothing(service):
    run = {"schedule": {"name": "schedule_free"}, "from_steps": 100, "to_steps": 1000}
    seen = plan(service, horizon=400, extend=run)["extension"]
    assert (seen["advised"], seen["made_for"]) == ("go_on", None)


@pytest.mark.parametrize(
    ("body", "pointer", "message"),
    [
        ({}, "/horizon", "required"),
        ({"horizon": 1}, "/horizon", "greater than or equal to 2"),
        ({"horizon": 10**7}, "/horizon", "less than or equal to 1000000"),
        ({"horizon": 9, "schedules": []}, "/schedules", "at least 1"),
        ({"horizon": 9, "schedules": [{"name": "wsd"}] * 21}, "/schedules", "at most 20"),
        ({"horizon": 9, "schedules": [{"name": "step"}]}, "/schedules/0/name", "expected tags"),
        (
            {"horizon": 9, "schedules": [{"name": "wsd", "warmup_steps": 50}]},
            "/schedules/0",
            "expected at most",
        ),
        ({"horizon": 9, "grad_norm": [1, 1]}, "", "expected one grad_norm or 9, one a step, saw 2"),
        ({"horizon": 9, "grad_norm": 0}, "/grad_norm", "greater than or equal to 0.000000000001"),
        (
            {"horizon": 9, "extend": {"from_steps": 9, "to_steps": 9}},
            "/extend/to_steps",
            "expected more than 9 steps and at most 90, saw 9",
        ),
        (
            {
                "horizon": 9,
                "distance": 1,
                "tuned": {"schedule": {"name": "wsd"}, "horizon": 9, "lr": 1},
            },
            "",
            "expected distance or tuned",
        ),
        (
            {
                "horizon": 3,
                "grad_norm": [1, 1, 1],
                "tuned": {"schedule": {"name": "wsd"}, "horizon": 9, "lr": 1},
            },
            "",
            "beside extend or a tuned rate of another horizon",
        ),
        ({"horizon": 9, "horizons": 9}, "/horizons", "not permitted"),
    ],
)
def test_nonsense_is_refused_where_it_stands(service, body, pointer, message):
    answer = service.post("/plan", json=body)
    assert answer.status_code == 422
    faults = answer.json()["errors"]
    assert any(pointer == one["pointer"] and message in one["message"] for one in faults), faults


def test_the_plan_is_for_users(service):
    assert service.http.post("/v1/plan", json={"horizon": 9}).status_code == 401
