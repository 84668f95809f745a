"""Two hosts as network namespaces: a link between them that can be cut, and a way in for the test.

The test's own namespace stands for the user's machine. Host A runs Ray's head, the service and the
runner; host B is one more Ray node. Needs root and ``ip`` (iproute2).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from stack import wait_until

from roadless.service.client.client import Client
from roadless.worker.runner.ray_cluster import stop_trees

PORT = 8700
RAY_NODE = Path(__file__).with_name("ray_node.py")


def can_make_hosts() -> bool:
    return os.geteuid() == 0 and shutil.which("ip") is not None


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Host:
    """A namespace, and the processes that were started in it."""

    name: str
    address: str  #: that the other host reaches
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, log: Path, *command: str, **env: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def stop_all(self) -> None:
        stop_trees([process.pid for process in reversed(self.processes)])
        for process in self.processes:
            process.wait()


class TwoHosts:
    """The namespaces and their links."""

    def __init__(self, tag: str, net: int) -> None:
        """``tag``: up to 8 characters for the names; ``net``: 10.``net``.x.y are the addresses."""
        self.a = Host(f"{tag}-a", f"10.{net}.2.1")
        self.b = Host(f"{tag}-b", f"10.{net}.2.2")
        self.service_address = f"10.{net}.1.2"
        self._user_address = f"10.{net}.1.1"
        self._links = {name: f"{tag}{name}" for name in ("u", "v", "l", "r")}

    def open(self) -> None:
        for host in (self.a, self.b):
            ip("netns", "add", host.name)
            ip("-n", host.name, "link", "set", "lo", "up")
        user, service, left, right = self._links.values()
        ip("link", "add", user, "type", "veth", "peer", "name", service, "netns", self.a.name)
        ip("addr", "add", f"{self._user_address}/24", "dev", user)
        ip("link", "set", user, "up")
        self._bring_up(self.a, service, self.service_address)
        peer = ("peer", "name", right, "netns", self.b.name)
        ip("-n", self.a.name, "link", "add", left, "type", "veth", *peer)
        self._bring_up(self.a, left, self.a.address)
        self._bring_up(self.b, right, self.b.address)
        ip("-n", self.b.name, "route", "add", "default", "via", self.a.address)

    def cut(self) -> None:
        """No packet passes between the hosts any more; neither side is told."""
        ip("-n", self.a.name, "link", "set", self._links["l"], "down")

    def mend(self) -> None:
        ip("-n", self.a.name, "link", "set", self._links["l"], "up")

    def close(self) -> None:
        for host in (self.b, self.a):
            host.stop_all()
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._links["u"]], check=False, capture_output=True)

    @staticmethod
    def _bring_up(host: Host, link: str, address: str) -> None:
        ip("-n", host.name, "addr", "add", f"{address}/24", "dev", link)
        ip("-n", host.name, "link", "set", link, "up")


class TwoHostStack:
    """Service, runner and Ray's head on host A, a Ray node on host B."""

    def __init__(self, hosts: TwoHosts, home: Path, *, cpus_a: int, cpus_b: int) -> None:
        home.mkdir()
        self.hosts, self.home = hosts, home
        self._cpus_b = cpus_b
        self.url = f"http://{hosts.service_address}:{PORT}"
        self._head = self._start_head(cpus_a)
        self._start_service()
        self.join_b()
        self._start_runner()

    def client(self) -> Client:
        return Client(self.url, (self.home / "user.token").read_text().strip())

    def join_b(self) -> None:
        """Start a Ray node on host B and return once it is up; after a cut it must be a new one."""
        node = self.hosts.b.start(
            self.home / "node.log",
            *(
                sys.executable,
                str(RAY_NODE),
                self._head["RAY_ADDRESS"],
                str(self.home / "ray.token"),
            ),
            *(self.hosts.b.address, str(self._cpus_b)),
        )
        started = time.monotonic()
        said = self.home / "node.log"
        while b"node is up" not in said.read_bytes():
            assert node.poll() is None, said.read_text()
            assert time.monotonic() < started + 60, said.read_text()
            time.sleep(0.05)

    def leave_b(self) -> None:
        """End everything on host B."""
        self.hosts.b.stop_all()
        self.hosts.b.processes.clear()
        (self.home / "node.log").unlink()

    def _start_head(self, cpus: int) -> dict[str, str]:
        log = self.home / "head.log"
        self.hosts.a.start(
            log,
            *(sys.executable, "-m", "roadless.worker.head", "--home", str(self.home)),
            *("--num-cpus", str(cpus), "--num-gpus", "0", "--node-ip", self.hosts.a.address),
        )
        line = wait_until(lambda: [s for s in log.read_text().splitlines() if s.startswith("{")])
        environment: dict[str, str] = json.loads(line[0])
        return environment

    def _environment(self) -> dict[str, str]:
        return {
            **self._head,
            "ROADLESS_HOME": str(self.home),
            "ROADLESS_URL": f"http://{self.hosts.a.address}:{PORT}",
            "ROADLESS_HOST": "0.0.0.0",
            "ROADLESS_PORT": str(PORT),
            "ROADLESS_SCRATCH": str(self.home / "scratch"),
            "ROADLESS_RUNNER_TOKEN_FILE": str(self.home / "runner.token"),
            "ROADLESS_RUNNER_NAME": self.hosts.a.name,
            "ROADLESS_GROW_SECONDS": "1",
            "ROADLESS_ALLOWED_ENTRY_POINTS": "paced_models:paced",
        }

    def _start_service(self) -> None:
        log = self.home / "service.log"
        self.hosts.a.start(
            log, sys.executable, "-m", "roadless.service.main", **self._environment()
        )

        def is_ready() -> bool:
            try:
                return httpx.get(f"{self.url}/readyz").is_success
            except httpx.TransportError:
                return False

        wait_until(is_ready)

    def _start_runner(self) -> None:
        log = self.home / "runner.log"
        self.hosts.a.start(
            log, sys.executable, "-m", "roadless.worker.runner", **self._environment()
        )


@contextmanager
def two_hosts(home: Path, *, cpus_a: int, cpus_b: int) -> Iterator[TwoHostStack]:
    number = os.getpid() % 200
    hosts = TwoHosts(f"rl{os.getpid() % 10_000}", 20 + number)
    try:
        hosts.open()
        yield TwoHostStack(hosts, home, cpus_a=cpus_a, cpus_b=cpus_b)
    finally:
        hosts.close()
