"""A rank that comes early waits for rank 0, a little and not for ever."""

import socket
import threading
import time

import pytest

from roadless.worker.distributed.process_group import wait_for_listener


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def test_it_returns_when_somebody_listens_and_not_before() -> None:
    port, is_listening = free_port(), threading.Event()
    late = socket.socket()

    def listen() -> None:
        time.sleep(0.1)
        is_listening.set()
        late.bind(("127.0.0.1", port))
        late.listen()

    thread = threading.Thread(target=listen)
    thread.start()
    assert wait_for_listener("127.0.0.1", port)
    assert is_listening.is_set()
    thread.join()
    late.close()


def test_where_nobody_listens_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roadless.worker.distributed.process_group.PATIENCE_SECONDS", 0.05)
    assert not wait_for_listener("127.0.0.1", free_port())


def test_a_host_that_does_not_exist_is_not_waited_for() -> None:
    assert not wait_for_listener("no-such-host.invalid", 1)
