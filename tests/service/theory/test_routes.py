"""GET /v1/jobs/{id}/theory: held against the same computed offline, and what it refuses."""

import numpy as np
import pytest
from theory_jobs import (
    EVERY,
    LAST_ITERATE,
    NUM_STEPS,
    RATE,
    SPEC,
    WITH_WSD,
    eval_event,
    grad_norm,
    loss_at,
    step_event,
    train,
    trained,
)

from roadless.optim.planning import Assumptions, Family, extend_by_cooldown, extend_by_factor
from roadless.optim.schedules.schedules import SCHEDULES, WSDSchedule
from roadless.optim.theory.bounds import split_bound, split_schedule_free_bound
from roadless.optim.theory.fitting import fit_losses
from roadless.service.theory import reading

one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def theory(service, job, **params):
    answer = service.get(f"/jobs/{job}/theory", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def exported(service, job):
    """Rates, norms, evaluated steps and losses, as a user gets them."""
    rows = [
        service.get(f"/jobs/{job}/metrics/{name}", params={"buckets": 2000}).json()
        for name in ("optimizer.lr", "grad.norm")
    ]
    rates, norms = (np.array(row["last"]) for row in rows)
    assert rows[0]["x"] == rows[1]["x"] == list(range(1, rates.size + 1))
    curve = service.get(f"/jobs/{job}/eval-curve").json()["data"]
    return rates, norms, [p["step"] for p in curve], [p["loss"] for p in curve]


def distance_of_slope_one(distances, noises, losses):
    """By halving: the slope falls as the distance grows."""
    low, high = 1e-3, 1e3
    for _ in range(60):
        D = np.sqrt(low * high)
        slope = fit_losses(D**2 * distances + noises, losses, method="huber").M
        low, high = (D, high) if slope > 1 else (low, D)
    return np.sqrt(low * high)


@pytest.mark.parametrize("changes", [{}, LAST_ITERATE, WITH_WSD], ids=["average", "last", "wsd"])
def test_the_answer_is_what_the_exported_metrics_give_offline(service, changes):
    """Nothing of the service's own arithmetic is used here."""
    job, _ = trained(service, **changes)
    seen = theory(service, job)
    rates, norms, steps, losses = exported(service, job)
    split = split_bound if changes else split_schedule_free_bound
    terms = [split(rates[:n], norms[:n], D=1.0) for n in steps]
    distances, noises = [t.t1 for t in terms], [t.t2 + t.t3 for t in terms]
    D = distance_of_slope_one(np.array(distances), np.array(noises), losses)
    bounds = D**2 * np.array(distances) + noises
    line = fit_losses(bounds, losses, method="huber")

    assert (seen["distance"], seen["distance_source"]) == (pytest.approx(D, rel=1e-5), "fitted")
    assert seen["fit"]["huber"]["slope"] == pytest.approx(1, abs=1e-5)
    assert [p["step"] for p in seen["data"]] == steps
    assert [p["loss"] for p in seen["data"]] == losses
    assert [p["bound"] for p in seen["data"]] == pytest.approx(bounds, rel=1e-5)
    assert [p["terms"]["last_iterate"] for p in seen["data"]] == pytest.approx(
        [t.t3 for t in terms], rel=1e-9
    )
    predicted = line.predict(bounds)
    assert [p["predicted"] for p in seen["data"]] == pytest.approx(predicted, rel=1e-4)
    assert seen["gap"]["last"] == pytest.approx(losses[-1] - predicted[-1], abs=1e-4)
    assert seen["fit"]["huber"]["offset"] == pytest.approx(line.C, rel=1e-3)
    assert seen["best_factor"] == pytest.approx(
        np.sqrt(D**2 * distances[-1] / noises[-1]), rel=1e-5
    )


def test_alternatives_are_the_tuned_schedules_over_the_jobs_own_norms(service):
    """Base rates and bounds as the schedules' own classes have them, for D = 2."""
    job, _ = trained(service)
    seen = theory(service, job, distance=2)
    _, norms, _, _ = exported(service, job)
    found = {one["schedule"]: one for one in seen["alternatives"]}
    assert set(found) == {
        *("schedule_free", "constant", "wsd", "cosine", "linear", "one_minus_sqrt")
    }
    for name in set(found) - {"schedule_free"}:
        schedule = SCHEDULES[name.replace("_", "-")](steps=NUM_STEPS + 1)
        gamma, omega = schedule.compute_optimal_base(np.append(norms, 0), D=2.0, T=NUM_STEPS)
        assert found[name]["base_lr"] == pytest.approx(gamma, rel=1e-9)
        assert found[name]["relative_lr"] == pytest.approx(gamma / RATE, rel=1e-9)
        assert found[name]["bound"] == pytest.approx(omega, rel=1e-9)
    bounds = [one["bound"] for one in seen["alternatives"]]
    assert bounds == sorted(bounds)


def test_an_extension_of_wsd_is_the_planners(service):
    """Cooldown, second stage and stretching, each bounded along the whole way."""
    job, _ = trained(service, **WITH_WSD)
    end = 3 * NUM_STEPS
    seen = theory(service, job, distance=2, steps=end)["extension"]
    _, norms, _, _ = exported(service, job)
    ahead = np.sqrt(np.mean(norms[-NUM_STEPS // 10 :] ** 2))
    assert seen["grad_norm"] == pytest.approx(ahead)
    norms = np.append(norms, np.full(end - NUM_STEPS, ahead))
    found = {one["name"]: one for one in seen["continuations"]}

    family, assuming = Family("wsd", {"cooldown_len": 0.2}), Assumptions(grad_norms=norms)
    for name, plan in {
        "cooldown": extend_by_cooldown(family, finished=NUM_STEPS, horizon=end, assuming=assuming),
        "second_stage": extend_by_factor(
            family, finished=NUM_STEPS, horizon=end, assuming=assuming
        ),
    }.items():
        eta = RATE * plan.rates / plan.base_lr
        assert found[name]["bound"] == pytest.approx(split_bound(eta, norms, D=2.0).total)
        assert found[name]["starts_at"] == plan.shared_steps
    stretched = WSDSchedule(steps=end + 1, base_lr=RATE).schedule[:end]
    bound = split_bound(stretched, norms, D=2.0).total
    assert found["stretch"]["bound"] == pytest.approx(bound)
    assert seen["advised"] in ("cooldown", "second_stage", "stretch")
    assert seen["made_for"] == NUM_STEPS
    assert (seen["data"][-1]["step"], seen["data"][-1]["bound"]) == (
        end,
        pytest.approx(found[seen["advised"]]["bound"]),
    )


@one_database
def test_a_schedule_free_job_has_nothing_to_redo(service):
    """The promise is the bound of the same rate over more steps; it begins where the job is."""
    job, _ = trained(service)
    seen = theory(service, job)["extension"]
    assert (seen["made_for"], seen["from_step"], seen["to_step"]) == (None, 120, 240)
    assert seen["advised"] == "go_on"
    assert "Nothing needs to be redone" in seen["advice"]
    assert (seen["data"][0]["step"], seen["data"][-1]["step"]) == (120, 240)
    bounds = [point["bound"] for point in seen["data"]]
    assert bounds == sorted(bounds, reverse=True)
    last = theory(service, job)["data"][-1]["bound"]
    assert seen["data"][0]["bound"] == pytest.approx(last, rel=1e-12)


@one_database
@pytest.mark.parametrize("steps", [NUM_STEPS, 10 * NUM_STEPS + 1])
def test_an_extension_that_is_none_is_refused(service, steps):
    job, _ = trained(service)
    answer = service.get(f"/jobs/{job}/theory", params={"steps": steps})
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == "query:steps"
    assert (
        f"more than {NUM_STEPS} steps and at most {10 * NUM_STEPS}, saw {steps}" in fault["message"]
    )


@one_database
@pytest.mark.parametrize("distance", ["0", "-1", "nan", "inf", "far"])
def test_a_distance_that_is_none_is_refused(service, distance):
    job, _ = trained(service)
    answer = service.get(f"/jobs/{job}/theory", params={"distance": distance})
    assert answer.status_code == 422


def test_a_job_without_norms_is_unavailable_and_says_what_is_missing(service):
    job = service.submit(SPEC)
    answer = service.get(f"/jobs/{job}/theory")
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:roadless:problem:theory_unavailable"
    assert "saw none of grad.norm" in answer.json()["detail"]
    assert service.get("/jobs/job_none/theory").status_code == 404


@one_database
def test_rates_of_zero_have_no_bound(service):
    job = service.submit(SPEC)
    rank = service.claim()
    train(rank, lambda step: 0.0, 1, 20)
    answer = service.get(f"/jobs/{job}/theory")
    assert (answer.status_code, answer.json()["type"][-18:]) == (409, "theory_unavailable")
    curve = service.get(f"/jobs/{job}/eval-curve", params={"bound": True}).json()["data"]
    assert [point["bound"] for point in curve] == [None, None]


@one_database
def test_few_evaluations_are_an_answer_without_a_fit(service):
    """The bound needs a distance nevertheless: the one for which the rates are the best."""
    job, _ = trained(service, steps=2 * EVERY)
    seen = theory(service, job)
    assert seen["fit"] is None
    assert "at least 3 evaluations with a bound, saw 2" in seen["no_fit_reason"]
    assert (seen["gap"], seen["distance_source"]) == (None, "assumed")
    assert seen["best_factor"] == pytest.approx(1)
    assert all(point["bound"] > 0 and point["predicted"] is None for point in seen["data"])
    assert "distance_assumed" in {one["code"] for one in seen["caveats"]}


@one_database
def test_losses_that_fall_less_than_every_bound_do_not_tell_the_distance(service):
    """The noise alone falls by more, whatever the distance."""
    job, rank = trained(service, steps=1, **LAST_ITERATE)
    for step in range(2, NUM_STEPS + 1):
        rank.report(step_event(step, grad_norm=20 / step, optimizer_lr=1.0))
        if step % EVERY == 0:
            rank.report(eval_event(step) | {"loss": 1 + 0.01 / step})
    seen = theory(service, job)
    assert seen["distance_source"] == "assumed"
    assert seen["best_factor"] == pytest.approx(1)
    assert seen["fit"]["huber"]["slope"] < 1
    assert "distance_assumed" in {one["code"] for one in seen["caveats"]}


@one_database
def test_a_fit_that_is_not_to_be_trusted_is_told(service):
    """At a distance that is far too small the line is steep; on losses that rise it is poor."""
    job, rank = trained(service, steps=5 * EVERY)
    assert "few_points" in {one["code"] for one in theory(service, job)["caveats"]}
    steep = theory(service, job, distance=0.01)
    assert steep["fit"]["huber"]["slope"] > 1
    assert "slope_above_one" in {one["code"] for one in steep["caveats"]}
    for step in range(5 * EVERY + 1, NUM_STEPS):
        rank.report(step_event(step, grad_norm=1.0, optimizer_lr=RATE))
        if step % EVERY == 0:
            rank.report(eval_event(step) | {"loss": 1 + step / 100})
    poor = theory(service, job)
    assert poor["fit"]["huber"]["median_relative_error"] > 0.05
    assert "poor_fit" in {one["code"] for one in poor["caveats"]}


def test_only_what_the_live_attempt_lived_counts(service):
    """A lost attempt's later steps, with other norms and losses, leave no trace."""
    reference, rank = trained(service)
    expected = theory(service, reference)
    end(service, rank)
    job, rank = trained(service, steps=60)
    rank.save(60, kind="resume")
    for step in range(61, 90):
        rank.report(step_event(step, grad_norm=50.0, optimizer_lr=1.0))
    rank.report(eval_event(70) | {"loss": 9.0})
    rank.ended()
    service.sync(released=[rank.assignment["attempt_id"]])
    rank = service.claim()
    train(rank, lambda step: RATE, 61, NUM_STEPS)
    seen = theory(service, job)
    assert seen["data"] == expected["data"]
    assert seen["extension"] == expected["extension"]


def end(service, rank):
    rank.report({"kind": "finished", "reason": "budget_reached", "step": NUM_STEPS})
    service.sync(released=[rank.assignment["attempt_id"]])


def test_gaps_are_filled_from_their_neighbours_and_told(service):
    """A spool that kept one step in 16: norms and rates lie on lines, so the bounds stay near."""
    job = service.submit(SPEC)
    rank = service.claim()
    for step in range(1, NUM_STEPS + 1):
        if step <= 40 or step % 16 == 0 or step == NUM_STEPS:
            rank.report(step_event(step, grad_norm=grad_norm(step), optimizer_lr=RATE))
        if step % EVERY == 0:
            rank.report(eval_event(step))
    seen = theory(service, job, distance=1)
    (told,) = [one for one in seen["caveats"] if one["code"] == "interpolated"]
    assert "at 74 of 120 steps" in told["text"]
    known = [step for step in range(1, NUM_STEPS + 1) if step <= 40 or step % 16 == 0] + [NUM_STEPS]
    norms = np.interp(np.arange(1, NUM_STEPS + 1), known, [grad_norm(s) for s in known])
    exact = split_schedule_free_bound(np.full(NUM_STEPS, RATE), norms, D=1.0).total
    assert seen["data"][-1]["bound"] == pytest.approx(exact)


@one_database
def test_a_long_series_is_read_in_windows(service, monkeypatch):
    """Windows leave no seam, also where one lies in a gap."""
    job = service.submit(SPEC)
    rank = service.claim()
    train(rank, lambda step: RATE, 1, 45)
    train(rank, lambda step: RATE, 60, NUM_STEPS)
    whole = theory(service, job)
    monkeypatch.setattr(reading, "WINDOW_STEPS", 50)
    assert theory(service, job) == whole


@one_database
def test_many_evaluations_are_thinned_with_both_ends_kept(service):
    job = service.submit(SPEC)
    train(service.claim(), lambda step: RATE, 1, 500, evals=range(1, 501))
    seen = theory(service, job)
    steps = [point["step"] for point in seen["data"]]
    assert (len(steps), steps[0], steps[-1]) == (200, 1, 500)
    assert "thinned" in {one["code"] for one in seen["caveats"]}


def test_the_eval_curve_carries_the_bound_when_asked(service):
    """The same numbers as in the theory's answer; null without asking."""
    job, _ = trained(service)
    expected = {point["step"]: point["bound"] for point in theory(service, job)["data"]}
    curve = service.get(f"/jobs/{job}/eval-curve", params={"bound": True}).json()["data"]
    assert {point["step"]: point["bound"] for point in curve} == expected
    assert [point["loss"] for point in curve] == [loss_at(step) for step in expected]
    later = service.get(f"/jobs/{job}/eval-curve", params={"bound": True, "since": 60}).json()
    assert [p["bound"] for p in later["data"]] == [b for s, b in expected.items() if s > 60]
    without = service.get(f"/jobs/{job}/eval-curve").json()["data"]
    assert {point["bound"] for point in without} == {None}


@one_database
def test_pages_of_the_curve_with_bounds_are_shorter(service):
    job = service.submit(SPEC)
    train(service.claim(), lambda step: RATE, 1, 210, evals=range(1, 211))
    first = service.get(f"/jobs/{job}/eval-curve", params={"bound": True}).json()["data"]
    assert len(first) == 200
    assert len(service.get(f"/jobs/{job}/eval-curve").json()["data"]) == 210


@one_database
def test_even_norms_are_the_root_mean_square_of_all(service):
    """Bounds, other schedules and the norms ahead; nonsense is refused."""
    job, _ = trained(service)
    seen = theory(service, job, distance=1, norms="even")
    norm = np.sqrt(np.mean([grad_norm(step) ** 2 for step in range(1, NUM_STEPS + 1)]))
    exact = split_schedule_free_bound(np.full(NUM_STEPS, RATE), norm, D=1.0).total
    assert (seen["norms"], seen["data"][-1]["bound"]) == ("even", pytest.approx(exact))
    assert seen["grad_norm"] == seen["extension"]["grad_norm"] == pytest.approx(norm)
    linear = next(one for one in seen["alternatives"] if one["schedule"] == "linear")
    plan = service.post("/plan", json={"horizon": NUM_STEPS, "grad_norm": norm}).json()
    expected = next(one for one in plan["ranking"] if one["schedule"]["name"] == "linear")
    assert linear["base_lr"] == pytest.approx(expected["base_lr"])
    assert service.get(f"/jobs/{job}/theory", params={"norms": "mean"}).status_code == 422


@one_database
def test_a_clipped_gradient_counts_as_clipped(service):
    """Norms are logged before clipping; the steps were taken after it."""
    clipped, _ = trained(service, training={"batch_size": 64, "max_grad_norm": 1.2})
    seen = theory(service, clipped, distance=1)
    norms = [min(grad_norm(step), 1.2) for step in range(1, NUM_STEPS + 1)]
    exact = split_schedule_free_bound(np.full(NUM_STEPS, RATE), norms, D=1.0).total
    assert seen["data"][-1]["bound"] == pytest.approx(exact)
    assert "clipping" in {one["code"] for one in seen["caveats"]}
