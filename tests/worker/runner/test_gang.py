"""Gangs on a real Ray cluster: what starts is found again by anybody, and leaves nothing behind."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util import list_named_actors
from ray.util.placement_group import placement_group_table
from worker_drills import STAND_IN, is_alive, read_note, wait_until

from roadless.service.contract.ids import new_id
from roadless.service.contract.reports.cluster import Assignment
from roadless.service.contract.states import RETRYABLE, Reason
from roadless.service.contract.uploads.wheels import AssignedWheel
from roadless.worker.rank_launch import DataSources, LaunchMethod, ModelSources
from roadless.worker.runner.gang import Gangs, StartFailed
from roadless.worker.runner.node_agents import Agents
from roadless.worker.runner.ray_cluster import Head

_NO_SOURCES = ModelSources()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def gangs(ray_head: Head, scratch: Path) -> Iterator[Gangs]:
    gangs = make_gangs(scratch)
    gangs.wait_ready(30)
    yield gangs
    for group in gangs.look().groups:
        gangs.release(group.attempt_id)
    for name in list_named_actors():
        ray.kill(ray.get_actor(name))


def make_gangs(
    scratch: Path, *, method: LaunchMethod = "fork", sources: ModelSources = _NO_SOURCES
) -> Gangs:
    agents = Agents(scratch=str(scratch), entry=STAND_IN, preload=())
    data = DataSources(roots=("/data",))
    return Gangs(
        agents=agents,
        service_url="http://127.0.0.1:9",
        data_sources=data,
        model_sources=sources,
        method=method,
    )


def assign(*, workers: int = 1, cpus: int = 1, gpus: int = 0, what: str = "stay") -> Assignment:
    return Assignment(
        attempt_id=new_id("att"),
        job_id=what,
        fence=1,
        token="attempt-secret",
        num_workers=workers,
        cpus_per_worker=cpus,
        gpus_per_worker=gpus,
    )


def left_of(attempt_id: str) -> list[str]:
    """Names of groups and actors of the attempt that Ray still knows as living."""
    groups = [row["name"] for row in placement_group_table().values() if row["state"] != "REMOVED"]
    return [name for name in groups + list_named_actors() if attempt_id in name]


def test_started_gang_is_seen_and_released_without_a_trace(gangs: Gangs, scratch: Path) -> None:
    assignment = assign(workers=2)
    gangs.start(assignment)
    notes = [read_note(scratch / assignment.attempt_id, rank) for rank in (0, 1)]
    assert [note["local_rank"] for note in notes] == [0, 1]
    assert notes[0]["master"] == notes[1]["master"]
    assert {note["world_size"] for note in notes} == {2}
    view = gangs.look()
    assert [assignment.attempt_id] in map(list, view.ranks.values())
    assert [group.attempt_id for group in view.groups] == [assignment.attempt_id]
    gangs.release(assignment.attempt_id)
    assert left_of(assignment.attempt_id) == []
    assert not any(is_alive(note["pid"]) for note in notes)
    assert gangs.look().groups == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_operators_choice_of_launcher_reaches_every_rank(
    gangs: Gangs, scratch: Path, method: LaunchMethod
) -> None:
    """Agents outlive runners, so the choice goes with each launch."""
    chosen = make_gangs(scratch, method=method)
    chosen.wait_ready(30)
    assignment = assign()
    chosen.start(assignment)
    note = read_note(scratch / assignment.attempt_id)
    assert ("roadless.worker.agent.fork_server" in note["argv"]) is (method == "fork")
    chosen.release(assignment.attempt_id)
    assert not is_alive(note["pid"])


WHEEL = AssignedWheel(
    wheel_id=new_id("whl"), file_name="our_models-1.0-py3-none-any.whl", sha256="0" * 64
)


def test_a_wheel_is_refused_by_name_where_the_operator_does_not_allow_it(gangs: Gangs) -> None:
    assignment = assign().model_copy(update={"wheel": WHEEL})
    with pytest.raises(StartFailed, match="ROADLESS_ALLOW_WHEELS") as caught:
        gangs.start(assignment)
    assert caught.value.reason is Reason.MODEL_FORBIDDEN
    assert caught.value.reason not in RETRYABLE
    assert left_of(assignment.attempt_id) == []


def test_a_wheel_goes_to_the_ranks_of_its_job(gangs: Gangs, scratch: Path) -> None:
    """Which fail here, since no service has it; what counts is how they were started."""
    allowing = make_gangs(scratch, sources=ModelSources(allow_wheels=True))
    allowing.wait_ready(30)
    assignment = assign().model_copy(update={"wheel": WHEEL})
    allowing.start(assignment)
    folder = scratch / assignment.attempt_id
    wait_until(lambda: bool(list((scratch / "environments").glob(f"{WHEEL.sha256}-*"))), seconds=30)
    allowing.release(assignment.attempt_id)
    assert (folder / "rank-0.log").exists()
    assert left_of(assignment.attempt_id) == []


def test_release_of_nothing_and_release_twice_do_no_harm(gangs: Gangs) -> None:
    assignment = assign()
    gangs.release(assignment.attempt_id)
    gangs.release(assignment.attempt_id)
    assert left_of(assignment.attempt_id) == []


def test_second_start_launches_nothing(gangs: Gangs, scratch: Path) -> None:
    assignment = assign()
    gangs.start(assignment)
    note = read_note(scratch / assignment.attempt_id)
    (scratch / assignment.attempt_id / "started-0.json").unlink()
    make_gangs_again = make_gangs(scratch)
    make_gangs_again.wait_ready(30)
    make_gangs_again.start(assignment)
    assert is_alive(note["pid"])
    assert not (scratch / assignment.attempt_id / "started-0.json").exists()
    gangs.release(assignment.attempt_id)


def test_gang_without_room_fails_and_can_be_released(
    gangs: Gangs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roadless.worker.runner.gang._PLACE_SECONDS", 0.5)
    assignment = assign(workers=3, cpus=3)
    with pytest.raises(StartFailed, match="no room for 3 ranks"):
        gangs.start(assignment)
    held = gangs.look().groups[0].held
    assert [item.node_id for item in held] == [None] * 3
    gangs.release(assignment.attempt_id)
    assert left_of(assignment.attempt_id) == []


def test_gpu_ranks_get_the_gpus_that_ray_gave_them(gangs: Gangs, scratch: Path) -> None:
    assignment = assign(workers=2, gpus=1)
    gangs.start(assignment)
    notes = [read_note(scratch / assignment.attempt_id, rank) for rank in (0, 1)]
    visible = sorted(note["environ"]["CUDA_VISIBLE_DEVICES"] for note in notes)
    assert visible == ["0", "1"]
    assert len([name for name in left_of(assignment.attempt_id) if name.startswith("seat:")]) == 2
    assert gangs.look().holders == {assignment.attempt_id}
    gangs.release(assignment.attempt_id)
    wait_until(lambda: left_of(assignment.attempt_id) == [])
    again = assign(workers=2, gpus=1)
    gangs.start(again)
    gangs.release(again.attempt_id)


def test_another_process_finds_the_gang_and_releases_it(
    gangs: Gangs, ray_head: Head, scratch: Path
) -> None:
    """The runner that started it may be gone: everything is found by name."""
    assignment = assign(workers=2)
    gangs.start(assignment)
    pids = [read_note(scratch / assignment.attempt_id, rank)["pid"] for rank in (0, 1)]
    program = f"""
import ray
from pathlib import Path
from test_gang import make_gangs
ray.init({ray_head.address!r}, namespace="roadless", log_to_driver=False)
gangs = make_gangs(Path({str(scratch)!r}))
gangs.wait_ready(30)
view = gangs.look()
assert [group.attempt_id for group in view.groups] == [{assignment.attempt_id!r}], view
assert [{assignment.attempt_id!r}] in map(list, view.ranks.values()), view
gangs.release({assignment.attempt_id!r})
"""
    paths = os.pathsep.join((str(Path(__file__).parent), os.environ["PYTHONPATH"]))
    environment = {**os.environ, **ray_head.environment, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=60)
    assert left_of(assignment.attempt_id) == []
    assert not any(map(is_alive, pids))


def test_ranks_of_two_nodes_are_numbered_node_by_node(
    gangs: Gangs, ray_head: Head, scratch: Path
) -> None:
    ray_head.join(num_cpus=4)
    wait_until(lambda: len(gangs.look().nodes) == 2, seconds=30)
    assignment = assign(workers=2, cpus=3)
    gangs.start(assignment)
    notes = [read_note(scratch / assignment.attempt_id, rank) for rank in (0, 1)]
    assert [note["local_rank"] for note in notes] == [0, 0]
    assert notes[0]["master"] == notes[1]["master"]
    assert notes[0]["master"][0] != "127.0.0.1"
    ranks = gangs.look().ranks
    assert list(map(list, ranks.values())) == [[assignment.attempt_id]] * 2
    gangs.release(assignment.attempt_id)
    assert left_of(assignment.attempt_id) == []
    assert not any(is_alive(note["pid"]) for note in notes)
