"""The app of a test on a real port, for what needs one: the command line and browsers."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from roadless.service.http.connections import Doorkeeper
from roadless.service.main import server_config


@contextmanager
def serving(app: FastAPI, **bounds: Any) -> Iterator[str]:
    """Yield the URL. The test's own client runs the app's lifespan.

    ``bounds``: of the server's connections, instead of the usual ones.
    """
    keeper = Doorkeeper(**{"max_connections": lambda: 1000, **bounds})
    config = server_config(app, keeper, host="127.0.0.1", port=0)
    config.lifespan = "off"
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    (socket,) = server.servers[0].sockets
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
