"""What ``roadless theory`` and ``roadless plan`` print: answers of the service as tables."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from roadless.service.cli.terminal import cell, printable
from roadless.service.contract.theory.analysis import Extension, Theory, TheoryPoint
from roadless.service.contract.theory.plan import Candidate, Plan

#: The most evaluations in a table; of more, an even choice with the first and the last one.
MAX_ROWS = 12
NOTHING = "-"
_SOURCES = {"given": "given", "fitted": "fitted to the losses", "assumed": "assumed"}


def theory_tables(theory: Theory) -> RenderableType:
    """Return a job's theory: facts, evaluations, other schedules, how to continue, caveats."""
    return Group(
        _facts(theory),
        _titled("Evaluations", _evaluations(theory)),
        _titled("Tuned for the same steps", _alternatives(theory)),
        _titled(_extension_title(theory.extension), _continuations(theory.extension)),
        Text(printable(theory.extension.advice)),
        _titled("What the theory does not cover", _caveats(theory)),
    )


def plan_tables(plan: Plan) -> RenderableType:
    """Return a plan: the ranking, and the extension if one was requested."""
    source = {"unit": "taken as 1", "given": "given", "tuned": "of the tuned rate"}
    facts = _grid(
        ("horizon", f"{plan.horizon:,} steps"),
        ("gradient norm", _number(plan.grad_norm)),
        ("distance D", f"{_number(plan.distance)}  ({source[plan.distance_source]})"),
    )
    ranking = _titled("Schedules at their best base rate", _ranking(plan))
    if plan.extension is None:
        return Group(facts, ranking)
    extension = plan.extension
    ways = _titled(_extension_title(extension), _continuations(extension))
    return Group(facts, ranking, ways, Text(printable(extension.advice)))


def _facts(theory: Theory) -> Table:
    bounded = {"average": "the averaged point x", "last_iterate": "the last iterate"}
    return _grid(
        ("job", theory.job_id),
        ("steps", f"{theory.num_steps:,}"),
        ("bounded", bounded[theory.bounded]),
        ("distance D", f"{_number(theory.distance)}  ({_SOURCES[theory.distance_source]})"),
        ("gradient norm", f"{_number(theory.grad_norm)}  (root mean square, {theory.norms})"),
        ("fit", _fit(theory)),
        ("gap", _gap(theory)),
        ("best rate", _best_rate(theory)),
    )


def _fit(theory: Theory) -> str:
    if theory.fit is None:
        return f"none: {theory.no_fit_reason}"
    line = theory.fit.huber
    return (
        f"loss ~ {_number(line.offset)} + {_number(line.slope)} * bound  "
        f"({100 * line.median_relative_error:.2g} % off at half of {line.num_points} points)"
    )


def _gap(theory: Theory) -> str:
    if theory.gap is None:
        return NOTHING
    gap = theory.gap
    return f"{gap.last:+.4g} at step {gap.last_step:,}, {gap.largest:+.4g} at {gap.largest_step:,}"


def _best_rate(theory: Theory) -> str:
    if theory.best_factor is None:
        return NOTHING
    return f"{_number(theory.best_factor)} times the {_number(theory.base_lr)} used"


def _evaluations(theory: Theory) -> Table:
    table = _table("step", "loss", "predicted", "gap", "bound")
    for point in _thinned(theory.data):
        table.add_row(
            f"{point.step:,}", *map(_number, (point.loss, point.predicted, point.gap, point.bound))
        )
    return table


def _thinned(points: list[TheoryPoint]) -> Iterator[TheoryPoint]:
    last = len(points) - 1
    rows = min(len(points), MAX_ROWS)
    return (points[row * last // max(rows - 1, 1)] for row in range(rows))


def _alternatives(theory: Theory) -> Table:
    table = _table("best base rate", "of the one used", "bound", "predicted", first="schedule")
    for one in theory.alternatives:
        numbers = (one.base_lr, one.relative_lr, one.bound, one.predicted)
        table.add_row(cell(one.schedule), *map(_number, numbers))
    return table


def _extension_title(extension: Extension) -> str:
    return f"From {extension.from_step:,} to {extension.to_step:,} steps"


def _continuations(extension: Extension) -> Table:
    table = _table(
        "from step", "base rate", "cooldown", "factor", "bound", "predicted", first="way"
    )
    for one in extension.continuations:
        start = f"{one.starts_at:,}" if one.starts_at else "from scratch"
        numbers = (one.base_lr, one.cooldown_len, one.factor, one.bound, one.predicted)
        table.add_row(cell(one.name), start, *map(_number, numbers))
    return table


def _caveats(theory: Theory) -> Table:
    return _grid(*((str(one.code), one.text) for one in theory.caveats))


def _ranking(plan: Plan) -> Table:
    table = _table("best base rate", "bound", "of the least", first="schedule")
    for one in plan.ranking:
        numbers = (one.base_lr, one.bound, one.relative_bound)
        table.add_row(schedule_text(one.schedule), *map(_number, numbers))
    return table


def schedule_text(schedule: Candidate) -> str:
    """Return the name and what differs from its defaults, as ``--schedule`` takes it."""
    given = schedule.model_dump(exclude_defaults=True, exclude={"name"})
    return ",".join([schedule.name, *(f"{name}={value}" for name, value in given.items())])


def _titled(title: str, table: Table) -> RenderableType:
    return Group("", Text(title, style="bold"), table)


def _grid(*rows: tuple[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, value in rows:
        grid.add_row(name, Text(printable(value)))
    return grid


def _table(*columns: str, first: str | None = None) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    if first is not None:
        table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"
