"""The report as Markdown: one section a study. Losses have five digits, rates are as tried."""

import math
from collections.abc import Iterable, Mapping, Sequence

from tests.studies.evidence.anytime import AnytimeResult, HorizonResult
from tests.studies.evidence.convex import ConvexResult, MethodResult
from tests.studies.evidence.language import LanguageMethodResult, LanguageResult
from tests.studies.evidence.prediction import BASELINE, BatchResult, Observed, PredictionResult
from tests.studies.evidence.record import Difference, Spread, Tuning
from tests.studies.evidence.report import Made, Report

DIVERGED = "diverged"


def render(report: Report) -> str:
    """Return the document; studies that never ran are left out."""
    sections = ["# Evidence: tables", _preface()]
    made = report.made
    if report.convex:
        sections += _convex(report.convex, made["convex"])
    if report.anytime:
        sections += _anytime(report.anytime, made["anytime"])
    if report.prediction:
        sections += _prediction(report.prediction, made["prediction"])
    if report.language:
        sections += _language(report.language, made["language"])
    return "\n\n".join(sections) + "\n"


def _preface() -> str:
    return (
        "Written by the commands below from `results.json`; [README.md](README.md) says what it\n"
        "means. ± is one standard error over seeds. Rates are chosen on some seeds and reported\n"
        "on others. A difference is the method's loss less schedule-free's, seed by seed: above 0\n"
        "schedule-free is better; behind it, in how many of the seeds it was. Inside: smaller and\n"
        "larger rates were tried and were worse."
    )


def _made(made: Made) -> str:
    return (
        f"{made.date}, `{made.command}`, torch {made.torch_version}: "
        f"{made.cpu_seconds:.0f} s of CPU time in this study, "
        f"{made.wall_seconds:.0f} s for the whole command."
    )


def _convex(result: ConvexResult, made: Made) -> list[str]:
    return [
        "## (a) Convex: softmax regression, breast_cancer",
        _made(made),
        f"{result.num_examples} examples, batch {result.batch_size}, {result.num_epochs} epochs "
        f"({result.num_steps} steps), Adam; rates chosen on {result.num_tuning_seeds} seeds.",
        _markdown(
            ("method", "best rate", "inside", "train loss", "difference", "train accuracy"),
            [_method_row(one) for one in result.methods],
        ),
    ]


def _method_row(one: MethodResult) -> list[str]:
    return [
        one.name,
        *_tuned(one.tuning),
        _spread(one.train_loss),
        _difference(one.loss_less_schedule_free),
        _spread(one.train_accuracy, digits=4),
    ]


def _anytime(result: AnytimeResult, made: Made) -> list[str]:
    rivals = [one.name for one in result.horizons[0].rivals]
    header = ["epochs", "schedule-free, one run"]
    for name in rivals:
        header += [f"{name}, tuned", "rate", "difference"]
    header += ["schedule-free, half rate", "double rate"]
    return [
        "## (b) Anytime: one run against runs tuned for each horizon",
        _made(made),
        f"The problem of (a). Schedule-free's one rate, {result.schedule_free_rate:g}, is the best "
        f"at {result.tuned_at_epochs} epochs; the last columns are the same run at other rates.",
        _markdown(header, [_horizon_row(one) for one in result.horizons]),
    ]


def _horizon_row(one: HorizonResult) -> list[str]:
    row = [str(one.num_epochs), _spread(one.schedule_free)]
    for rival in one.rivals:
        rate, inside = _tuned(rival.tuning)
        row += [
            _spread(rival.train_loss),
            rate if inside == "yes" else f"{rate} (edge)",
            _difference(rival.loss_less_schedule_free),
        ]
    return [*row, _spread(one.schedule_free_half_rate), _spread(one.schedule_free_double_rate)]


def _prediction(result: PredictionResult, made: Made) -> list[str]:
    predicted = {one.name: one.rate_ratio for one in result.predicted}
    return [
        "## (c) The bound's predictions: hinge loss, SGD, breast_cancer",
        _made(made),
        f"{result.num_steps} steps, half-octave grid, {result.num_tuning_seeds} seeds to choose. "
        "Ratios are of best rates, to that of the constant schedule; in brackets, 5 to 95 % of "
        "draws of seeds. The bound is in units of D G. Agreement: how many intervals hold the "
        "bound's ratio; Spearman's correlation of losses and bounds over the five schedules.",
        _markdown(
            ("", *(one.name for one in result.predicted)),
            [
                ["bound: ratio", *(f"{one.rate_ratio:.2f}" for one in result.predicted)],
                ["bound: value", *(f"{one.bound:.4f}" for one in result.predicted)],
            ],
        ),
        _markdown(
            ("batch", *predicted, "agreement"),
            [row for batch in result.batches for row in _batch_rows(batch, predicted)],
        ),
    ]


def _batch_rows(batch: BatchResult, predicted: Mapping[str, float]) -> list[list[str]]:
    size, observed = str(batch.batch_size), batch.observed
    held = [
        one.rate_ratio_low <= predicted[one.name] <= one.rate_ratio_high
        for one in observed
        if one.name != BASELINE
    ]
    best_rates = [" ".join(_tuned_short(one.tuning)) for one in observed]
    losses = [_spread(one.train_loss) for one in observed]
    return [
        [f"{size}: ratio", *map(_ratio, observed), f"{sum(held)} of {len(held)} intervals"],
        [f"{size}: best rate", *best_rates, ""],
        [f"{size}: train loss", *losses, f"rank correlation {batch.rank_correlation:.2f}"],
    ]


def _ratio(one: Observed) -> str:
    if one.rate_ratio_low == one.rate_ratio_high:
        return f"{one.rate_ratio:g}"
    return f"{one.rate_ratio:.2f} ({one.rate_ratio_low:.2f} to {one.rate_ratio_high:.2f})"


def _language(result: LanguageResult, made: Made) -> list[str]:
    return [
        "## (d) Language: bytes of the standard library",
        _made(made),
        f"{result.num_parameters} parameters ({result.layers} layers, width {result.width}, "
        f"context {result.context}), {result.steps[-1]} steps of {result.batch_size} samples, "
        f"warmup {result.warmup_steps} steps; {result.num_train_bytes} bytes to train on, of "
        f"Python {result.python_version} (SHA-256 {result.corpus_sha256[:12]}...). Held-out nats "
        f"per byte on {result.num_eval_samples} samples, {result.num_reporting_seeds} seeds; rates "
        f"chosen on {result.num_tuning_seeds} other seeds.",
        _markdown(
            ("method", "best rate", "inside", "rates tried", "held-out loss", "difference"),
            [_language_row(one) for one in result.methods],
        ),
        "Mean held-out loss along the runs:",
        _markdown(
            ("method", *(f"step {step}" for step in result.steps)),
            [[one.name, *_means(one.curves)] for one in result.methods],
        ),
    ]


def _language_row(one: LanguageMethodResult) -> list[str]:
    tried = ", ".join(
        f"{rate:g}: {_number(loss)}"
        for rate, loss in zip(one.tuning.rates, one.tuning.losses, strict=True)
    )
    rate, inside = _tuned(one.tuning)
    difference = _difference(one.loss_less_schedule_free)
    return [one.name, rate, inside, tried, _spread(one.final_loss, digits=4), difference]


def _means(curves: Sequence[Sequence[float]]) -> list[str]:
    return [_number(sum(column) / len(column)) for column in zip(*curves, strict=True)]


def _tuned(tuning: Tuning) -> tuple[str, str]:
    return f"{tuning.best_rate:.4g}", "yes" if tuning.is_inside else "**no**"


def _tuned_short(tuning: Tuning) -> Iterable[str]:
    rate, inside = _tuned(tuning)
    return [rate] if inside == "yes" else [rate, "(edge)"]


def _spread(spread: Spread, *, digits: int = 5) -> str:
    if not spread.is_finite:
        return DIVERGED
    return f"{spread.mean:.{digits}f} ± {spread.standard_error:.{digits}f}"


def _difference(difference: Difference) -> str:
    spread = difference.spread
    if not spread.is_finite:
        return DIVERGED
    if spread.mean == spread.standard_error == 0:
        return "0"
    error = spread.standard_error
    return f"{spread.mean:+.5f} ± {error:.5f}, {difference.num_larger} of {spread.num_runs}"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else DIVERGED


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))
