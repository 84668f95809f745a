"""Many users at once, on a service with a runner and ranks that are played."""

import collections
import contextlib
import random
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from lone_service import LoneService
from pairs import spec
from pg_server import PgServer
from sqlalchemy import create_engine, text
from stack import wait_until

NODE = {"node_id": "n", "cpus": 6, "gpus": 0, "free_cpus": 6, "free_gpus": 0}
TERMINAL = {"STOPPED", "SUCCEEDED", "FAILED", "CANCELLED"}
RACE_SECONDS = 40
#: Of a job that no node of these drills holds.
LARGE = {"parallelism": {"num_workers": 2, "cpus_per_worker": 64}}


@pytest.fixture(params=["sqlite", "postgresql"])
def service(request, tmp_path):
    """With short leases and deadlines, so that the race meets all of them."""
    environ = {
        "ROADLESS_LEASE_SECONDS": "6",
        "ROADLESS_START_SECONDS": "5",
        "ROADLESS_STOP_SECONDS": "5",
        "ROADLESS_RETRY_DELAY_SECONDS": "0.1",
    }
    with contextlib.ExitStack() as stack:
        if request.param == "postgresql":
            server = PgServer()
            stack.callback(server.close)
            environ["DATABASE_URL"] = server.url
        service = LoneService(tmp_path / "home", environ=environ)
        service.database_url = (
            environ.get("DATABASE_URL") or f"sqlite:///{tmp_path}/home/roadless.db"
        )
        yield service
        assert service.stop() < 15


def rows(service, query):
    engine = create_engine(service.database_url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(query))]
    engine.dispose()
    return found


class Runner:
    """Registers, syncs, and plays the ranks of what it is given."""

    def __init__(self, service):
        token = (service.home / "runner.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=service.url, headers=headers, timeout=60)
        body = {"name": "played", "cluster": "c", "session": "s"}
        answer = self._http.post("/internal/v1/runners", json=body).raise_for_status()
        self._url = f"/internal/v1/runners/{answer.json()['runner_id']}/sync"

    def sync(self, *, alive=(), released=(), free_cpus=6.0):
        node = {**NODE, "free_cpus": max(0.0, free_cpus)}
        said = {"session": "s", "nodes": [node], "alive": list(alive), "held": list(alive)}
        answer = self._http.post(self._url, json={**said, "released": list(released)})
        return answer.raise_for_status().json()


def large(name):
    return spec(name, ranks=1, steps=10) | LARGE


def test_a_burst_of_posts(service, figure):
    """500 from 50 users at once, and one key 50 times: every job once, and the queue goes on."""
    waits = []

    def post(number, key=None):
        with service.users() as http:
            began = time.monotonic()
            headers = {"Idempotency-Key": key or str(number)}
            answer = http.post("/v1/jobs", json=large("burst"), headers=headers)
            waits.append(time.monotonic() - began)
        return answer

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(500)))
        same = list(pool.map(lambda number: post(number, key="one"), range(50)))
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.status_code for answer in same} <= {201, 409}
    assert len({answer.json()["id"] for answer in same if answer.status_code == 201}) == 1
    assert rows(service, "SELECT count(*) FROM jobs") == [(501,)]
    figure(f"a post takes {statistics.median(waits):.2f} s, at most {max(waits):.2f} s")

    runner = Runner(service)
    with service.users() as http:
        fits = http.post("/v1/jobs", json=spec("fits", ranks=1, steps=10)).json()["id"]
    started = [one["job_id"] for _ in range(5) for one in runner.sync()["start"]]
    assert fits in started, "behind 501 that never fit"


def test_answers_that_are_lost_and_asked_for_again(service):
    """P7: the connection breaks after the request; the same key makes no second job."""
    host, port = service.url.removeprefix("http://").split(":")
    with service.users() as http:
        for number in range(30):
            headers = {"Idempotency-Key": f"lost-{number}"}
            request = http.build_request("POST", "/v1/jobs", json=large("lost"), headers=headers)
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            with socket.create_connection((host, int(port))) as wire:
                wire.sendall(f"POST /v1/jobs HTTP/1.1\r\n{head}\r\n".encode() + request.read())
                time.sleep(random.random() * 0.05)
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            assert http.send(request).status_code == 201
    assert rows(service, "SELECT count(*) FROM jobs") == [(30,)]


class Race:
    """Users, ranks and a runner that act at random on the same few jobs."""

    def __init__(self, service):
        self.service = service
        self.end = time.monotonic() + RACE_SECONDS
        self.jobs = []
        self.alive = {}
        self.released = set()
        self.answers = collections.Counter()
        self.faults = []

    def note(self, what, answer):
        self.answers[answer.status_code] += 1
        if answer.status_code >= 500 and answer.status_code != 503:
            self.faults.append((what, answer.status_code, answer.text[:200]))

    def user(self, number):
        dice = random.Random(number)
        with self.service.users() as http:
            while time.monotonic() < self.end:
                with contextlib.suppress(ValueError):
                    self.act(http, dice)

    def act(self, http, dice):
        if len(self.jobs) < 12 or dice.random() < 0.02:
            steps = dice.choice([50, None])
            body = spec("race", ranks=1, steps=steps, retry={"max_attempts": 50})
            answer = http.post("/v1/jobs", json=body)
            self.note("create", answer)
            if answer.status_code == 201:
                self.jobs.append(answer.json()["id"])
            return
        job_id, verbs = dice.choice(self.jobs), ("pause", "resume", "extend", "retry", "evaluate")
        verb = dice.choice([*verbs, *verbs, "stop", "cancel", "delete", "patch", "get", "list"])
        url = f"/v1/jobs/{job_id}"
        if verb == "get":
            answer = http.get(url)
        elif verb == "list":
            answer = http.get("/v1/jobs")
        elif verb == "patch":
            body = {"priority": dice.randint(-5, 5)}
            answer = http.patch(url, json=body, headers={"If-Match": "*"})
        elif verb == "delete":
            answer = http.delete(url)
            if answer.status_code == 204:
                self.jobs.remove(job_id)
        else:
            body = {"steps": 5} if verb == "extend" else None
            answer = http.post(f"{url}/{verb}", json=body)
        self.note(verb, answer)

    def rank(self, assignment):
        attempt_id = assignment["attempt_id"]
        dice, seq = random.Random(attempt_id), 0
        headers = {"Authorization": f"Bearer {assignment['token']}"}
        url = f"/internal/v1/attempts/{attempt_id}"
        with httpx.Client(base_url=self.service.url, headers=headers, timeout=60) as http:
            while time.monotonic() < self.end + 10 and attempt_id in self.alive:
                events = [self.step(seq + n) for n in range(1, dice.randint(1, 20))]
                seq += len(events)
                if dice.random() < 0.03:
                    seq += 1
                    reasons = ["stopped_by_user", "budget_reached", "paused_by_user"]
                    events.append(
                        {
                            "kind": "finished",
                            "seq": seq,
                            "reason": dice.choice(reasons),
                            "step": seq,
                        }
                    )
                answer = http.post(f"{url}/report", json={"rank": 0, "events": events})
                self.note("report", answer)
                if answer.status_code in (401, 409):
                    break
                if dice.random() < 0.03:
                    body = {"reason": "rank_died", "message": "drill"}
                    self.note("ended", http.post(f"{url}/ended", json=body))
                time.sleep(dice.random() * 0.1)
        self.alive.pop(attempt_id, None)

    def step(self, number):
        return {
            "kind": "step",
            "seq": number,
            "step": number,
            "samples": number,
            "tokens": 0,
            "wall_seconds": number / 10,
            "gpu_seconds": 0,
            "values": {"train.loss": 1.0 / number},
        }

    def run_runner(self):
        runner, dice = Runner(self.service), random.Random(99)
        while not self.is_over():
            said = sorted(self.released)
            try:
                reply = runner.sync(
                    alive=sorted(self.alive), released=said, free_cpus=6.0 - len(self.alive)
                )
            except httpx.HTTPStatusError as error:
                self.note("sync", error.response)
                continue
            self.released.difference_update(said)
            for one in reply["start"]:
                if one["attempt_id"] not in self.alive and dice.random() < 0.9:
                    self.alive[one["attempt_id"]] = one
                    threading.Thread(target=self.rank, args=(one,), daemon=True).start()
            for attempt_id in reply["stop"]:
                self.alive.pop(attempt_id, None)
                self.released.add(attempt_id)
            time.sleep(0.05)

    def is_over(self):
        return time.monotonic() > self.end + 40 or not self.runs


def test_random_actions_of_many(service, figure):
    """No fault of ours, no two attempts at once, nothing held by what has ended, no orphan."""
    race = Race(service)
    race.runs = True
    runner = threading.Thread(target=race.run_runner)
    runner.start()
    try:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(race.user, range(12)))
        with service.users() as http:
            for job in http.get("/v1/jobs", params={"limit": 200}).json()["data"]:
                http.post(f"/v1/jobs/{job['id']}/cancel")
            wait_until(
                lambda: (
                    {
                        job["phase"]
                        for job in http.get("/v1/jobs", params={"limit": 200}).json()["data"]
                    }
                    <= TERMINAL
                ),
                seconds=35,
            )
    finally:
        race.runs = False
        runner.join()
    figure(f"{sum(race.answers.values())} answers: {dict(sorted(race.answers.items()))}")
    assert not race.faults
    live = "SELECT job_id FROM attempts WHERE ended_at IS NULL GROUP BY job_id HAVING count(*) > 1"
    assert rows(service, live) == []
    held = (
        "SELECT j.id FROM jobs j JOIN attempts a ON a.job_id = j.id WHERE a.released_at IS NULL "
        "AND j.phase IN ('STOPPED', 'SUCCEEDED', 'FAILED', 'CANCELLED')"
    )
    assert rows(service, held) == []
    for table in ("attempts", "events", "metric_chunks", "eval_points", "checkpoints"):
        orphans = f"SELECT count(*) FROM {table} WHERE job_id NOT IN (SELECT id FROM jobs)"
        assert rows(service, orphans) == [(0,)]


def test_silent_connections(service, figure):
    """1100 connections that say nothing: a newcomer is answered, and they are let go in time."""
    host, port = service.url.removeprefix("http://").split(":")
    silent, refused = [], 0
    for _ in range(1100):
        try:
            silent.append(socket.create_connection((host, int(port)), timeout=2))
        except OSError:
            refused += 1
    try:
        waits = []
        for _ in range(5):
            began = time.monotonic()
            assert httpx.get(f"{service.url}/healthz", timeout=10).is_success
            waits.append(time.monotonic() - began)
        figure(
            f"{len(silent)} silent, {refused} refused; a newcomer waits at most {max(waits):.2f} s"
        )
        assert max(waits) < 5
    finally:
        for one in silent:
            one.close()
