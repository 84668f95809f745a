"""One process speaks for a cluster, and only for that: seats are released on nobody else's word."""

import pytest
from stage import LEASE_SECONDS, staged

from roadless.service.contract.reports.cluster import RegisterRunner
from roadless.service.db.tables import RunnerRow
from roadless.service.scheduling.registration import NameTaken, Replaced, register


@pytest.fixture
def stage(database_url, tmp_path):
    with staged(database_url, tmp_path) as stage:
        stage.thaw()
        yield stage


def started(stage, spec, runner_id):
    """A job with an attempt that this runner has seen alive, and the attempt's id."""
    job_id = stage.submit(spec)
    attempt_id = stage.claim(runner_id).attempt_id
    stage.sync(runner_id, alive=[attempt_id], free_cpus=0)
    return job_id, attempt_id


# ---- the same cluster ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["here", "renamed"])
def test_the_newest_process_of_a_cluster_replaces_the_older_one_at_once(stage, digits_spec, name):
    """Under whatever name: it finds what the other has started, and nothing is lost."""
    first = stage.register(cluster="c", session="one")
    job_id, attempt_id = started(stage, digits_spec, first)
    second = stage.register(name, cluster="c", session="two")
    assert second == first
    reply = stage.sync(second, alive=[attempt_id], free_cpus=0)
    assert (reply.start, reply.stop) == ([], [])
    assert stage.job(job_id).phase == "STARTING"


def test_a_process_that_was_replaced_is_told_by_whom_and_changes_nothing(stage, digits_spec):
    runner_id = stage.register(cluster="c", session="host:1:a")
    job_id, attempt_id = started(stage, digits_spec, runner_id)
    stage.register(cluster="c", session="host:2:b")
    with pytest.raises(Replaced, match=r"'host:2:b'.*saw 'host:1:a'.*must stop"):
        stage.sync(runner_id, alive=[], released=[attempt_id], session="host:1:a")
    assert stage.job(job_id).phase == "STARTING"
    assert stage.attempts()[0].released_at is None


def test_two_processes_that_fight_for_a_cluster_cost_no_attempt(stage, digits_spec):
    """Each is restarted by something that keeps it up, and takes the cluster from the other."""
    runner_id = stage.register(cluster="c", session="0")
    job_id, attempt_id = started(stage, digits_spec, runner_id)
    for turn in range(1, 20):
        stage.pass_time(1)
        assert stage.register(cluster="c", session=str(turn)) == runner_id
        with pytest.raises(Replaced):
            stage.sync(runner_id, session=str(turn - 1))
        stage.sync(runner_id, alive=[attempt_id], free_cpus=0)
    assert stage.job(job_id).phase == "STARTING"
    assert [row.fence for row in stage.attempts()] == [1]


def test_the_same_process_may_register_again(stage):
    assert stage.register(session="one") == stage.register(session="one")


# ---- another cluster -----------------------------------------------------------------------------


def test_a_name_is_refused_to_another_cluster_while_its_owner_is_heard(stage, digits_spec):
    owner = stage.register(cluster="c", session="one")
    job_id, attempt_id = started(stage, digits_spec, owner)
    for _ in range(int(2 * LEASE_SECONDS)):
        stage.pass_time(1)
        stage.tick()
        stage.sync(owner, alive=[attempt_id], free_cpus=0)
        with pytest.raises(NameTaken, match=r"'here'.*'one'.*'c'.*ROADLESS_RUNNER_NAME"):
            stage.register(cluster="d", session="two")
    assert stage.job(job_id).phase == "STARTING"


def test_a_name_is_free_for_another_cluster_once_its_owner_is_silent_for_a_lease(stage):
    owner = stage.register(cluster="c", session="one")
    stage.live(LEASE_SECONDS - 1)
    with pytest.raises(NameTaken):
        stage.register(cluster="d", session="two")
    stage.live(2)
    assert stage.register(cluster="d", session="two") != owner


def test_nobody_is_silent_while_leases_are_frozen(stage):
    stage.register(cluster="c")
    stage.pass_time(3600)  # the service was away
    stage.tick()
    with pytest.raises(NameTaken):
        stage.register(cluster="d")


def test_whoever_takes_over_a_name_releases_nothing_of_the_cluster_that_had_it(stage, digits_spec):
    """P3: those seats are on machines that the newcomer cannot see."""
    owner = stage.register(cluster="c", session="one")
    job_id, attempt_id = started(stage, digits_spec, owner)
    stage.cancel(job_id)
    stage.live(LEASE_SECONDS + 1)
    newcomer = stage.register(cluster="d", session="two")
    reply = stage.sync(newcomer, released=[attempt_id], held=[attempt_id])
    assert reply.stop == [attempt_id], "whatever is left of it here"
    assert stage.job(job_id).phase == "CANCELLING"
    stage.sync(owner, released=[attempt_id], session="one")
    assert stage.job(job_id).phase == "CANCELLED"


def test_nor_do_its_syncs_take_the_others_attempts_for_lost(stage, digits_spec):
    owner = stage.register(cluster="c", session="one")
    job_id, attempt_id = started(stage, digits_spec, owner)
    for _ in range(6):
        stage.live(LEASE_SECONDS / 3)
        stage.heartbeats()  # only the runner of this cluster is away
    newcomer = stage.register(cluster="d", session="two")
    stage.sync(newcomer)
    assert stage.job(job_id).phase == "STARTING"
    back = stage.register("another name", cluster="c", session="three")
    assert back == owner
    stage.sync(back, alive=[attempt_id], free_cpus=0)
    assert stage.attempts()[0].ended_at is None


def test_a_job_goes_on_elsewhere_when_its_clusters_name_was_taken(stage, digits_spec):
    owner = stage.register(cluster="c")
    job_id, _ = started(stage, digits_spec, owner)
    stage.live(LEASE_SECONDS + 2)
    assert stage.job(job_id).phase == "RECOVERING"
    again = stage.claim(stage.register(cluster="d"))
    assert (again.job_id, again.fence) == (job_id, 2)


# ---- runners of older releases -------------------------------------------------------------------


def registered_without_more(stage, name="here"):
    """As a runner of an older release does."""
    with stage.db.write() as session:
        said = RegisterRunner(name=name)
        return register(session, said, lease=stage.keeper.policy, now=stage.now).id


def test_a_runner_of_an_older_release_is_known_by_its_name(stage, digits_spec):
    runner_id = registered_without_more(stage)
    assert registered_without_more(stage) == runner_id
    _, attempt_id = started(stage, digits_spec, runner_id)
    upgraded = stage.register(cluster="c", session="one")
    assert upgraded == runner_id, "its next process says which cluster it is"
    with pytest.raises(Replaced):
        stage.sync(runner_id, session="")
    stage.sync(upgraded, alive=[attempt_id], free_cpus=0)
    assert stage.attempts()[0].ended_at is None


def test_a_cluster_that_had_a_name_before_is_not_taken_for_that_of_an_older_runner(stage):
    mine = stage.register("mine", cluster="c")
    older = registered_without_more(stage, "here")
    stage.live(LEASE_SECONDS + 1)
    assert stage.register("here", cluster="c") == mine != older
    with stage.db.read() as session:
        assert session.get(RunnerRow, older).name == f"here ({older})"


# ---- as a runner hears it ------------------------------------------------------------------------


def test_both_refusals_have_a_type_that_a_program_can_act_on(service):
    def post(path, **body):
        return service.http.post(f"/internal/v1/runners{path}", json=body, headers=service.runner)

    registered = post("", name="here", cluster="c", session="one").json()
    taken = post("", name="here", cluster="d", session="two")
    assert (taken.status_code, taken.json()["type"]) == (
        409,
        "urn:roadless:problem:runner_name_taken",
    )
    post("", name="here", cluster="c", session="three")
    replaced = post(f"/{registered['runner_id']}/sync", nodes=[], session="one")
    assert replaced.status_code == 409
    assert replaced.json()["type"] == "urn:roadless:problem:runner_replaced"
    assert "'three'" in replaced.json()["detail"]
