"""Prepared data: made once a node whatever dies, found again, bounded, never taken from a user."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roadless.worker.data.prepared import cache as cache_module
from roadless.worker.data.prepared.cache import Cache, CacheFull, size_of
from roadless.worker.errors import DataInvalid

FORK = multiprocessing.get_context("fork")
Process = Any


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    monkeypatch.setattr(cache_module, "_POLL_SECONDS", 0.01)


def never() -> None:
    pytest.fail("expected nobody else to be making the entry")


def writing(num_bytes: int) -> Callable[[Path], None]:
    def make(work: Path) -> None:
        (work / "content").write_bytes(bytes(num_bytes))

    return make


def absent(work: Path) -> None:
    pytest.fail("expected the entry to be there already")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"locks"}


def start(target: Callable[..., None], *arguments: Any) -> Process:
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def ended(process: Process) -> int:
    process.join(20)
    return int(process.exitcode)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- once ---------------------------------------------------------------------------------------


def _prepare(folder: Path, log: Path) -> None:
    def make(work: Path) -> None:
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        writing(10)(work)

    entry = Cache(folder, max_bytes=100).entry("k", make=make, wait=lambda: None)
    assert (entry / "content").read_bytes() == bytes(10)


def test_several_ranks_prepare_once(tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    ranks = [start(_prepare, folder, log) for _ in range(5)]
    assert [ended(rank) for rank in ranks] == [0] * 5
    assert log.read_text() == "made\n"
    Cache(folder, max_bytes=100).entry("k", make=absent, wait=never)


def _prepare_for_ever(folder: Path) -> None:
    def make(work: Path) -> None:
        writing(10)(work)
        (folder.parent / "started").touch()
        time.sleep(60)

    Cache(folder, max_bytes=100).entry("k", make=make, wait=lambda: None)


def test_a_rank_that_is_killed_while_it_prepares_leaves_the_work_to_the_next(tmp_path):
    folder = tmp_path / "cache"
    killed = start(_prepare_for_ever, folder)
    wait_for((tmp_path / "started").exists)
    waited: list[bool] = []

    def wait() -> None:
        if not waited:
            os.kill(killed.pid, signal.SIGKILL)
        waited.append(True)

    entry = Cache(folder, max_bytes=100).entry("k", make=writing(20), wait=wait)
    assert waited
    assert (entry / "content").stat().st_size == 20
    assert names(folder) == {"k"}
    assert ended(killed) == -signal.SIGKILL


def test_what_making_raises_comes_through_and_leaves_nothing(tmp_path):
    cache = Cache(tmp_path, max_bytes=100)

    def fail(work: Path) -> None:
        writing(10)(work)
        raise DataInvalid("row 7")

    with pytest.raises(DataInvalid, match="row 7"):
        cache.entry("k", make=fail, wait=never)
    assert names(tmp_path) == set()
    assert cache.entry("k", make=writing(1), wait=never).exists()


def test_an_entry_appears_whole_or_not_at_all(tmp_path):
    cache = Cache(tmp_path, max_bytes=100)

    def make(work: Path) -> None:
        assert names(tmp_path) == {work.name}
        assert not (tmp_path / "k").exists()
        writing(10)(work)

    assert size_of(cache.entry("k", make=make, wait=never)) == 10


# ---- bounded ------------------------------------------------------------------------------------


def _use(folder: Path, key: str, num_bytes: int, max_bytes: int) -> None:
    Cache(folder, max_bytes=max_bytes).entry(key, make=writing(num_bytes), wait=lambda: None)


def use(folder: Path, key: str, num_bytes: int, *, max_bytes: int = 100) -> None:
    """By a rank that has ended since."""
    assert ended(start(_use, folder, key, num_bytes, max_bytes)) == 0


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 60)), max_size=8))
def test_what_is_kept_never_exceeds_the_limit_and_the_newest_is_there(tmp_path_factory, uses):
    folder = tmp_path_factory.mktemp("cache")
    sizes: dict[str, int] = {}
    for key, size in uses:
        size = sizes.setdefault(key, size)
        use(folder, key, size)
        assert size_of(folder) <= 100
        assert size_of(folder / key) == size


def test_the_least_recently_used_goes_first(tmp_path):
    for key in ("a", "b"):
        use(tmp_path, key, 40)
        os.utime(tmp_path / key, (1, 1) if key == "a" else (2, 2))
    use(tmp_path, "a", 40)
    use(tmp_path, "c", 40)
    assert names(tmp_path) == {"a", "c"}
    assert {path.name for path in (tmp_path / "locks").iterdir()} == {"a", "c"}


def test_what_a_rank_uses_is_not_evicted_and_another_attempt_may_find_room(tmp_path):
    held = Cache(tmp_path, max_bytes=100).entry("held", make=writing(80), wait=never)
    with pytest.raises(CacheFull, match="saw 80 in use by other jobs"):
        Cache(tmp_path, max_bytes=100).entry("k", make=writing(30), wait=never)
    assert (held / "content").exists()
    assert names(tmp_path) == {"held"}


def test_data_that_is_larger_than_the_limit_is_refused_while_it_grows(tmp_path):
    cache = Cache(tmp_path, max_bytes=100)
    written: list[int] = []

    def make(work: Path) -> None:
        for size in (60, 120, 180):
            (work / "content").write_bytes(bytes(size))
            written.append(size)
            cache.make_room(work)

    with pytest.raises(DataInvalid, match="at most 100 bytes when prepared"):
        cache.entry("k", make=make, wait=never)
    assert written == [60, 120]
    assert names(tmp_path) == set()


def test_room_is_made_while_an_entry_grows_and_what_killed_ranks_left_goes_too(tmp_path):
    use(tmp_path, "old", 50)
    (tmp_path / "dead.part").mkdir()
    (tmp_path / "dead.part" / "content").write_bytes(bytes(50))
    cache = Cache(tmp_path, max_bytes=100)

    def make(work: Path) -> None:
        writing(90)(work)
        cache.make_room(work)
        assert names(tmp_path) == {work.name}

    cache.entry("k", make=make, wait=never)


def test_an_evicted_entry_is_made_again(tmp_path):
    use(tmp_path, "a", 80)
    use(tmp_path, "b", 80)
    assert names(tmp_path) == {"b"}
    use(tmp_path, "a", 70)
    assert size_of(tmp_path / "a") == 70
