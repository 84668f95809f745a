"""``roadless up``: everything on one machine, as processes started by module name.

The Ray head, the service and the runner are separate processes, so that any of them may die without
the others. A dead service or runner is restarted, while training continues. Without its Ray head
nothing can train, so losing that one ends everything.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import httpx

from roadless.service.cli.home_lock import HomeTaken, held, require_free

READY_SECONDS = 60.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.1
#: A process that dies more often than this within RESTART_WINDOW_SECONDS is not restarted.
MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 300.0
TAIL_LINES = 20
#: What children leave readable: nothing for others. They find tokens, data and models in the home.
UMASK = 0o077


class UpError(Exception):
    """Something did not start, or died for good; the message names it and shows its log's end."""


#: Where lines for the user go.
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Modules:
    """What is started, as names for ``python -m``."""

    ray: str = "roadless.worker.head"
    service: str = "roadless.service.main"
    runner: str = "roadless.worker.runner"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where and with how much.

    ``port`` 0: any free one; ``num_cpus`` None: all of them; ``host``: address to listen on.
    """

    home: Path
    port: int
    num_cpus: int | None
    host: str = "127.0.0.1"
    modules: Modules = Modules()

    @property
    def url(self) -> str:
        """Where the service answers on this machine."""
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class Child:
    """One process and its log file; it leads its own group, so that Ctrl-C reaches only us."""

    def __init__(self, name: str, command: list[str], *, log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._env = env
        self._deaths: list[float] = []
        self.start()

    def start(self) -> None:
        """Start or restart the process."""
        with _private_log(self.log) as out:
            self.log_offset = out.tell()
            self._process = subprocess.Popen(
                self._command,
                # A user's queue.py in the current folder must not stand for Python's own: neither
                # here nor, by the variable, in what these processes start.
                env={**os.environ, "PYTHONSAFEPATH": "1", **self._env},
                umask=UMASK,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the latest start."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    def may_restart(self, now: float) -> bool:
        """Count a death; return whether there were few enough recently."""
        self._deaths = [at for at in self._deaths if now - at < RESTART_WINDOW_SECONDS] + [now]
        return len(self._deaths) <= MAX_RESTARTS

    def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """Ask it to end; kill it and its group when it has not within ``seconds``."""
        if self.exit_code() is None:
            self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def said(self) -> str:
        """What it has written since its latest start."""
        with self.log.open("rb") as log:
            log.seek(self.log_offset)
            return log.read().decode(errors="replace")

    def exit_report(self) -> str:
        """That it died, how, and the end of its log."""
        tail = "\n".join(f"    {line}" for line in self.said().splitlines()[-TAIL_LINES:])
        return f"{self.name} exited with code {self.exit_code()}; end of {self.log}:\n{tail}"


def _private_log(path: Path) -> BinaryIO:
    """The log, open for appending; only its owner reads it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return os.fdopen(descriptor, "ab")


def run(plan: Plan, *, say: Say) -> None:
    """Bring everything up, stay until SIGINT or SIGTERM, and take everything down again.

    Raises:
        UpError: something did not start, or died for good. Nothing is left running.
    """
    try:
        require_free(plan.home)  # before its busy port is noticed
        plan = _with_free_port(plan)
        _make_folders(plan.home)
        with held(plan.home, url=plan.url) as record:
            _stay_up(plan, record=record, say=say)
    except HomeTaken as error:
        raise UpError(str(error)) from error


def _stay_up(plan: Plan, *, record: Callable[[Mapping[str, int]], None], say: Say) -> None:
    children: list[Child] = []
    with _signals() as is_asked_to_stop, _taken_down(children, say):
        _bring_up(plan, children, is_asked_to_stop=is_asked_to_stop, say=say)
        _announce(plan, say)
        while not is_asked_to_stop():
            record({child.name: child.pid for child in children})
            _look_after(children, say)
            time.sleep(POLL_SECONDS)


def _make_folders(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "logs").mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise UpError(
            f"expected a folder that can be written as the home, saw {home}: {error.strerror}; "
            "choose another with --home"
        ) from error


def _with_free_port(plan: Plan) -> Plan:
    """Take a port now, so that a busy one is refused before anything starts."""
    is_ipv6 = ":" in plan.host
    with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((plan.host, plan.port))
        except OSError as error:
            raise UpError(
                f"expected port {plan.port} to be free: {error.strerror}; stop what listens "
                f"there{_who_answers(plan)}, or choose another with --port or ROADLESS_PORT"
            ) from error
        port = probe.getsockname()[1]
    return replace(plan, port=port)


def _who_answers(plan: Plan) -> str:
    """That another Roadless has the port: one that was killed leaves its service behind."""
    try:
        is_ours = httpx.get(f"{plan.url}/healthz", timeout=1).json() == {"status": "ok"}
    except (httpx.HTTPError, ValueError):
        is_ours = False
    return " (it answers as a Roadless service)" if is_ours else ""


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM has arrived."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        del frame
        heard.append(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _taken_down(children: list[Child], say: Say) -> Iterator[None]:
    """The last one started ends first: the runner before the service before Ray."""
    try:
        yield
    finally:
        for child in reversed(children):
            say(f"stopping the {child.name}")
            child.stop()


def _bring_up(
    plan: Plan, children: list[Child], *, is_asked_to_stop: Callable[[], bool], say: Say
) -> None:
    def start(name: str, module: str, *arguments: str, **env: str) -> Child:
        say(f"starting the {name}")
        command = [sys.executable, "-P", "-m", module, *arguments]
        log = plan.home / "logs" / f"{name.replace(' ', '-')}.log"
        children.append(Child(name, command, log=log, env=env))
        return children[-1]

    cpus = [] if plan.num_cpus is None else ["--num-cpus", str(plan.num_cpus)]
    ray = start("Ray head", plan.modules.ray, "--home", str(plan.home), *cpus)
    _wait_until(lambda: None if _announced(ray) else "no address", ray, is_asked_to_stop)
    if is_asked_to_stop():
        return
    service = start("service", plan.modules.service, **_service_env(plan))
    _wait_until(lambda: _why_not_ready(plan.url), service, is_asked_to_stop)
    if is_asked_to_stop():
        return
    start("runner", plan.modules.runner, **_runner_env(plan, _announced(ray)))


def _announced(ray: Child) -> dict[str, Any]:
    """The head's address and token file, once it has printed them; other lines are its log."""
    for line in ray.said().splitlines():
        if line.startswith("{"):
            with suppress(ValueError):
                said: dict[str, Any] = json.loads(line)
                if {"address", "auth_token_path"} <= said.keys():
                    return said
    return {}


def _service_env(plan: Plan) -> dict[str, str]:
    return {
        "ROADLESS_HOME": str(plan.home),
        "ROADLESS_HOST": plan.host,
        "ROADLESS_PORT": str(plan.port),
    }


def _runner_env(plan: Plan, head: Mapping[str, Any]) -> dict[str, str]:
    return {
        "ROADLESS_HOME": str(plan.home),
        "ROADLESS_URL": plan.url,
        "ROADLESS_RUNNER_TOKEN_FILE": str(plan.home / "runner.token"),
        "ROADLESS_SCRATCH": str(plan.home / "scratch"),
        "ROADLESS_DATA_CACHE": str(plan.home / "data-cache"),
        "RAY_ADDRESS": str(head["address"]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(head["auth_token_path"]),
    }


def _wait_until(
    why_not: Callable[[], str | None], child: Child, is_asked_to_stop: Callable[[], bool]
) -> None:
    """Wait for a child to be ready; ``why_not``: what it still lacks, None when it is."""
    give_up_at = time.monotonic() + READY_SECONDS
    while (lack := why_not()) is not None and not is_asked_to_stop():
        if child.exit_code() is not None:
            raise UpError(child.exit_report())
        if time.monotonic() > give_up_at:
            raise UpError(
                f"expected the {child.name} to be ready within {READY_SECONDS:g} s, saw {lack}; "
                f"see {child.log}"
            )
        time.sleep(POLL_SECONDS)


def _why_not_ready(url: str) -> str | None:
    try:
        answer = httpx.get(f"{url}/readyz", timeout=2)
    except httpx.TransportError as error:
        return f"no answer from {url} ({error or type(error).__name__})"
    return None if answer.is_success else f"the answer {answer.status_code}: {_detail(answer)}"


def _detail(answer: httpx.Response) -> str:
    """What a problem says, such as that a disk is full."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, TypeError, KeyError):
        return answer.text[:200]


def _announce(plan: Plan, say: Say) -> None:
    at_home = "" if plan.home == Path("~/.roadless").expanduser() else f"ROADLESS_HOME={plan.home} "
    elsewhere = "" if plan.port == 8700 else f"ROADLESS_URL={plan.url} "
    say(f"Roadless is up at {plan.url}")
    say(f"  your token: {plan.home / 'user.token'} (paste it into the dashboard's login)")
    say(f"  logs:       {plan.home / 'logs'}")
    say(f"  submit:     {at_home}{elsewhere}roadless submit FILE.yaml --watch")
    say("Ctrl-C stops everything.")


def _look_after(children: list[Child], say: Say) -> None:
    """Restart what died, a bounded number of times; the Ray head cannot be replaced."""
    ray = children[0]
    if ray.exit_code() is not None:
        raise UpError(ray.exit_report())
    for child in children[1:]:
        if child.exit_code() is None:
            continue
        if not child.may_restart(time.monotonic()):
            raise UpError(
                f"{child.exit_report()}\nit failed more than {MAX_RESTARTS} times; giving up"
            )
        say(f"{child.exit_report()}\nrestarting the {child.name}")
        child.start()
