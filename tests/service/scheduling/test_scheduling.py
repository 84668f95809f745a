"""What runners are told: nothing twice, nothing lost, and the truth about what is held."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from played import NODE, Rank
from sqlalchemy import text
from stage import LEASE_SECONDS, staged

from roadless.service.contract.ids import new_id
from roadless.service.contract.states import Reason
from roadless.service.db.tables import JobRow
from roadless.service.errors import Fenced, NotFound
from roadless.service.jobs import store
from roadless.service.scheduling import routes
from roadless.service.scheduling.store import QUEUE_PAGE

ONE_RANK = {"parallelism": {"num_workers": 1}}


@pytest.fixture
def stage(database_url, tmp_path):
    with staged(database_url, tmp_path) as stage:
        yield stage


# ---- what is handed out --------------------------------------------------------------------------


def test_runners_that_sync_at_once_never_get_the_same_job(stage, digits_spec):
    job_ids = {stage.submit({**digits_spec, **ONE_RANK}) for _ in range(24)}
    runners = [stage.register(f"runner-{i}") for i in range(4)]
    together = threading.Barrier(4)

    def claim(runner_id):
        together.wait()
        return stage.sync(runner_id, free_cpus=12).start

    with ThreadPoolExecutor(4) as pool:
        started = [one for reply in pool.map(claim, runners) for one in reply]
    for runner_id in runners:  # what one passed over while another looked at it
        mine = [row.id for row in stage.attempts() if row.runner_id == runner_id]
        started += stage.sync(runner_id, alive=mine, free_cpus=12 - len(mine)).start
    assert sorted(one.job_id for one in started) == sorted(job_ids)
    assert len({one.token for one in started}) == 24
    assert {row.fence for row in stage.attempts()} == {1}


def test_priority_then_age_decides(stage, digits_spec):
    spec = {**digits_spec, **ONE_RANK}
    old, new, high = [stage.submit({**spec, "priority": priority}) for priority in (0, 0, 1)]
    reply = stage.sync(stage.register(), free_cpus=2)
    assert [one.job_id for one in reply.start] == [high, old]
    assert stage.job(new).phase == "QUEUED"


def test_what_was_handed_out_and_not_seen_yet_is_not_handed_out_twice(stage, digits_spec):
    runner_id = stage.register()
    stage.submit(digits_spec)
    first = stage.claim(runner_id, free_cpus=3)
    second = stage.submit(digits_spec)
    again = stage.sync(runner_id, free_cpus=3).start
    assert [one.attempt_id for one in again] == [first.attempt_id], "two of three cpus are taken"
    assert stage.job(second).phase == "QUEUED"


def test_a_lost_answer_is_given_again_and_its_token_is_dead(stage, digits_spec):
    job_id, runner_id = stage.submit(digits_spec), stage.register()
    lost = stage.claim(runner_id)
    stage.pass_time(10)
    again = stage.claim(runner_id)
    assert (again.attempt_id, again.fence) == (lost.attempt_id, 1)
    assert again.token != lost.token
    with pytest.raises(Fenced):
        stage.report(lost.token)
    stage.report(again.token)
    (attempt,) = stage.attempts()
    assert attempt.lease_until == stage.now + timedelta(seconds=LEASE_SECONDS)
    assert stage.job(job_id).fence == 1


def test_what_was_seen_once_is_not_handed_out_again(stage, digits_spec):
    stage.submit(digits_spec)
    runner_id = stage.register()
    attempt_id = stage.claim(runner_id).attempt_id
    reply = stage.sync(runner_id, alive=[attempt_id])
    assert (reply.start, reply.stop) == ([], [])


def test_an_attempt_that_vanished_is_lost_and_its_job_recovers(stage, digits_spec):
    job_id, runner_id = stage.submit(digits_spec), stage.register()
    attempt_id = stage.claim(runner_id).attempt_id
    stage.sync(runner_id, alive=[attempt_id])
    reply = stage.sync(runner_id, alive=[])
    assert (reply.start, reply.stop) == ([], [attempt_id]), "not before its seats are free"
    job = stage.job(job_id)
    assert (job.phase, job.reason) == ("RECOVERING", "rank_died")
    (again,) = stage.sync(runner_id, released=[attempt_id]).start
    assert (again.job_id, again.fence) == (job_id, 2)


def test_an_attempt_that_the_service_does_not_know_is_stopped(stage):
    unknown = new_id("att")
    assert stage.sync(stage.register(), alive=[unknown]).stop == [unknown]


def test_what_is_left_of_an_attempt_that_nobody_wants_is_stopped(stage, digits_spec):
    """Seats without ranks: of a start that failed, or of what another service had started."""
    job_id, runner_id = stage.submit(digits_spec), stage.register()
    attempt_id, unknown = stage.claim(runner_id).attempt_id, new_id("att")
    held = [attempt_id, unknown]
    assert stage.sync(runner_id, alive=[attempt_id], held=held).stop == [unknown]
    stage.cancel(job_id)
    assert stage.sync(runner_id, held=held).stop == sorted(held)
    stage.sync(runner_id, released=held)
    assert stage.job(job_id).phase == "CANCELLED"
    assert stage.sync(runner_id, held=[attempt_id]).stop == [attempt_id], "although it was released"


def test_an_attempt_that_holds_seats_and_is_not_whole_is_lost(stage, digits_spec):
    job_id, runner_id = stage.submit(digits_spec), stage.register()
    attempt_id = stage.claim(runner_id).attempt_id
    stage.sync(runner_id, alive=[attempt_id], held=[attempt_id])
    assert stage.sync(runner_id, held=[attempt_id]).stop == [attempt_id]
    assert stage.job(job_id).reason == "rank_died"


def test_a_release_of_an_attempt_that_runs_is_not_believed(stage, digits_spec):
    job_id, runner_id = stage.submit(digits_spec), stage.register()
    attempt_id = stage.claim(runner_id).attempt_id
    stage.sync(runner_id, alive=[attempt_id], released=[attempt_id])
    (attempt,) = stage.attempts()
    assert (attempt.released_at, stage.job(job_id).phase) == (None, "STARTING")


def test_an_ended_attempt_is_stopped_until_it_is_released(stage, digits_spec):
    job_id, runner_id = stage.submit(digits_spec), stage.register()
    attempt_id = stage.claim(runner_id).attempt_id
    stage.cancel(job_id)
    for _ in range(2):
        assert stage.sync(runner_id).stop == [attempt_id]
    assert stage.job(job_id).phase == "CANCELLING"
    assert stage.sync(runner_id, released=[attempt_id]).stop == []
    assert stage.job(job_id).phase == "CANCELLED"


def test_a_runner_that_never_registered_is_told_so(stage):
    with pytest.raises(NotFound, match="register first"):
        stage.sync("run_x")


def test_the_same_name_is_the_same_runner_though_it_registers_twice_at_once(service):
    together = threading.Barrier(8)

    def register(_):
        together.wait()
        body = {"name": "cluster"}
        return service.http.post("/internal/v1/runners", json=body, headers=service.runner)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(register, range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["runner_id"] for answer in answers}) == 1


# ---- what does not fit hides nothing -------------------------------------------------------------

BIG = {"training": {"batch_size": 64}, "parallelism": {"num_workers": 64}}


def test_jobs_that_fit_nowhere_hide_none_behind_them(stage, digits_spec):
    for _ in range(2 * QUEUE_PAGE + 1):
        stage.submit({**digits_spec, **BIG})
    small = [stage.submit({**digits_spec, **ONE_RANK}) for _ in range(2)]
    reply = stage.sync(stage.register(), free_cpus=2)
    assert [one.job_id for one in reply.start] == small


def test_neither_do_jobs_of_many_shapes(stage, digits_spec, monkeypatch):
    monkeypatch.setattr("roadless.service.scheduling.store.QUEUE_PAGE", 3)
    monkeypatch.setattr("roadless.service.scheduling.sync.SHAPES_LEFT_OUT", 2)
    for cpus in range(5, 17):
        shape = {"num_workers": 1, "cpus_per_worker": cpus}
        stage.submit({**digits_spec, "priority": cpus % 3, "parallelism": shape})
    small = stage.submit({**digits_spec, **ONE_RANK})
    reply = stage.sync(stage.register(), free_cpus=4)
    assert [one.job_id for one in reply.start] == [small]


def test_an_elastic_job_of_many_sizes_is_found_behind_those_without(
    stage, digits_spec, monkeypatch
):
    """They ask for the same at most, so only their smallest size tells them apart."""
    monkeypatch.setattr("roadless.service.scheduling.store.QUEUE_PAGE", 3)
    for _ in range(7):
        stage.submit({**digits_spec, "parallelism": {"num_workers": 8}})
    elastic = {"min_workers": 1, "num_workers": 8}
    job_id = stage.submit({**digits_spec, "parallelism": elastic})
    (start,) = stage.sync(stage.register(), free_cpus=2).start
    assert (start.job_id, start.num_workers) == (job_id, 2)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    queue=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=12),
    free_cpus=st.integers(0, 8),
)
def test_pages_of_the_queue_choose_what_the_whole_queue_would(stage, digits_spec, queue, free_cpus):
    """Whatever a page holds: priority, then age, and who does not fit is passed over."""
    stage.empty()
    submitted = []
    for priority, cpus in queue:
        shape = {"num_workers": 1, "cpus_per_worker": cpus}
        job_id = stage.submit({**digits_spec, "priority": priority, "parallelism": shape})
        submitted.append((job_id, priority, cpus))
        stage.pass_time(1)
    expected, free = [], free_cpus
    for job_id, _, cpus in sorted(submitted, key=lambda one: -one[1]):
        if cpus <= free:
            expected.append(job_id)
            free -= cpus
    with mock.patch("roadless.service.scheduling.store.QUEUE_PAGE", 2):
        reply = stage.sync(stage.register(), free_cpus=free_cpus)
    assert [one.job_id for one in reply.start] == expected


# ---- runners that go away ------------------------------------------------------------------------


def lost_on(stage, spec, name):
    """A job whose attempt ended on a runner that has not released it, after the first lease."""
    stage.thaw()
    job_id, runner_id = stage.submit(spec), stage.register(name)
    token = stage.claim(runner_id).token
    stage.sync(runner_id, alive=[row.id for row in stage.attempts()])
    ended = {"kind": "failed", "reason": "worker_error", "message": "", "seq": 1}
    stage.report(token, ended)
    return job_id, runner_id


def test_a_job_waits_for_its_seats_while_their_runner_lives(stage, digits_spec):
    job_id, runner_id = lost_on(stage, digits_spec, "a")
    other = stage.register("b")
    for _ in range(int(2 * LEASE_SECONDS)):
        stage.pass_time(1)
        stage.sync(runner_id, free_cpus=0)
        assert stage.sync(other).start == []
    assert stage.job(job_id).phase == "RECOVERING"


def test_another_runner_takes_the_job_of_one_that_is_silent_for_a_lease(stage, digits_spec):
    job_id, _ = lost_on(stage, digits_spec, "a")
    other = stage.register("b")
    stage.live(LEASE_SECONDS - 1)
    assert stage.sync(other).start == []
    stage.live(2)
    assert [one.job_id for one in stage.sync(other).start] == [job_id]


def test_nobody_is_silent_while_leases_are_frozen(stage, digits_spec):
    """After the service was away, the runner that holds the seats gets its time to speak."""
    job_id, _ = lost_on(stage, digits_spec, "a")
    other = stage.register("b")
    stage.live(5)
    stage.pass_time(3600)  # suspended
    stage.tick()
    assert stage.sync(other).start == []
    stage.live(LEASE_SECONDS + 1)
    assert [one.job_id for one in stage.sync(other).start] == [job_id]


def test_terminal_waits_for_the_silent_runners_seats_too(stage, digits_spec):
    """P3: the job went on elsewhere, but what it held first is still held."""
    job_id, silent = lost_on(stage, digits_spec, "a")
    other = stage.register("b")
    stage.live(LEASE_SECONDS + 1)
    (second,) = stage.sync(other).start
    done = {"kind": "finished", "reason": "budget_reached", "step": 1, "seq": 1}
    stage.report(second.token, done)
    stage.sync(other, released=[second.attempt_id])
    assert stage.job(job_id).phase == "FINISHING"
    first = next(row.id for row in stage.attempts() if row.fence == 1)
    stage.sync(silent, released=[first])
    assert stage.job(job_id).phase == "SUCCEEDED"


# ---- polls ---------------------------------------------------------------------------------------


def test_a_poll_that_was_overtaken_says_nothing_and_unsays_nothing(stage, digits_spec):
    """A killed runner leaves its poll behind; its successor has said something newer since."""
    runner_id = stage.register()
    stage.sync(runner_id)
    old_look = stage.now
    stage.pass_time(1)
    job_id = stage.submit(digits_spec)
    attempt_id = stage.claim(runner_id).attempt_id
    stage.pass_time(1)
    stage.sync(runner_id, alive=[attempt_id])
    assert stage.sync(runner_id, alive=[], looked_at=old_look) is None
    assert stage.job(job_id).phase == "STARTING"


def poll(service, runner_id, seconds, **said):
    body = {"nodes": [NODE], "wait_seconds": seconds, **said}
    url = f"/internal/v1/runners/{runner_id}/sync"
    return service.http.post(url, json=body, headers=service.runner).json()


@pytest.fixture
def runner_id(service):
    body = {"name": "cluster"}
    answer = service.http.post("/internal/v1/runners", json=body, headers=service.runner)
    return answer.json()["runner_id"]


def test_a_poll_ends_as_soon_as_there_is_something_to_do(
    service, runner_id, digits_spec, monkeypatch
):
    monkeypatch.setattr(routes, "LOOK_AGAIN_SECONDS", 60.0)  # only the bell can wake it
    for act in (lambda: service.submit(digits_spec), cancel_all(service)):
        alive = [one["attempt"]["id"] for one in jobs_of(service)]
        with ThreadPoolExecutor(1) as pool:
            polling = pool.submit(poll, service, runner_id, 30, alive=alive)
            time.sleep(0.1)
            act()
            reply = polling.result(timeout=10)
        assert reply["start"] or reply["stop"]


def jobs_of(service):
    return service.get("/jobs").json()["data"]


def cancel_all(service):
    return lambda: [service.post(f"/jobs/{job['id']}/cancel") for job in jobs_of(service)]


def test_a_poll_looks_again_though_another_replica_rang_its_own_bell(
    service, runner_id, digits_spec, monkeypatch
):
    monkeypatch.setattr(routes, "LOOK_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(service.http.app.state.wakeups, "ring", lambda: None)
    with ThreadPoolExecutor(1) as pool:
        polling = pool.submit(poll, service, runner_id, 30)
        time.sleep(0.1)
        service.submit(digits_spec)
        assert len(polling.result(timeout=10)["start"]) == 1


def test_a_poll_of_a_dead_runner_ends_when_its_successor_calls(
    service, runner_id, digits_spec, monkeypatch
):
    monkeypatch.setattr(routes, "LOOK_AGAIN_SECONDS", 0.05)
    with ThreadPoolExecutor(1) as pool:
        polling = pool.submit(poll, service, runner_id, 30)
        time.sleep(0.1)
        poll(service, runner_id, 0)
        assert polling.result(timeout=10) == {"start": [], "stop": []}


def test_a_poll_without_work_answers_in_time(service, runner_id):
    assert poll(service, runner_id, 0.1) == {"start": [], "stop": []}


# ---- together ------------------------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_saying_why_jobs_wait_does_not_wait_for_a_claim(stage, digits_spec):
    """It passes over the job that a claim holds, and explains the others."""
    held, other = stage.submit(digits_spec), stage.submit(digits_spec)
    with stage.db.write() as claim:
        store.get(claim, held, "default", lock=True)
        stage.tick()
        with stage.db.read() as session:
            said = {job_id: session.get(JobRow, job_id).reason for job_id in (held, other)}
    assert said == {held: Reason.WAITING_FOR_CAPACITY, other: Reason.NO_RUNNER}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_ticks_syncs_reports_and_users_never_wait_for_each_other_in_a_circle(stage, digits_spec):
    """Many transactions that lock several rows: PostgreSQL would end one side of a deadlock."""
    stage.keeper.freeze(datetime(2020, 1, 1, tzinfo=UTC))
    runners = [stage.register(f"runner-{i}") for i in range(2)]
    for _ in range(12):
        stage.submit({**digits_spec, **ONE_RANK})
    tokens = {
        one.attempt_id: one.token
        for runner_id in runners
        for one in stage.sync(runner_id, free_cpus=6).start
    }
    until, errors = time.monotonic() + 1.5, []

    def keep(act):
        while time.monotonic() < until:
            try:
                act()
            except Fenced:
                pass
            except Exception as error:
                errors.append(error)

    def report_all():
        for token in tokens.values():
            stage.report(token)

    def lose_all():
        for runner_id in runners:
            stage.sync(runner_id, alive=list(tokens), released=list(tokens), free_cpus=0)
            stage.sync(runner_id, alive=[], released=list(tokens), free_cpus=6)

    def users():
        for job in stage.jobs():
            stage.stop(job.id) if job.phase == "RUNNING" else None

    acts = [report_all, lose_all, lose_all, stage.tick, stage.tick, users]
    with ThreadPoolExecutor(len(acts)) as pool:
        list(pool.map(keep, acts))
    assert errors == []
    time.sleep(0.6)  # PostgreSQL counts with a delay
    with stage.db.read() as session:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert session.scalar(text(query)) == 0


def test_a_rank_hears_nothing_of_another_jobs_wishes(service, digits_spec):
    spec = {**digits_spec, **ONE_RANK}
    job_id, first = service.running(spec)
    service.submit(spec)
    second = Rank(service.http, service.sync(alive=[first.assignment["attempt_id"]])["start"][0])
    service.post(f"/jobs/{job_id}/stop")
    assert second.report().json()["desired"] == "run"
    assert first.report().json()["desired"] == "stop"


# ---- elastic jobs --------------------------------------------------------------------------------

ELASTIC = {
    "parallelism": {"min_workers": 1, "max_workers": 4},
    "training": {"batch_size": 12},
    "checkpoints": {"state_every_steps": 5},
}


def step(number):
    position = {"samples": number, "tokens": 0, "wall_seconds": 1.0, "gpu_seconds": 0.0}
    return {"kind": "step", "seq": number, "step": number, "values": {}, **position}


def growing(stage, seconds):
    """Let elastic jobs keep their size for this long."""
    stage.deadlines = replace(stage.deadlines, grow_seconds=seconds)


def running(stage, spec, *, free_cpus):
    """An elastic job that has made its first step."""
    job_id, runner_id = stage.submit({**spec, **ELASTIC}), stage.register()
    taken = stage.claim(runner_id, free_cpus=free_cpus)
    stage.report(taken.token, step(1))
    return job_id, runner_id, taken


@pytest.mark.parametrize(("free_cpus", "workers"), [(9, 4), (4, 4), (3, 3), (2, 2), (1, 1)])
def test_an_elastic_job_starts_with_what_there_is(stage, digits_spec, free_cpus, workers):
    _, _, taken = running(stage, digits_spec, free_cpus=free_cpus)
    assert taken.num_workers == workers


def test_an_attempt_after_a_loss_has_the_size_that_fits(stage, digits_spec):
    job_id, runner_id, taken = running(stage, digits_spec, free_cpus=4)
    stage.sync(runner_id, alive=[taken.attempt_id], free_cpus=0)
    stage.sync(runner_id, alive=[], free_cpus=0)
    (again,) = stage.sync(runner_id, released=[taken.attempt_id], free_cpus=2).start
    assert (again.job_id, again.num_workers) == (job_id, 2)


def test_a_small_attempt_is_asked_to_grow_once_and_not_too_soon(stage, digits_spec):
    growing(stage, 300)
    job_id, runner_id, taken = running(stage, digits_spec, free_cpus=2)
    alive = [taken.attempt_id]
    stage.sync(runner_id, alive=alive, free_cpus=2)
    assert not stage.report(taken.token).resize
    stage.pass_time(301)
    stage.sync(runner_id, alive=alive, free_cpus=0)
    assert not stage.report(taken.token).resize, "no capacity is free"
    for _ in range(2):
        stage.sync(runner_id, alive=alive, free_cpus=1)
        assert stage.report(taken.token).resize
    (attempt,) = stage.attempts()
    assert attempt.grow_to == 3
    assert stage.codes(job_id).count("attempt.grows") == 1


def test_room_that_a_waiting_job_takes_is_not_offered(stage, digits_spec):
    growing(stage, 0)
    _, runner_id, taken = running(stage, digits_spec, free_cpus=2)
    waiting = stage.submit({**digits_spec, "parallelism": {"num_workers": 2}})
    reply = stage.sync(runner_id, alive=[taken.attempt_id], free_cpus=2)
    assert [one.job_id for one in reply.start] == [waiting]
    assert not stage.report(taken.token).resize


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_growth_of_a_job_that_another_holds_is_noted_once_it_lets_go(stage, digits_spec):
    """Its history is written by whoever holds it, so that no reader of it passes a line by."""
    growing(stage, 0)
    job_id, runner_id, taken = running(stage, digits_spec, free_cpus=2)
    with stage.db.write() as session:
        store.get(session, job_id, "default", lock=True)
        stage.sync(runner_id, alive=[taken.attempt_id], free_cpus=2)
        assert stage.codes(job_id).count("attempt.grows") == 0
    stage.sync(runner_id, alive=[taken.attempt_id], free_cpus=2)
    assert stage.codes(job_id).count("attempt.grows") == 1


def test_a_job_that_its_user_stops_does_not_grow(stage, digits_spec):
    growing(stage, 0)
    job_id, runner_id, taken = running(stage, digits_spec, free_cpus=2)
    stage.stop(job_id)
    stage.sync(runner_id, alive=[taken.attempt_id], free_cpus=4)
    assert not stage.report(taken.token).resize


def test_a_job_that_has_left_to_grow_goes_on_larger_and_has_lost_nothing(stage, digits_spec):
    growing(stage, 0)
    job_id, runner_id, taken = running(stage, digits_spec, free_cpus=2)
    stage.sync(runner_id, alive=[taken.attempt_id], free_cpus=2)
    ending = {"kind": "finished", "seq": 2, "reason": "resized", "step": 5}
    stage.report(taken.token, ending)
    job = stage.job(job_id)
    assert (job.phase, job.reason, job.losses_in_a_row) == ("RECOVERING", "resized", 0)
    reply = stage.sync(runner_id, released=[taken.attempt_id], free_cpus=4)
    assert [(one.job_id, one.num_workers) for one in reply.start] == [(job_id, 4)]
    stage.report(reply.start[0].token, step(1))
    stage.sync(runner_id, alive=[reply.start[0].attempt_id], free_cpus=60)
    assert not stage.report(reply.start[0].token).resize, "it is as large as it gets"
