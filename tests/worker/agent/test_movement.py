"""Which attempts still move: over a clock and counters of the test, and over real processes."""

import os
import subprocess
from collections.abc import Collection, Mapping

from worker_drills import wait_until

from roadless.worker.agent.movement import LOOK_SECONDS, Movements, session_cpu_seconds


class Machine:
    """A clock and what each session has used."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.used: dict[int, float] = {}
        self.looks = 0

    def used_seconds(self, leaders: Collection[int]) -> Mapping[int, float]:
        self.looks += 1
        return {pid: self.used.get(pid, 0.0) for pid in leaders}

    def movements(self) -> Movements:
        return Movements(clock=lambda: self.now, used_seconds=self.used_seconds)


def test_an_attempt_stands_still_from_the_last_look_that_saw_it_move() -> None:
    machine = Machine()
    movements = machine.movements()
    pids = {"att_1": [1, 2], "att_2": [3]}
    assert movements.still_seconds(pids) == {"att_1": 0.0, "att_2": 0.0}
    for second in range(1, 6):
        machine.now += 1.0
        machine.used[2] = float(second)
        assert movements.still_seconds(pids) == {"att_1": 0.0, "att_2": float(second)}


def test_the_processes_are_looked_at_once_a_second_however_often_somebody_asks() -> None:
    machine = Machine()
    movements = machine.movements()
    pids = {"att_1": [1]}
    for _ in range(40):
        movements.still_seconds(pids)
        machine.now += LOOK_SECONDS / 4
    assert machine.looks == 10
    machine.used[1] = 1.0
    assert movements.still_seconds(pids) == {"att_1": 0.0}


def test_a_rank_that_comes_to_be_known_later_counts_as_movement() -> None:
    """Forking takes a while when the fork server is cold; until then the launch is what counts."""
    machine = Machine()
    movements = machine.movements()
    movements.still_seconds({"att_1": []})
    machine.now += 5.0
    assert movements.still_seconds({"att_1": []}) == {"att_1": 5.0}
    machine.now += 1.0
    machine.used[1] = 0.5
    assert movements.still_seconds({"att_1": [1]}) == {"att_1": 0.0}


def test_what_has_ended_is_forgotten() -> None:
    machine = Machine()
    movements = machine.movements()
    movements.still_seconds({"att_1": [1]})
    machine.now += 5.0
    assert movements.still_seconds({}) == {}
    assert movements.still_seconds({"att_1": [1]}) == {"att_1": 0.0}


def test_work_of_what_a_rank_has_started_counts_as_its_own() -> None:
    loop = "while True: pass"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{loop}'])"
    leader = subprocess.Popen(["python3", "-c", program], start_new_session=True)
    try:
        wait_until(lambda: session_cpu_seconds([leader.pid])[leader.pid] > 0.5, seconds=60)
    finally:
        os.killpg(leader.pid, 9)
        leader.wait()
