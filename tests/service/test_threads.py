"""Reports and syncs have threads of their own: slow users never starve a heartbeat."""

import threading
from concurrent.futures import ThreadPoolExecutor

from fastapi.testclient import TestClient
from played import Service, step_event

from roadless.service.main import create_app
from roadless.service.settings import Settings


def test_reports_and_syncs_are_answered_while_slow_requests_hold_every_thread(
    tmp_path, digits_spec
):
    settings = Settings(home=tmp_path, request_threads=1, tick_seconds=3600)
    app = create_app(settings)
    held, go_on = threading.Event(), threading.Event()

    @app.get("/slow")
    def slow() -> None:
        held.set()
        go_on.wait(30)

    with TestClient(app) as http, ThreadPoolExecutor() as pool:
        service = Service(http, settings.home_dir)
        _, rank = service.running(digits_spec)
        pool.submit(http.get, "/slow")
        assert held.wait(10)
        try:
            assert pool.submit(rank.report, step_event(2)).result(10).status_code == 200
            alive = [rank.assignment["attempt_id"]]
            assert pool.submit(service.sync, alive=alive).result(10) == {"start": [], "stop": []}
        finally:
            go_on.set()
