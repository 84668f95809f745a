"""The studies of ``make evidence`` in miniature: whether they measure what they say."""

import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch.nn import functional

from roadless.optim import AdamWScheduleFree, at_average, averaged_point
from roadless.optim.schedule_free.base import ScheduleFreeOptimizer
from roadless.service.contract.job.models import GptPreset
from roadless.worker.data.builtin import stdlib_bytes
from roadless.worker.data.sampler import global_indices
from roadless.worker.model.gpt import Gpt
from tests.studies.evidence import anytime, convex, language, prediction, studies
from tests.studies.evidence.adam_methods import adam_methods
from tests.studies.evidence.convex_search import Choice, chosen
from tests.studies.evidence.language_run import LanguageMethod, LanguageRun, Size, train
from tests.studies.evidence.linear_models import (
    hinge_classifier,
    orders,
    softmax_regression,
    steps_of,
)
from tests.studies.evidence.protocols import FULL, SHORT, Protocols
from tests.studies.evidence.record import DIVERGED, Difference, Spread, Tuning
from tests.studies.evidence.report import Made, Report, read
from tests.studies.evidence.search import MAX_GROWTHS, Search
from tests.studies.evidence.side_by_side import Method, PolyakAdamW
from tests.studies.evidence.side_by_side import train as train_side_by_side
from tests.studies.evidence.table import render
from tests.studies.evidence.vertex import best_octave, resampled_octaves

DOCUMENTS = Path(__file__).parents[2] / "docs" / "evidence"
LARGEST_FIGURE_BYTES = 60_000

CHOICE = Choice(
    batch_size=64, num_tuning_seeds=2, num_reporting_seeds=2, first_grid=Search(low=-4, high=-2)
)
SIZE = Size(
    layers=1,
    width=8,
    heads=1,
    context=8,
    batch_size=2,
    num_steps=8,
    warmup_steps=2,
    num_evaluations=2,
    num_eval_samples=16,
)
TINY = Protocols(
    convex=convex.Protocol(num_epochs=1, choice=CHOICE),
    anytime=anytime.Protocol(horizons=(1, 2, 3), choice=CHOICE),
    prediction=prediction.Protocol(
        num_steps=12,
        batch_sizes=(4, 8),
        num_tuning_seeds=2,
        num_reporting_seeds=2,
        first_grid=Search(low=-3, high=1, per_octave=2),
    ),
    language=replace(
        SHORT.language,
        size=SIZE,
        reporting_seeds=(2, 3),
        first_grid_schedule_free=Search(low=-6, high=-4),
        first_grid_schedules=Search(low=-6, high=-4),
    ),
)
MADE = Made(date="2026-01-02", command="x", cpu_seconds=1, wall_seconds=2, torch_version="t")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the studies have it; several threads would wait for each other over such small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def report() -> Report:
    """All four studies in miniature, through the real worker processes."""
    made = Report()
    for name, (result, cpu_seconds) in studies.run(studies.NAMES, protocols=TINY).items():
        assert cpu_seconds > 0
        made = made.with_study(name, result, MADE)
    return made


@pytest.fixture
def keep() -> Callable[[Report, Path], None]:
    """What writes results, tables and figures; the last need an extra that may be absent."""
    pytest.importorskip("matplotlib")
    return import_module("tests.studies.evidence.document").keep


# ---- searching a rate ----------------------------------------------------------------------------


def finished(search: Search, loss_at) -> Search:
    while search.missing:
        search = search.told({k: loss_at(k) for k in search.missing})
    return search


@given(low=st.integers(-20, 20), span=st.integers(2, 8), offset=st.integers(-6, 6))
def test_a_search_grows_until_the_best_rate_is_inside(low, span, offset):
    """Whatever edge the grid has, a best rate within its reach ends up with worse neighbours."""
    search = Search(low=low, high=low + span)
    target = low + span // 2 + offset
    found = finished(search, lambda k: abs(k - target))
    assert found.best == target
    assert found.is_inside


def test_a_search_whose_losses_only_fall_stops_and_says_that_it_is_on_the_edge():
    """Growth is bounded, and an edge is never passed off as an optimum."""
    found = finished(Search(low=0, high=2), lambda k: -k)
    assert found.high == 2 + MAX_GROWTHS
    assert found.best == found.high
    assert not found.is_inside
    assert not Tuning.of(found).is_inside


def test_a_diverged_rate_is_never_chosen_but_bounds_the_grid():
    """NaN compares as neither better nor worse; as infinity it is worse than all."""
    found = finished(Search(low=0, high=2), lambda k: 0.5 if k == 1 else math.nan)
    assert found.best == 1
    assert found.is_inside
    assert Tuning.of(found).losses == [DIVERGED, 0.5, DIVERGED]


def test_a_grid_without_room_inside_is_refused():
    with pytest.raises(ValueError, match="at least 3 exponents"):
        Search(low=0, high=1)


def test_rates_are_fractions_of_octaves():
    assert Search(low=0, high=4, per_octave=2).rate(3) == pytest.approx(2**1.5)


# ---- numbers -------------------------------------------------------------------------------------


def test_a_spread_is_mean_and_standard_error_of_the_mean():
    assert Spread.of([1.0, 2.0, 3.0, 6.0]) == Spread(
        mean=3.0, standard_error=math.sqrt(14 / 3) / 2, num_runs=4
    )


def test_a_spread_of_one_run_is_refused():
    with pytest.raises(ValueError, match="at least 2 values, saw 1"):
        Spread.of([1.0])


def test_a_diverged_run_makes_mean_and_difference_diverged():
    """A mean over the runs that happened to survive would flatter the method."""
    assert not Spread.of([1.0, math.nan]).is_finite
    assert not Difference.of([1.0, math.inf], [1.0, math.inf]).spread.is_finite


def test_differences_pair_equal_seeds():
    """Seeds that are hard for both cancel; unpaired, the error would be 5."""
    found = Difference.of([11.0, 1.5], [10.0, 1.0])
    assert found.spread == Spread(mean=0.75, standard_error=0.25, num_runs=2)
    assert found.num_larger == 2


@given(
    middle=st.floats(-2.4, 2.4),
    curvature=st.floats(0.1, 10),
    per_octave=st.integers(1, 3),
)
def test_the_best_octave_of_a_parabola_is_exact(middle, curvature, per_octave):
    search = Search(low=-3, high=3, per_octave=per_octave)
    losses = {k: curvature * (k - middle) ** 2 for k in range(-3, 4)}
    assert best_octave(search, losses) == pytest.approx(middle / per_octave, abs=1e-6)


@pytest.mark.parametrize("losses", [{0: 1.0, 1: 2.0, 2: 3.0}, {-1: math.inf, 0: 1.0, 1: 2.0}])
def test_beside_an_edge_or_a_diverged_run_the_best_octave_is_that_of_the_grid(losses):
    assert best_octave(Search(low=-1, high=2), losses) == 0


def test_resampled_octaves_are_those_of_the_drawn_seeds():
    search = Search(low=0, high=2)
    losses = {0: np.array([1.0, 9.0]), 1: np.array([0.0, 4.0]), 2: np.array([1.0, 0.0])}
    draws = np.array([[0, 0], [1, 1]])
    assert resampled_octaves(search, losses, draws_DS=draws).tolist() == [1.0, 2.0]


@given(st.permutations(range(5)), st.permutations(range(5)))
def test_the_rank_correlation_is_spearmans(first, second):
    values, others = [float(v) ** 3 for v in first], [2.0**v for v in second]
    expected = spearmanr(values, others).statistic
    assert prediction.rank_correlation(values, others) == pytest.approx(expected)


# ---- training side by side -----------------------------------------------------------------------


def alone(model, method: Method, *, rate: float, order_TB: torch.Tensor) -> torch.Tensor:
    """One run by itself, as a reader would write it."""
    weights = torch.zeros(
        model.inputs.shape[1], model.num_scores, dtype=torch.float64, requires_grad=True
    )
    optimizer = method.make([{"params": [weights], "lr": rate}])
    factors = method.factors(len(order_TB))
    points = []
    for step, examples in enumerate(order_TB):
        optimizer.param_groups[0]["lr"] = rate * factors[step]
        loss = model.losses(model.inputs[examples] @ weights, model.targets[examples]).mean()
        (weights.grad,) = torch.autograd.grad(loss, weights)
        optimizer.step()
        points.append(weights.detach().clone())
    if isinstance(optimizer, PolyakAdamW):
        return torch.stack(points).mean(0)
    if isinstance(optimizer, ScheduleFreeOptimizer):
        return averaged_point(optimizer)[weights]
    return points[-1]


@pytest.mark.parametrize("method", adam_methods(), ids=lambda method: method.name)
def test_softmax_runs_side_by_side_are_those_that_run_alone(method):
    """Neither seeds in one tensor nor rates in one optimizer touch each other."""
    assert_equal_alone(softmax_regression(), method)


@pytest.mark.parametrize("method", prediction.methods(), ids=lambda method: method.name)
def test_hinge_runs_side_by_side_are_those_that_run_alone(method):
    """The same for SGD."""
    assert_equal_alone(hinge_classifier(), method)


def assert_equal_alone(model, method: Method) -> None:
    rates, seeds, num_steps = [0.01, 0.5], range(3), 20
    order = orders(model, seeds=seeds, num_steps=num_steps, batch_size=16)
    (scores,) = train_side_by_side(
        model, method, rates=rates, orders_STB=order, score_at=[num_steps]
    )
    for row, rate in enumerate(rates):
        for column in seeds:
            weights = alone(model, method, rate=rate, order_TB=order[column])
            outputs = model.inputs @ weights
            loss = model.losses(outputs, model.targets).mean()
            hits = (model.classes(outputs) == model.targets).double().mean()
            assert scores.losses[row, column] == pytest.approx(float(loss), rel=1e-10)
            assert scores.accuracies[row, column] == pytest.approx(float(hits), abs=1e-12)


def test_a_run_can_be_read_on_its_way_without_being_disturbed():
    """A reading at a step is what a run of that length gives, where no schedule knows the end."""
    model, method = softmax_regression(), adam_methods()[0]
    order = orders(model, seeds=range(2), num_steps=12, batch_size=16)
    long = train_side_by_side(model, method, rates=[0.1], orders_STB=order, score_at=[5, 12])
    first, last = long
    (short,) = train_side_by_side(model, method, rates=[0.1], orders_STB=order[:, :5], score_at=[5])
    assert first.step == 5
    assert first.losses.tolist() == short.losses.tolist()
    assert last.losses.tolist() != short.losses.tolist()


def test_an_epoch_shows_each_example_once_and_seeds_differ():
    model = softmax_regression()
    num_steps = steps_of(model, num_epochs=1, batch_size=8)
    order = orders(model, seeds=range(2), num_steps=num_steps, batch_size=8)
    flat = order.flatten(1)[:, : model.num_examples]
    assert flat.sort().values.tolist() == [list(range(model.num_examples))] * 2
    assert not torch.equal(order[0], order[1])


def test_the_losses_are_cross_entropy_and_hinge():
    scores, targets = torch.tensor([[[2.0, -1.0]], [[0.5, 0.5]]]), torch.tensor([[1], [0]])
    expected = functional.cross_entropy(scores[:, 0], targets[:, 0], reduction="none")
    assert torch.equal(softmax_regression().losses(scores, targets)[:, 0], expected)
    margins = torch.tensor([[0.25], [3.0], [-2.0]])
    assert hinge_classifier().losses(margins, torch.tensor([1, 1, 1])).tolist() == [0.75, 0, 3]
    assert hinge_classifier().losses(margins, torch.tensor([0, 0, 0])).tolist() == [1.25, 4, 0]


def test_rates_are_chosen_and_reported_on_different_seeds():
    """Else the best of several rates would look better than it is."""
    assert set(CHOICE.tuning_seeds).isdisjoint(CHOICE.reporting_seeds)
    found = chosen(softmax_regression(), adam_methods()[0], choice=CHOICE, num_steps=3)
    at_best = found.tuning_losses[found.search.best]
    assert not set(at_best) & set(found.scores.losses[0])


@pytest.mark.parametrize("protocols", [SHORT, FULL])
def test_no_protocol_of_the_language_study_reports_on_seeds_that_rates_are_chosen_on(protocols):
    """One seed to choose on was seen to pick a rate that is 0.03 nats worse on others: take two."""
    tuning, reporting = protocols.language.tuning_seeds, protocols.language.reporting_seeds
    assert set(tuning).isdisjoint(reporting)
    assert len(tuning) >= 2
    assert len(reporting) >= 3


# ---- the language model --------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [None, "wsd"])
def test_a_language_run_is_a_function_of_its_arguments(schedule):
    """Twice the same bits; another seed, other ones."""
    run = LanguageRun(LanguageMethod("x", schedule=schedule), 0.01, 1, SIZE)
    first, second = train(run), train(run)
    assert first.losses == second.losses
    assert train(replace(run, seed=2)).losses != first.losses
    assert len(first.losses) == SIZE.num_evaluations
    assert all(0 < loss < 8 for loss in first.losses)


def test_a_schedule_free_language_run_is_judged_at_x_on_batches_of_its_seed():
    """The same run, spelled out."""
    data = stdlib_bytes.load(context=SIZE.context)
    torch.manual_seed(5)
    spec = GptPreset(kind="preset", name="gpt", layers=1, width=8, heads=1, context=8)
    model = Gpt(spec, data=data.description)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1, betas=(0.8, 0.95), warmup_steps=2)

    def loss_of(batch):
        return functional.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())

    for step in range(SIZE.num_steps):
        indices = global_indices(step, batch_size=2, num_train=data.num_train, seed=5)
        optimizer.zero_grad()
        loss_of(data.train_batch(indices)).backward()
        optimizer.step()
    with at_average(optimizer), torch.no_grad():
        expected = loss_of(data.eval_batch(0, 16)).item()
    found = train(LanguageRun(LanguageMethod("x", beta=0.8), 0.1, 5, SIZE))
    assert found.losses[-1] == expected


def test_evaluating_more_often_leaves_a_language_run_as_it_was():
    """Reading x in between is not part of the training."""
    run = LanguageRun(LanguageMethod("x"), 0.01, 1, SIZE)
    often = replace(run, size=replace(SIZE, num_evaluations=8))
    assert train(often).losses[-1] == train(run).losses[-1]


def test_a_diverging_language_run_ends_as_a_loss_that_is_not_finite():
    run = LanguageRun(LanguageMethod("x", schedule="constant"), 1e30, 1, SIZE)
    assert not math.isfinite(train(run).losses[-1])


def test_a_method_that_always_diverges_is_reported_as_such(keep, tmp_path):
    """Tables and figures say so rather than fail."""
    wild = replace(
        TINY.language,
        first_grid_schedules=Search(low=100, high=102, num_growths=MAX_GROWTHS),
    )
    with ThreadPoolExecutor(1) as executor:
        result, _ = language.run(wild, executor=executor, say=lambda line: None)
    one = result.methods[-1]
    assert not one.tuning.is_inside
    assert not one.final_loss.is_finite
    report = Report().with_study("language", result, MADE)
    keep(report, tmp_path)
    assert read(tmp_path) == report
    assert "| **no** | 1.26765e+30: diverged" in (tmp_path / "table.md").read_text()


# ---- the report ----------------------------------------------------------------------------------


def test_every_study_compares_finite_numbers(report):
    assert report.convex
    assert report.anytime
    assert report.prediction
    assert report.language
    spreads = [one.train_loss for one in report.convex.methods]
    spreads += [one.schedule_free for one in report.anytime.horizons]
    spreads += [r.train_loss for one in report.anytime.horizons for r in one.rivals]
    spreads += [o.train_loss for one in report.prediction.batches for o in one.observed]
    spreads += [one.final_loss for one in report.language.methods]
    assert all(spread.is_finite and spread.num_runs == 2 for spread in spreads)


def test_whether_a_best_rate_is_inside_is_computed_from_the_losses_that_are_shown(report):
    tunings = [one.tuning for one in report.convex.methods]
    tunings += [r.tuning for one in report.anytime.horizons for r in one.rivals]
    tunings += [o.tuning for one in report.prediction.batches for o in one.observed]
    tunings += [one.tuning for one in report.language.methods]
    for tuning in tunings:
        best = int(np.argmin(tuning.losses))
        assert tuning.best_rate == tuning.rates[best]
        assert tuning.is_inside == (0 < best < len(tuning.rates) - 1)
        assert tuning.rates == sorted(tuning.rates)


def test_schedule_free_is_compared_with_itself_at_zero(report):
    first = report.convex.methods[0].loss_less_schedule_free
    assert first.spread.mean == 0
    assert first.num_larger == 0
    assert 0 in [one.loss_less_schedule_free.spread.mean for one in report.language.methods]


def test_the_anytime_study_reads_one_run(report):
    """At the horizon where the rate was chosen it is the run of the convex study's kind."""
    result = report.anytime
    assert [one.num_steps for one in result.horizons] == [9, 18, 27]
    protocol = replace(TINY.convex, num_epochs=TINY.anytime.middle)
    same = convex.run(protocol).methods[0]
    middle = result.horizons[1]
    assert result.schedule_free_rate == same.tuning.best_rate
    assert middle.schedule_free.mean == pytest.approx(same.train_loss.mean, rel=1e-5)


def test_predictions_are_those_of_the_bound():
    """The ratios of best rates at 800 steps, as theory has them."""
    ratios = {one.name: one.rate_ratio for one in prediction.predictions(800)}
    expected = {"constant": 1, "wsd": 1.46, "linear": 2.86, "cosine": 2.78, "one_minus_sqrt": 4.26}
    assert ratios.items() >= {k: pytest.approx(v, abs=0.02) for k, v in expected.items()}.items()


def test_intervals_hold_the_ratios_of_the_baseline_to_itself(report):
    for batch in report.prediction.batches:
        baseline = batch.observed[0]
        ends = (baseline.rate_ratio_low, baseline.rate_ratio, baseline.rate_ratio_high)
        assert ends == (1, 1, 1)
        assert all(one.rate_ratio_low <= one.rate_ratio_high for one in batch.observed)


def test_the_folder_gives_the_report_back_and_its_tables_are_rendered_from_it(
    report, keep, tmp_path
):
    keep(report, tmp_path)
    again = read(tmp_path)
    assert again == report
    text = (tmp_path / "table.md").read_text()
    assert text == render(again)
    for one in [*report.convex.methods, *report.language.methods]:
        assert f"\n| {one.name} |" in text
    assert text.count("2026-01-02") == 4


def test_figures_are_small_and_equal_for_equal_reports(report, keep, tmp_path):
    for folder in ("one", "two"):
        keep(report, tmp_path / folder)
    drawn = sorted((tmp_path / "one").glob("*.svg"))
    assert [path.stem for path in drawn] == ["anytime", "convex", "language", "prediction"]
    for path in drawn:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert path.stat().st_size < LARGEST_FIGURE_BYTES


def test_a_study_that_runs_again_leaves_the_others(report):
    made = MADE.model_copy(update={"command": "again"})
    changed = report.with_study("convex", report.convex, made)
    assert changed.made["convex"].command == "again"
    assert changed.made["language"] == MADE
    assert changed.language == report.language


def test_a_folder_without_results_is_an_empty_report(tmp_path):
    assert read(tmp_path) == Report()


# ---- the documents -------------------------------------------------------------------------------


def test_the_tables_in_the_documents_are_those_of_the_results():
    assert (DOCUMENTS / "table.md").read_text() == render(read(DOCUMENTS))


def test_every_row_that_the_page_quotes_is_in_the_tables():
    """The page is written by hand; its numbers are not."""
    rows = re.findall(r"^\|.*\|$", (DOCUMENTS / "README.md").read_text(), re.MULTILINE)
    tables = (DOCUMENTS / "table.md").read_text().splitlines()
    assert rows
    assert [row for row in rows if row not in tables] == []


def test_the_figures_in_the_documents_are_small():
    sizes = [path.stat().st_size for path in DOCUMENTS.glob("*.svg")]
    assert len(sizes) == 4
    assert max(sizes) < LARGEST_FIGURE_BYTES
