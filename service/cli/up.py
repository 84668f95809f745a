"""``roadless up``: everything on one machine, as processes started by module name.

The Ray head, the service and the runner are separate processes, so that any of them may die without
the others. A dead service or runner is restarted, while training continues. A dead Ray head takes
the ranks with it: it is replaced, along with the runner, which knows the old one only, and jobs go
on from their last training state. However this process ends, they all end with it.
"""

import errno
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import httpx

from roadless.service.cli import marked
from roadless.service.cli.child import MAX_RESTARTS, Child
from roadless.service.cli.home_lock import LOCK_FILE, HomeTaken, held
from roadless.service.contract.environment import ray_environment

READY_SECONDS = 60.0
POLL_SECONDS = 0.1

RAY, SERVICE, RUNNER = "Ray head", "service", "runner"
_PARTS = (RAY, SERVICE, RUNNER)
#: What the service alone has to know, or a user.
_NOT_THE_RUNNERS = ("ROADLESS_SECRETS_KEY", "ROADLESS_TOKEN", "ROADLESS_RUNNER_TOKEN")


class UpError(Exception):
    """Something did not start, or died for good; the message is one line that names it."""


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


class Asked:
    """What this process has been asked by signals: to end, or to end at once."""

    def __init__(self) -> None:
        self._heard: list[int] = []

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        del frame
        self._heard.append(number)

    def to_end(self) -> bool:
        """Whether any signal has arrived."""
        return bool(self._heard)

    def at_once(self) -> bool:
        """Whether it was a second one, or Ctrl-backslash. A terminal that closes sends two."""
        others = [number for number in self._heard if number != signal.SIGHUP]
        return len(others) > 1 or signal.SIGQUIT in others


def run(plan: Plan, *, say: Say) -> None:
    """Bring everything up, stay until a signal asks for the end, and take everything down again.

    Raises:
        UpError: something did not start, or died for good. Nothing is left running.
    """
    say = _to_whoever_listens(say)
    home = _made_home(plan.home)
    try:
        with held(home) as tell, _signals() as asked:
            _end_what_is_left(home, say)
            plan = _with_free_port(replace(plan, home=home))
            tell(plan.url)
            _stay_up(Stack(plan, asked=asked, say=say), asked=asked)
    except HomeTaken as error:
        raise UpError(str(error)) from error


def _to_whoever_listens(say: Say) -> Say:
    """A terminal or pipe that was closed must not keep anything from being taken down."""

    def safely(line: str) -> None:
        with suppress(OSError):
            say(line)

    return safely


def _made_home(home: Path) -> Path:
    """The home's one name, by whatever links it was given; it can be written."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "logs").mkdir(exist_ok=True, mode=0o700)
        (home / LOCK_FILE).touch(mode=0o600)
        return home.resolve()
    except OSError as error:
        raise UpError(
            f"expected a folder that can be written as the home, saw {home}: {error.strerror}; "
            "choose another with --home"
        ) from error


@contextmanager
def _signals() -> Iterator[Asked]:
    """Listens to what asks a process to end; a hang-up that ``nohup`` ignores stays ignored."""
    asked = Asked()
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, asked.hear) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_what_is_left(home: Path, say: Say) -> None:
    """End what a stack of this home has left: nobody holds the home any more, so it is nobody's."""
    killed = marked.kill(home, parts=_PARTS)
    if killed.left:
        raise UpError(
            f"expected what an earlier roadless up has left running on {home} to end within "
            f"{marked.KILL_SECONDS:g} s, saw {_listed(killed.left)}"
        )
    if killed.found:
        say(f"ended what an earlier roadless up had left running: {_listed(killed.found)}")


def _listed(found: Mapping[int, str]) -> str:
    return ", ".join(f"{part} ({pid})" for pid, part in found.items())


def _with_free_port(plan: Plan) -> Plan:
    """Take a port now, so that a busy one is refused before anything starts."""
    is_ipv6 = ":" in plan.host
    with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((plan.host, plan.port))
        except OSError as error:
            raise UpError(_why_not_bound(plan, error)) from error
        port = probe.getsockname()[1]
    return replace(plan, port=port)


def _why_not_bound(plan: Plan, error: OSError) -> str:
    if error.errno not in (errno.EADDRINUSE, errno.EACCES):
        return (
            f"expected ROADLESS_HOST to be an address of this machine, saw {plan.host}: "
            f"{error.strerror}"
        )
    return (
        f"expected port {plan.port} to be free: {error.strerror}; stop what listens there"
        f"{_who_answers(plan)}, or choose another with --port or ROADLESS_PORT"
    )


def _who_answers(plan: Plan) -> str:
    """That another Roadless has the port."""
    try:
        is_ours = httpx.get(f"{plan.url}/healthz", timeout=1).json() == {"status": "ok"}
    except (httpx.HTTPError, ValueError):
        is_ours = False
    return " (it answers as a Roadless service)" if is_ours else ""


def _stay_up(stack: "Stack", *, asked: Asked) -> None:
    try:
        stack.bring_up()
        while not asked.to_end():
            stack.look_after()
            time.sleep(POLL_SECONDS)
    finally:
        stack.take_down()


class Stack:
    """The three processes: started in order, replaced when they die, ended in reverse."""

    def __init__(self, plan: Plan, *, asked: Asked, say: Say) -> None:
        self._plan = plan
        self._asked = asked
        self._say = say
        cpus = [] if plan.num_cpus is None else ["--num-cpus", str(plan.num_cpus)]
        self._ray = self._child(
            RAY, plan.modules.ray, "--home", str(plan.home), *cpus, environment=_ray_environment
        )
        self._service = self._child(
            SERVICE, plan.modules.service, environment=lambda: _service_environment(plan)
        )
        self._runner = self._child(
            RUNNER,
            plan.modules.runner,
            environment=lambda: _runner_environment(plan, _announced(self._ray)),
        )

    def bring_up(self) -> None:
        """Start them in order, each when what it needs is there; stop where the user asks for it.

        Raises UpError.
        """
        self._say(f"starting the {RAY}")
        self._start_ray()
        self._start(self._service)
        self._wait_until(lambda: _why_not_ready(self._plan.url), self._service)
        self._start(self._runner)
        if not self._asked.to_end():
            _announce(self._plan, self._say)

    def look_after(self) -> None:
        """Restart what has died, a bounded number of times; raise UpError after that."""
        if self._ray.exit_code() is not None:
            self._report_death(self._ray, f"starting another {RAY} and {RUNNER}")
            self._replace_ray()
        for child in (self._service, self._runner):
            if child.exit_code() is not None:
                self._report_death(child, f"restarting the {child.name}")
                child.start()

    def take_down(self) -> None:
        """End the runner, then the service, then Ray; and at last whatever they have left."""
        try:
            for child in (self._runner, self._service, self._ray):
                if child.is_running():
                    self._say(f"stopping the {child.name}")
                child.stop(is_urgent=self._asked.at_once)
        finally:
            marked.kill(self._plan.home, parts=_PARTS)

    def _child(
        self, name: str, module: str, *arguments: str, environment: Callable[[], Mapping[str, str]]
    ) -> Child:
        return Child(
            name,
            [sys.executable, "-P", "-m", module, *arguments],
            log=self._plan.home / "logs" / f"{name.replace(' ', '-')}.log",
            environment=lambda: {**environment(), **marked.mark(name, self._plan.home)},
        )

    def _start(self, child: Child) -> None:
        if not self._asked.to_end():
            self._say(f"starting the {child.name}")
            child.start()

    def _start_ray(self) -> None:
        self._ray.start()
        self._wait_until(lambda: None if _announced(self._ray) else "no address", self._ray)

    def _replace_ray(self) -> None:
        """Ranks, agents and a runner that belong to the dead head end before there is a new one."""
        self._runner.kill()
        marked.kill(self._plan.home, parts=(RAY,))
        self._start_ray()
        self._start(self._runner)

    def _report_death(self, child: Child, what_follows: str) -> None:
        if not child.may_restart(time.monotonic()):
            raise UpError(
                f"{child.exit_report()}; it failed more than {MAX_RESTARTS} times, giving up"
            )
        self._say(f"{child.exit_report()}; {what_follows}")

    def _wait_until(self, why_not: Callable[[], str | None], child: Child) -> None:
        """Wait for a child to be ready; ``why_not``: what it still lacks, None when it is."""
        give_up_at = time.monotonic() + READY_SECONDS
        while (lack := why_not()) is not None and not self._asked.to_end():
            if child.exit_code() is not None:
                raise UpError(child.exit_report())
            if time.monotonic() > give_up_at:
                raise UpError(child.why_not(lack, seconds=READY_SECONDS))
            time.sleep(POLL_SECONDS)


def _announced(ray: Child) -> dict[str, str]:
    """What a driver's environment needs, once the head has printed it; other lines are its log."""
    for line in ray.said().splitlines():
        if line.startswith("{"):
            with suppress(ValueError):
                said: dict[str, str] = json.loads(line)
                if "RAY_ADDRESS" in said:
                    return said
    return {}


def _ray_environment() -> dict[str, str]:
    return ray_environment(os.environ)


def _service_environment(plan: Plan) -> dict[str, str]:
    return {
        **os.environ,
        "ROADLESS_HOME": str(plan.home),
        "ROADLESS_HOST": plan.host,
        "ROADLESS_PORT": str(plan.port),
    }


def _runner_environment(plan: Plan, head: Mapping[str, str]) -> dict[str, str]:
    settings = {name: value for name, value in os.environ.items() if name.startswith("ROADLESS_")}
    return {
        **ray_environment(os.environ),
        **{name: settings[name] for name in settings if name not in _NOT_THE_RUNNERS},
        "ROADLESS_HOME": str(plan.home),
        "ROADLESS_URL": plan.url,
        "ROADLESS_RUNNER_TOKEN_FILE": str(plan.home / "runner.token"),
        "ROADLESS_SCRATCH": str(plan.home / "scratch"),
        "ROADLESS_DATA_CACHE": str(plan.home / "data-cache"),
        "ROADLESS_CLUSTER": _cluster_id(plan.home),
        **head,
    }


def _cluster_id(home: Path) -> str:
    """What this home's Ray heads, of which one lives at a time, are called as a cluster."""
    path = home / "cluster.id"
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"home-{secrets.token_hex(8)}")
    return path.read_text()


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
