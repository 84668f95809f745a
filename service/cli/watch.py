"""What ``--watch`` shows: one look at a job, what several of them show, and how it is drawn.

Looking (HTTP), computing (pure) and drawing (rich) are separate. Without a terminal the same looks
become plain lines, one whenever something is worth a line.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from roadless.service.cli.terminal import cell, printable
from roadless.service.client import ApiError, Client, Unreachable
from roadless.service.contract.resources import CurvePoint, Job
from roadless.service.contract.states import TERMINAL, Phase

POLL_SECONDS = 0.5
#: How long the service may be away before watching ends.
AWAY_SECONDS = 120.0
#: Plain lines while nothing but the step moves: one in this many looks.
LOOKS_PER_LINE = 10

NOTHING_YET = "-"

_RATE_LOOKS = 20
_RECENT_STEPS = 100
_SPARK_WIDTH = 60
_BARS = "▁▂▃▄▅▆▇█"
_COLOURS = {
    Phase.RUNNING: "green",
    Phase.SUCCEEDED: "bold green",
    Phase.STOPPED: "bold blue",
    Phase.CANCELLED: "yellow",
    Phase.PAUSING: "yellow",
    Phase.PAUSED: "bold yellow",
    Phase.FAILING: "red",
    Phase.FAILED: "bold red",
    Phase.RECOVERING: "magenta",
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a job. ``train_loss``: its last finite value, if one was reported yet."""

    job: Job
    curve: tuple[CurvePoint, ...]
    train_loss: float | None
    steps_per_second: float | None


def watch(
    client: Client, job_id: str, *, console: Console, sleep: Callable[[float], None] = time.sleep
) -> Job:
    """Show the job until it is terminal, and return it as it is then.

    Raises:
        ClientError: the job is unknown, or the service stays away for AWAY_SECONDS.
    """
    looks = _looks(client, job_id, sleep=sleep)
    return _draw(looks, console) if console.is_terminal else _print(looks, console)


def _looks(client: Client, job_id: str, *, sleep: Callable[[float], None]) -> Iterator[Look]:
    """Looks at the job, the last of which is terminal. Bridges a service that is away."""
    rate, curve = Rate(), Curve()
    heard_at = time.monotonic()
    while True:
        try:
            look = _look(client, client.job(job_id), rate=rate, curve=curve)
            heard_at = time.monotonic()
        except (Unreachable, ApiError) as error:
            gone = isinstance(error, Unreachable) or error.status >= 500
            if not gone or time.monotonic() - heard_at > AWAY_SECONDS:
                raise
        else:
            yield look
            if look.job.phase in TERMINAL:
                return
        sleep(POLL_SECONDS)


def _look(client: Client, job: Job, *, rate: "Rate", curve: "Curve") -> Look:
    rate.add(job)
    curve.extend(client, job)
    recent = max(0, job.progress.step - _RECENT_STEPS)
    loss = client.metric(job.id, "train.loss", x_min=recent, buckets=1).last
    return Look(
        job=job,
        curve=tuple(curve.points),
        train_loss=loss[-1] if loss else None,
        steps_per_second=rate.steps_per_second,
    )


class Rate:
    """Steps per second of training over the last looks; a standstill keeps the last number."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque(maxlen=_RATE_LOOKS)
        self.steps_per_second: float | None = None

    def add(self, job: Job) -> None:
        """Add one more look. Going back to an earlier step starts over."""
        now = (job.progress.step, job.progress.wall_seconds)
        if self._seen and now < self._seen[-1]:
            self._seen.clear()
        self._seen.append(now)
        steps, seconds = (last - first for last, first in zip(now, self._seen[0], strict=True))
        if seconds > 0:
            self.steps_per_second = steps / seconds


class Curve:
    """The eval curve so far; only what is new is fetched, and all of it after a new attempt."""

    def __init__(self) -> None:
        self.points: list[CurvePoint] = []
        self._fence: int | None = None

    def extend(self, client: Client, job: Job) -> None:
        """Fetch what the curve has gained since the last time."""
        fence = job.attempt.fence if job.attempt else None
        if fence != self._fence:
            self.points, self._fence = [], fence
        since = self.points[-1].step if self.points else None
        self.points += client.eval_curve(job.id, since=since)


def sparkline(values: Sequence[float | None], *, width: int = _SPARK_WIDTH) -> str:
    """A line of block characters, lowest to highest; None is a gap.

    More values than ``width`` are thinned evenly; the first and the last one stay.
    """
    if len(values) > width:
        values = [values[i * (len(values) - 1) // (width - 1)] for i in range(width)]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(" " if value is None else _bar(value - low, span) for value in values)


def _bar(height: float, span: float) -> str:
    return _BARS[0] if span == 0 else _BARS[round(height / span * (len(_BARS) - 1))]


def _draw(looks: Iterator[Look], console: Console) -> Job:
    with Live(console=console, auto_refresh=False) as live:
        for look in looks:
            live.update(panel(look), refresh=True)
    return look.job


def panel(look: Look) -> RenderableType:
    """The look as a panel."""
    job = look.job
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    facts.add_row("phase", Text(*_phase(job)))
    facts.add_row("step", f"{job.progress.step:,}{_of_budget(job)}")
    facts.add_row("speed", _number(look.steps_per_second, ".1f", " steps/s"))
    facts.add_row("train loss", _number(look.train_loss, ".5g"))
    facts.add_row("eval at x", Text(_eval_text(look.curve)))
    curve = Text(sparkline([point.loss for point in look.curve]), style="cyan")
    title = Text(f"{cell(job.name)}  {job.id}")
    return Panel(Group(facts, curve), title=title, title_align="left")


def _phase(job: Job) -> tuple[str, str]:
    details = [printable(text) for text in (job.reason, job.message) if text]
    text = f"{job.phase}  {': '.join(details)}" if details else str(job.phase)
    return text, _COLOURS.get(job.phase, "cyan")


def _of_budget(job: Job) -> str:
    budget = job.spec.budget
    if budget is None:
        return "  (open-ended)"
    return f" of {budget.max_steps:,}" if budget.max_steps else ""


def _number(value: float | None, form: str, unit: str = "") -> str:
    return NOTHING_YET if value is None else f"{value:{form}}{unit}"


def _eval_text(curve: Sequence[CurvePoint]) -> str:
    if not curve:
        return NOTHING_YET
    point = curve[-1]
    metrics = "".join(
        f"  {cell(name)} {_number(value, '.5g')}" for name, value in sorted(point.metrics.items())
    )
    return f"loss {_number(point.loss, '.5g')}{metrics}  (step {point.step:,})"


def _print(looks: Iterator[Look], console: Console) -> Job:
    shown: tuple[Phase, int] | None = None
    for number, look in enumerate(looks):
        seen = (look.job.phase, len(look.curve))
        if seen != shown or (number % LOOKS_PER_LINE == 0 and not _stands_still(look.job)):
            console.print(line(look), markup=False, highlight=False, soft_wrap=True)
        shown = seen
    return look.job


def _stands_still(job: Job) -> bool:
    """Whether nothing changes until a user acts, so that further lines would be the same."""
    return job.phase is Phase.PAUSED


def line(look: Look) -> str:
    """The look as one plain line."""
    return "  ".join(
        (
            _phase(look.job)[0],
            f"step {look.job.progress.step}",
            _number(look.steps_per_second, ".1f", " steps/s"),
            f"train {_number(look.train_loss, '.5g')}",
            f"eval {_eval_text(look.curve)}",
        )
    )
