"""The limit: few at once, others wait, and not for ever."""

import threading
from functools import partial

import anyio
import pytest

from roadless.service.errors import Unavailable
from roadless.service.theory.concurrency import MAX_AT_ONCE, ConcurrencyLimit


def test_few_work_at_once_and_all_are_run():
    """Each waits for the others of its group, which is as large as is allowed at once."""
    together = threading.Barrier(MAX_AT_ONCE)
    now, most, done = [0], [0], []
    lock = threading.Lock()

    def work(number):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(timeout=30)
        with lock:
            now[0] -= 1
        return number

    async def run(limit, number):
        done.append(await limit.run(partial(work, number)))

    async def all_of_them():
        limit = ConcurrencyLimit()
        async with anyio.create_task_group() as group:
            for number in range(3 * MAX_AT_ONCE):
                group.start_soon(run, limit, number)

    anyio.run(all_of_them)
    assert sorted(done) == list(range(3 * MAX_AT_ONCE))
    assert most == [MAX_AT_ONCE]


def test_who_waits_too_long_is_told_to_try_again():
    """And who worked gives the place back, also when the work fails."""
    held = threading.Event()

    async def scene():
        limit = ConcurrencyLimit(at_once=1, wait_seconds=0.05)
        async with anyio.create_task_group() as group:
            group.start_soon(limit.run, partial(held.wait, 30))
            await anyio.sleep(0.02)
            with pytest.raises(Unavailable, match="try again"):
                await limit.run(lambda: None)
            held.set()
        with pytest.raises(ZeroDivisionError):
            await limit.run(lambda: 1 / 0)
        return await limit.run(lambda: "mine")

    assert anyio.run(scene) == "mine"
