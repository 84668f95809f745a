"""The report as four small SVG files, byte for byte equal for equal results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from tests.studies.evidence.anytime import AnytimeResult
from tests.studies.evidence.convex import ConvexResult
from tests.studies.evidence.language import LanguageResult
from tests.studies.evidence.prediction import SCHEDULE_FREE, PredictionResult
from tests.studies.evidence.report import Report

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "roadless",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}
#: Okabe and Ito's, which colour-blind readers can tell apart; any other name is schedule-free's.
_COLOURS = {
    SCHEDULE_FREE: "#0072B2",
    "schedule-free, beta 0.98": "#56B4E9",
    "linear": "#D55E00",
    "cosine": "#009E73",
    "wsd": "#CC79A7",
    "constant": "#7F7F7F",
    "Polyak average": "#E69F00",
    "one_minus_sqrt": "#000000",
}


def draw(report: Report, folder: Path) -> list[Path]:
    """Write a figure for each study that ran; return the files."""
    wanted: list[tuple[str, Any, Callable[[Any], Figure]]] = [
        ("convex", report.convex, _convex),
        ("anytime", report.anytime, _anytime),
        ("prediction", report.prediction, _prediction),
        ("language", report.language, _language),
    ]
    written = []
    for name, result, make in wanted:
        if result is None:
            continue
        path = folder / f"{name}.svg"
        with rc_context(_STYLE):
            make(result).savefig(path, metadata={"Date": None})
        written.append(path)
    return written


def _colour(name: str) -> str:
    return _COLOURS.get(name, _COLOURS[SCHEDULE_FREE])


def _one_panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    return figure, figure.add_subplot()


def _convex(result: ConvexResult) -> Figure:
    figure, axes = _one_panel()
    for one in result.methods:
        rates, losses = one.tuning.rates, one.tuning.losses
        colour = _colour(one.name)
        axes.plot(rates, losses, "o-", color=colour, label=one.name)
        best = one.tuning.best_rate
        axes.plot(best, losses[rates.index(best)], "o", markersize=9, mfc="none", color=colour)
    axes.set_xscale("log", base=2)
    lowest = min(one.train_loss.mean for one in result.methods)
    axes.set_ylim(lowest * 0.97, lowest * 1.6)
    axes.set_xlabel("learning rate (best one circled)")
    axes.set_ylabel(f"train loss after {result.num_epochs} epochs")
    axes.set_title("(a) Softmax regression: every method at every rate")
    axes.legend()
    return figure


def _anytime(result: AnytimeResult) -> Figure:
    figure, axes = _one_panel()
    epochs = [one.num_epochs for one in result.horizons]
    axes.errorbar(
        epochs,
        [one.schedule_free.mean for one in result.horizons],
        yerr=[one.schedule_free.standard_error for one in result.horizons],
        fmt="o-",
        color=_colour(SCHEDULE_FREE),
        label=f"schedule-free: one run, rate {result.schedule_free_rate:g}",
    )
    for index, rival in enumerate(result.horizons[0].rivals):
        axes.errorbar(
            epochs,
            [one.rivals[index].train_loss.mean for one in result.horizons],
            yerr=[one.rivals[index].train_loss.standard_error for one in result.horizons],
            fmt="s" if index else "D",
            color=_colour(rival.name),
            label=f"{rival.name}: a tuned run for each point",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(epochs, [str(one) for one in epochs])
    axes.set_xlabel("epochs")
    axes.set_ylabel("train loss")
    axes.set_title("(b) One run, read at any time, and runs that knew their end")
    axes.legend()
    return figure


def _prediction(result: PredictionResult) -> Figure:
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    ratios, losses = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_ratios(ratios, result)
    _draw_losses(losses, result)
    return figure


def _draw_ratios(axes: Axes, result: PredictionResult) -> None:
    predicted = {one.name: one.rate_ratio for one in result.predicted}
    names = [name for name in predicted if name != "constant"]
    for row, name in enumerate(names):
        axes.plot([row - 0.38, row + 0.38], [predicted[name]] * 2, color="black", linewidth=2)
    for index, batch in enumerate(result.batches):
        by_name = {one.name: one for one in batch.observed}
        found = [by_name[name] for name in names]
        shift = 0.13 * (index - (len(result.batches) - 1) / 2)
        middles = [one.rate_ratio for one in found]
        axes.errorbar(
            [row + shift for row in range(len(names))],
            middles,
            yerr=[
                [max(0.0, one.rate_ratio - one.rate_ratio_low) for one in found],
                [max(0.0, one.rate_ratio_high - one.rate_ratio) for one in found],
            ],
            fmt="o",
            linewidth=1,
            color=_shade(index, len(result.batches)),
            label=f"batch {batch.batch_size}",
        )
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylabel("best rate / that of constant")
    axes.set_title("(c) Best rates; bars: the bound")
    axes.legend(ncols=2)


def _draw_losses(axes: Axes, result: PredictionResult) -> None:
    """Schedules from left to right by their bounds: lines rise where training agrees."""
    scheduled = [one for one in result.predicted if one.name != SCHEDULE_FREE]
    names = [one.name for one in sorted(scheduled, key=lambda one: one.bound)]
    for index, batch in enumerate(result.batches):
        by_name = {one.name: one.train_loss for one in batch.observed}
        axes.errorbar(
            range(len(names)),
            [by_name[name].mean for name in names],
            yerr=[by_name[name].standard_error for name in names],
            fmt="o-",
            linewidth=1,
            color=_shade(index, len(result.batches)),
        )
    axes.set_xticks(range(len(names)), [_short(name) for name in names])
    axes.set_xlabel("in the order of the bound, best first")
    axes.set_ylabel("train loss at the best rate")
    axes.set_title("Losses")


def _language(result: LanguageResult) -> Figure:
    figure, axes = _one_panel()
    for one in result.methods:
        columns = list(zip(*one.curves, strict=True))
        colour = _colour(one.name)
        means = [sum(column) / len(column) for column in columns]
        axes.plot(
            result.steps, means, color=colour, label=f"{one.name}, rate {one.tuning.best_rate:.2g}"
        )
        axes.fill_between(
            result.steps,
            [min(column) for column in columns],
            [max(column) for column in columns],
            color=colour,
            alpha=0.2,
            linewidth=0,
        )
    axes.set_xlabel("steps")
    axes.set_ylabel("held-out loss, nats per byte")
    axes.set_title(
        f"(d) Language model of {result.num_parameters:,} parameters; bands hold all seeds"
    )
    axes.legend()
    return figure


def _short(name: str) -> str:
    return {"one_minus_sqrt": "1-sqrt"}.get(name, name)


def _shade(index: int, count: int) -> str:
    """Return a colour of a scale, darker for later ones."""
    return to_hex(colormaps["viridis_r"](0.1 + 0.8 * index / max(1, count - 1)))
