"""The bell: a ring from any thread wakes those who wait on the loop, and none is missed."""

import asyncio
import threading
import time

from roadless.service.wakeups import Wakeups, heard_within


def on_loop(scenario):
    """Run a coroutine function with a bell that is bound to its loop."""

    async def main():
        bell = Wakeups()
        bell.bind(asyncio.get_running_loop())
        return await scenario(bell)

    return asyncio.run(main())


def test_a_ring_from_another_thread_wakes_all_who_wait():
    async def scenario(bell):
        waiting = [asyncio.create_task(heard_within(bell.next_ring(), 30)) for _ in range(3)]
        await asyncio.sleep(0)
        threading.Thread(target=bell.ring).start()
        return await asyncio.gather(*waiting)

    assert on_loop(scenario) == [True] * 3


def test_a_ring_between_the_look_and_the_wait_is_heard():
    async def scenario(bell):
        ring = bell.next_ring()
        bell.ring()
        await asyncio.sleep(0.01)
        return await heard_within(ring, 30)

    assert on_loop(scenario)


def test_an_old_ring_wakes_nobody_new():
    async def scenario(bell):
        bell.ring()
        await asyncio.sleep(0.01)
        return await heard_within(bell.next_ring(), 0.01)

    assert not on_loop(scenario)


def test_silence_ends_with_the_time_given():
    async def scenario(bell):
        began = time.monotonic()
        heard = await heard_within(bell.next_ring(), 0.05)
        return heard, time.monotonic() - began

    heard, seconds = on_loop(scenario)
    assert not heard
    assert 0.04 <= seconds < 10


def test_ringing_before_anyone_can_wait_or_after_the_end_does_no_harm():
    bell = Wakeups()
    bell.ring()
    loop = asyncio.new_event_loop()
    bell.bind(loop)
    loop.close()
    bell.ring()


def test_closing_wakes_everyone_for_good():
    async def scenario(bell):
        ring = bell.next_ring()
        bell.close()
        return await heard_within(ring, 30), bell.is_closed

    assert on_loop(scenario) == (True, True)
