"""``python -m roadless.service.main`` alone, with a runner and ranks that the drill plays."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from stack import free_port, wait_until


class LoneService:
    """The process, and its users' and runner's requests."""

    def __init__(self, home: Path, *, environ: Mapping[str, str] = {}) -> None:
        self.home = home
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = home.with_suffix(".log")
        self._environ = {
            **os.environ,
            "ROADLESS_HOME": str(home),
            "ROADLESS_PORT": self.url.rpartition(":")[2],
            **environ,
        }
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "roadless.service.main"],
                env=self._environ,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).is_success
        except httpx.HTTPError:
            return False

    @property
    def user(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {(self.home / 'user.token').read_text().strip()}"}

    def users(self, **options: Any) -> httpx.Client:
        """A user's connection, for one thread."""
        return httpx.Client(base_url=self.url, headers=self.user, timeout=60, **options)

    def stop(self) -> float:
        """Ask it to end; return the seconds that took."""
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(30)
        return time.monotonic() - began
