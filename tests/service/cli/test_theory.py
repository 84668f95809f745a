"""``roadless theory`` and ``roadless plan`` as processes against the real app."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from theory_jobs import EVERY, LAST_ITERATE, SPEC, WITH_WSD, trained

from roadless.optim.schedules.schedules import WSDSchedule
from roadless.service.client import Client
from roadless.service.contract.theory.plan import PlanRequest

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def roadless(url, settings) -> Run:
    """Runs ``roadless`` in a wide terminal: (exit code, stdout, stderr)."""
    given = {"ROADLESS_URL": url, "ROADLESS_HOME": str(settings.home_dir), "COLUMNS": "120"}

    def run(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "roadless.service.cli", *arguments],
            env=os.environ | given,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def client(url, service) -> Iterator[Client]:
    with Client(url, service.user["Authorization"].removeprefix("Bearer ")) as made:
        yield made


def cells(out: str, row: str) -> list[str]:
    """The words of the first line whose first word is ``row``."""
    return next(words for line in out.splitlines() if (words := line.split())[:1] == [row])


def test_theory_prints_the_numbers_of_the_endpoint(service, roadless, client):
    job, _ = trained(service, **WITH_WSD)
    seen = client.theory(job, steps=360)
    code, out, _ = roadless("theory", job, "--steps", "360")
    assert code == 0
    last = seen.data[-1]
    assert cells(out, "120")[1:] == [
        f"{value:.4g}" for value in (last.loss, last.predicted, last.gap, last.bound)
    ]
    wsd = next(one for one in seen.alternatives if one.schedule == "wsd")
    assert cells(out, "wsd")[1:] == [
        f"{value:.4g}" for value in (wsd.base_lr, wsd.relative_lr, wsd.bound, wsd.predicted)
    ]
    (way,) = [one for one in seen.extension.continuations if one.name == "cooldown"]
    assert cells(out, "cooldown")[1:4] == [
        str(way.starts_at),
        f"{way.base_lr:.4g}",
        f"{way.cooldown_len:.4g}",
    ]
    assert seen.extension.advice.split(",")[0] in out
    assert all(str(caveat.code) in out for caveat in seen.caveats)
    assert "From 120 to 360 steps" in out


def test_a_given_distance_is_used(service, roadless):
    job, _ = trained(service)
    code, out, _ = roadless("theory", job, "--distance", "2.5")
    assert (code, cells(out, "distance")[2:4]) == (0, ["2.5", "(given)"])


def test_a_job_with_few_evaluations_says_why_there_is_no_fit(service, roadless):
    job, _ = trained(service, steps=EVERY, **LAST_ITERATE)
    code, out, _ = roadless("theory", job)
    assert code == 0
    assert "expected at least 3 evaluations with a bound, saw 1" in out
    assert "from scratch" in out


def test_theory_as_json_is_the_answer(service, roadless, client):
    job, _ = trained(service)
    code, out, _ = roadless("theory", job, "--json")
    assert (code, json.loads(out)) == (0, client.theory(job).model_dump(mode="json"))


def test_a_job_without_norms_is_said_in_a_line(service, roadless):
    job = service.submit(SPEC)
    code, _, err = roadless("theory", job)
    assert (code, err.count("\n")) == (1, 1)
    assert "saw none of grad.norm" in err


def test_plan_prints_the_ranking_and_the_extension(roadless):
    code, out, _ = roadless(
        *("plan", "--horizon", "400", "--schedule", "wsd,cooldown_len=0.5"),
        *("--schedule", "piecewise_constant,milestones=[100,200],factors=[0.5,0.1]"),
        *("--schedule", "linear", "--extend", "4000:8000:wsd"),
    )
    assert code == 0
    assert cells(out, "linear")[1:] == ["0.04956", "0.1006", "1"]
    half = WSDSchedule(steps=401, cooldown_len=0.5)
    gamma, omega = half.compute_optimal_base(1.0, D=1.0, T=400)
    assert cells(out, "wsd,cooldown_len=0.5")[1:3] == [f"{gamma:.4g}", f"{omega:.4g}"]
    assert "piecewise_constant" in out
    assert cells(out, "cooldown")[:5] == ["cooldown", "2,925", "0.008118", "0.6344", "-"]
    assert cells(out, "second_stage")[4:6] == ["0.525", "0.02309"]


def test_plan_transfers_a_tuned_rate(roadless):
    arguments = ("--tuned", "1e-3:50000:wsd", "--schedule", "linear", "--json")
    code, out, _ = roadless("plan", "--horizon", "50000", *arguments)
    plan = json.loads(out)
    assert (code, plan["distance_source"]) == (0, "tuned")
    assert plan["ranking"][0]["base_lr"] == pytest.approx(0.00194, abs=5e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--horizon", "1"), "/horizon: "),
        (("--horizon", "9", "--schedule", "step"), "/schedules/0/name: "),
        (("--horizon", "9", "--schedule", "wsd,cooldown=1"), "/schedules/0/cooldown: "),
        (("--horizon", "9", "--schedule", "wsd,{"), "expected --schedule NAME[,KEY=VALUE...]"),
        (("--horizon", "9", "--tuned", "0.1:wsd"), "expected --tuned LR:HORIZON:SCHEDULE"),
        (("--horizon", "9", "--extend", "9:9:wsd"), "/extend/to_steps: "),
    ],
)
def test_a_wrong_plan_is_said_where_it_is_wrong(roadless, arguments, message):
    code, _, err = roadless("plan", *arguments)
    assert code == 2
    assert message in err


def test_the_client_plans_with_a_parsed_request_too(client):
    request = PlanRequest(horizon=400, distance=2.0)
    assert client.plan(request) == client.plan({"horizon": 400, "distance": 2.0})


def test_the_client_reads_all_pages_of_bounds(service, client):
    job, _ = trained(service)
    points = client.eval_curve(job, bound=True)
    assert [point.step for point in points] == list(range(EVERY, 121, EVERY))
    assert all(point.bound > 0 for point in points)
