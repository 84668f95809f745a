"""Further evaluation sets and custom metrics: one result at any world size, and what must fit."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_cases import Node, write_table
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import GREY, RGB, png
from ranks_in_turn import over_ranks
from torch import nn
from training_bench import START, Bench, bits, make_brief, make_spec

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.states import Reason
from roadless.worker import verify
from roadless.worker.data.base import UNCOUNTED, Batch, DataSet, Description
from roadless.worker.data.build import build_data
from roadless.worker.errors import JobFailed
from roadless.worker.evaluation.custom_metrics import CustomMetric
from roadless.worker.evaluation.evaluate import (
    EvalResult,
    evaluate_all,
    num_passes,
    reevaluate,
    set_receipts,
)
from roadless.worker.evaluation.sets import Datasets, NamedSet, build_datasets
from roadless.worker.model.sources import ENTRY_POINTS_VARIABLE
from roadless.worker.rank_launch import ModelSources
from roadless.worker.validation.reload import MANIFEST_FILE

METRICS = "metric_functions"
DIGITS = {"kind": "builtin", "name": "digits"}


class Held:
    """Held-out samples of three numbers, which serve as the logits of three classes."""

    num_train = 1

    def __init__(self, logits: list[list[float]], targets: list[int], name: str = "") -> None:
        self.description = Description((3,), 3, 0, name)
        self._logits = torch.tensor(logits, dtype=torch.float64).reshape(-1, 3)
        self._targets = torch.tensor(targets)
        self.num_eval = len(targets)

    def train_batch(self, indices: Any) -> Batch:
        raise NotImplementedError

    def eval_batch(self, start: int, stop: int) -> Batch:
        return Batch(self._logits[start:stop].clone(), self._targets[start:stop].clone())


class Echo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


def metric(name: str, function: Callable[..., object]) -> CustomMetric:
    return CustomMetric(name, f"{METRICS}:{name}", function, {})


def first_output(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs[:, 0]


def nan_where_masked(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.where(targets == UNCOUNTED, math.nan, outputs[:, 1])


FIRST, MASKED = metric("first", first_output), metric("masked", nan_where_masked)


def spec_of(**evaluation: Any) -> JobSpec:
    return make_spec(evaluation={"max_batches": None, "batch_size": 4, **evaluation})


def found_by(
    datasets: Datasets, *, spec: JobSpec, world_size: int = 1, model: nn.Module | None = None
) -> EvalResult:
    def evaluated(**ranks: Any) -> EvalResult:
        return evaluate_all(model or Echo(), datasets=datasets, spec=spec, **ranks)

    return over_ranks(evaluated, world_size)


# ---- what is found ------------------------------------------------------------------------------

NUMBERS = st.floats(-50, 50, allow_nan=False)
SAMPLES = st.lists(
    st.tuples(st.tuples(NUMBERS, NUMBERS, NUMBERS), st.sampled_from([0, 1, 2, UNCOUNTED])),
    min_size=1,
    max_size=23,
).filter(lambda samples: any(target != UNCOUNTED for _, target in samples))


def held(samples: list[Any], name: str = "") -> Held:
    return Held([list(logits) for logits, _ in samples], [target for _, target in samples], name)


@settings(deadline=None, max_examples=60)
@given(
    samples=st.lists(SAMPLES, min_size=1, max_size=3),
    batch_size=st.integers(1, 6),
    world_size=st.integers(1, 6),
)
def test_any_number_of_ranks_finds_the_same_bits_on_every_set_and_by_every_metric(
    samples: list[list[Any]], batch_size: int, world_size: int
) -> None:
    main, *others = (held(one) for one in samples)
    named = tuple(NamedSet(f"set_{i}", one, None) for i, one in enumerate(others))
    datasets = Datasets.of(main, named, (FIRST, MASKED))
    spec = spec_of(batch_size=batch_size)
    alone = reevaluate(Echo(), datasets=datasets, spec=spec)
    together = found_by(datasets, spec=spec, world_size=world_size)
    assert bits(together.metrics) == bits(alone.metrics)
    assert bits(together.loss) == bits(alone.loss)
    assert together.num_examples == main.num_eval


def test_a_negative_zero_does_not_tell_how_many_ranks_there_were() -> None:
    """It does not survive a sum; the loss of a sure guess is one too."""
    datasets = Datasets.of(held([((-0.0, -1e4, -1e4), 0)]), metrics=(FIRST,))
    alone = reevaluate(Echo(), datasets=datasets, spec=spec_of())
    together = found_by(datasets, spec=spec_of(), world_size=2)
    assert bits([alone.loss, alone.metrics]) == bits([together.loss, together.metrics])


@settings(deadline=None, max_examples=60)
@given(samples=SAMPLES, batch_size=st.integers(1, 6))
def test_a_custom_metric_is_the_mean_over_samples_that_count(
    samples: list[Any], batch_size: int
) -> None:
    """A sample without a counted target is left out, whatever the function makes of it."""
    result = found_by(
        Datasets.of(held(samples), metrics=(FIRST, MASKED)), spec=spec_of(batch_size=batch_size)
    )
    counted = [logits for logits, target in samples if target != UNCOUNTED]
    for name, column in (("eval.first", 0), ("eval.masked", 1)):
        total = 0.0
        for logits in counted:
            total += logits[column]
        assert result.metrics[name] == total / len(counted)


@settings(deadline=None, max_examples=30)
@given(samples=SAMPLES, other=SAMPLES)
def test_a_further_set_tells_what_it_would_tell_as_the_main_one(
    samples: list[Any], other: list[Any]
) -> None:
    datasets = Datasets.of(
        held(samples), (NamedSet("shifted", held(other), None),), (FIRST, MASKED)
    )
    both = found_by(datasets, spec=spec_of())
    main = found_by(Datasets.of(held(samples), metrics=(FIRST, MASKED)), spec=spec_of())
    alone = found_by(Datasets.of(held(other), metrics=(FIRST, MASKED)), spec=spec_of())
    expected = {"eval.loss": alone.loss, **alone.metrics}
    shifted = {name.replace("eval.", "eval.shifted."): value for name, value in expected.items()}
    assert bits(both.metrics) == bits({**main.metrics, **shifted})
    assert both.loss == main.loss


def test_a_set_has_a_bound_of_its_own() -> None:
    samples = [((float(i), 0.0, 0.0), 0) for i in range(10)]
    named = (NamedSet("whole", held(samples), None), NamedSet("some", held(samples), 2))
    datasets = Datasets.of(held(samples), named, (FIRST,))
    spec = spec_of(max_batches=1)
    result = found_by(datasets, spec=spec)
    assert result.metrics["eval.first"] == 1.5
    assert result.metrics["eval.whole.first"] == 4.5
    assert result.metrics["eval.some.first"] == 3.5
    receipts = set_receipts(datasets, spec=spec.evaluation)
    assert {name: one.num_examples for name, one in receipts.items()} == {"whole": 10, "some": 8}
    assert num_passes(Echo(), datasets=datasets, spec=spec.evaluation) == 4 + 10 + 8


def test_values_that_are_not_finite_are_reported_as_they_are() -> None:
    datasets = Datasets.of(held([((1.0, 2.0, 3.0), 0)]), metrics=(metric("inf", infinite),))
    assert found_by(datasets, spec=spec_of()).metrics["eval.inf"] == math.inf


class Narrow(Echo):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.bfloat16()


def test_metrics_see_narrow_outputs_in_single_precision() -> None:
    datasets = Datasets.of(held([((0.5, 2.0, 3.0), 0)]), metrics=(FIRST,))
    assert found_by(datasets, spec=spec_of(), model=Narrow()).metrics["eval.first"] == 0.5


def infinite(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.full((len(targets),), math.inf)


def test_a_set_without_a_counted_target_fails_by_name() -> None:
    masked = NamedSet("masked", held([((1.0, 2.0, 3.0), UNCOUNTED)]), None)
    datasets = Datasets.of(held([((1.0, 2.0, 3.0), 0)]), (masked,))
    with pytest.raises(
        JobFailed, match=r"^evaluation set 'masked': expected targets to score in 1"
    ):
        found_by(datasets, spec=spec_of())


# ---- in training --------------------------------------------------------------------------------

NOT_A_NUMBER = {"name": "nan", "entry_point": f"{METRICS}:not_a_number"}


def test_y_is_evaluated_on_the_main_set_alone(tmp_path: Path) -> None:
    """Its loss is all that is asked for: four batches at x, two on each set, and two at y."""
    at_x = num_beats(tmp_path / "x", at_y=False)
    at_both = num_beats(tmp_path / "both", at_y=True)
    assert at_x == 4 + 1  # one more once files are written
    assert at_both - at_x == 2


def num_beats(folder: Path, *, at_y: bool) -> int:
    """Of one evaluation: one a batch, and one for its files."""
    beats: list[int] = []
    evaluation = {"at_y": at_y, "sets": [{"name": "a", "data": DIGITS, "max_batches": 2}]}
    bench = Bench(make_brief(evaluation=evaluation), folder, beat=lambda: beats.append(1))
    bench.evaluations.evaluate(START, evaluations_served=0)
    return len(beats)


@pytest.mark.parametrize("is_told_wrong", [False, True])
def test_metrics_of_every_set_are_verified_and_what_is_no_number_equals_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_told_wrong: bool,
) -> None:
    evaluation = {"metrics": [NOT_A_NUMBER], "sets": [{"name": "a", "data": DIGITS}]}
    bench = Bench(make_brief(evaluation=evaluation), tmp_path)
    bench.training.run()
    staged = bench.reporter.of_kind(CheckpointKind.EVAL)[-1]
    told = json.loads(staged.manifest.model_dump_json())
    if is_told_wrong:
        told["evaluation"]["metrics"]["eval.a.accuracy"] += 1e-9
    (staged.folder / MANIFEST_FILE).write_text(json.dumps(told))
    monkeypatch.setenv(ENTRY_POINTS_VARIABLE, NOT_A_NUMBER["entry_point"])
    monkeypatch.setattr(sys, "argv", ["roadless.worker.verify", str(staged.folder)])
    with pytest.raises(SystemExit) as left:
        verify.main()
    said = json.loads(capsys.readouterr().out)
    assert (left.value.code, said["equal"]) == (int(is_told_wrong), not is_told_wrong)
    assert math.isnan(said["eval.a.nan"])


# ---- how they are built -------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node.at(tmp_path)


def built(node: Node, *, data: Any, sets: Any = (), metrics: Any = (), **changes: Any) -> Any:
    named = [{"name": f"set_{i}", "data": one} for i, one in enumerate(sets)]
    evaluation = {"sets": named, "metrics": list(metrics)}
    spec = make_spec(data=data, evaluation=evaluation, **changes)

    def build(one: Any) -> DataSet:
        return build_data(one, model=spec.model, task=spec.task, sources=node.sources)

    allowed = tuple(one["entry_point"] for one in metrics)
    return build_datasets(spec, build=build, sources=ModelSources(entry_points=allowed))


def fault(node: Node, **fields: Any) -> tuple[Reason, str]:
    with pytest.raises(JobFailed) as caught:
        built(node, **fields)
    return caught.value.reason, str(caught.value)


def rows(node: Node, name: str, *, classes: int = 3, shift: float = 0.0, **columns: Any) -> Any:
    table = {
        "x": [float(i) + shift for i in range(60)],
        "z": [2.0 * i + shift for i in range(60)],
        "y": [i % classes for i in range(60)],
        **columns,
    }
    path = write_table(node, f"{name}.csv", table)
    return {"kind": "files", "format": "csv", "path": path, "target": "y"}


def test_sets_and_metrics_come_in_the_order_of_the_specification(node: Node) -> None:
    metrics = [
        {"name": "top2", "entry_point": f"{METRICS}:top", "arguments": {"k": 2}},
        {"name": "spread", "entry_point": f"{METRICS}:spread"},
    ]
    datasets = built(node, data=DIGITS, sets=[DIGITS, DIGITS], metrics=metrics)
    assert [one.name for one in datasets.named] == ["set_0", "set_1"]
    assert [one.name for one in datasets.metrics] == ["top2", "spread"]
    fingerprint = datasets.train.description.fingerprint
    assert datasets.fingerprints == {"set_0": fingerprint, "set_1": fingerprint}


def test_a_set_is_scaled_by_the_rows_that_the_model_is_trained_on(node: Node) -> None:
    """By its own it would look as if nothing had shifted."""
    data = {**rows(node, "main"), "standardise": True}
    shifted = {**rows(node, "shifted", shift=100.0), "standardise": True}
    datasets = built(node, data=data, sets=[shifted, rows(node, "again")])
    inputs = datasets.train.eval_batch(0, 99).inputs
    far, same = (one.data.eval_batch(0, 99).inputs for one in datasets.named)
    assert torch.equal(same, inputs)
    assert (far.mean(0) > 2).all()
    trained = rows(node, "main")
    raw = built(node, data=trained).train.train_batch(np.arange(57)).inputs
    assert torch.allclose((far - inputs) * raw.std(0, unbiased=False), torch.tensor(100.0))


def test_a_set_that_shows_fewer_classes_fits(node: Node) -> None:
    few = rows(node, "few", y=[2] * 60)
    (one,) = built(node, data=rows(node, "main"), sets=[few]).named
    assert one.data.description.num_classes == 3
    synthetic = {"kind": "builtin", "name": "synthetic", "generator": "classification"}
    sizes = {"num_train": 64, "num_eval": 8, "input_shape": [2]}
    (one,) = built(
        node, data=rows(node, "main"), sets=[{**synthetic, **sizes, "num_classes": 2}]
    ).named
    assert one.data.description.num_classes == 2


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"y": [i % 4 for i in range(60)]}, "a class below num_classes = 3, saw 3"),
        ({"w": [1.0] * 60}, "expected the columns 'x', 'z' of the model's data, saw 'x', 'z', 'w'"),
    ],
)
def test_rows_that_do_not_fit_the_model_fail_by_the_name_of_their_set(
    node: Node, columns: Any, expected: str
) -> None:
    other = rows(node, "other", **columns)
    reason, message = fault(node, data=rows(node, "main"), sets=[rows(node, "main"), other])
    assert reason is Reason.DATA_INVALID
    assert message.startswith("evaluation set 'set_1': ")
    assert expected in message


def in_order(node: Node, name: str, order: str, **columns: Any) -> Any:
    """The rows of ``rows``, with the columns in this order."""
    rows(node, name, **columns)
    table = pd.read_csv(node.root / f"{name}.csv")
    table[list(order)].to_csv(node.root / f"{name}.csv", index=False)
    return {"kind": "files", "format": "csv", "path": str(node.root / f"{name}.csv"), "target": "y"}


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("order", ["zxy", "yzx"])
def test_the_columns_of_a_set_are_those_of_the_model_by_name(
    node: Node, order: str, standardise: bool
) -> None:
    """By place they would fit as well, and mean something else."""
    data = {**rows(node, "main"), "standardise": standardise}
    datasets = built(node, data=data, sets=[in_order(node, "other", order), rows(node, "again")])
    inputs = datasets.train.eval_batch(0, 99).inputs
    for one in datasets.named:
        assert torch.equal(one.data.eval_batch(0, 99).inputs, inputs)


def test_as_many_columns_of_other_names_are_refused_unless_they_are_named(node: Node) -> None:
    other = in_order(node, "other", "xwy", w=[1.0 * i for i in range(60)])
    reason, message = fault(node, data=rows(node, "main"), sets=[other])
    assert reason is Reason.DATA_INVALID
    assert "expected the columns 'x', 'z' of the model's data, saw 'x', 'w'; name those" in message
    named = {**other, "columns": ["x", "w"]}
    (one,) = built(node, data=rows(node, "main"), sets=[named]).named
    assert one.data.description.input_shape == (2,)


@pytest.mark.parametrize("model_columns", [None, ["x", "z"]])
def test_columns_of_a_set_that_are_named_in_another_order_than_the_models_are_refused(
    node: Node, model_columns: Any
) -> None:
    data = {**rows(node, "main"), "columns": model_columns}
    reason, message = fault(node, data=data, sets=[{**rows(node, "other"), "columns": ["z", "x"]}])
    assert reason is Reason.DATA_INVALID
    assert "columns in the order of the model's data, 'x', 'z', saw 'z', 'x'; name them" in message


def test_targets_of_a_set_in_another_order_than_the_models_are_refused(node: Node) -> None:
    data = {**rows(node, "main"), "target": ["x", "y"]}
    swapped = {**rows(node, "other"), "target": ["y", "x"]}
    reason, message = fault(node, data=data, sets=[data, swapped], task="regression")
    assert reason is Reason.DATA_INVALID
    assert message.startswith("evaluation set 'set_1': expected the targets in the order of the ")
    assert "'x', 'y', saw 'y', 'x'" in message


def test_a_set_of_a_standardised_model_keeps_the_digits_that_a_large_mean_hides(node: Node) -> None:
    near, far = (rows(node, name, shift=shift) for name, shift in (("near", 0.0), ("far", 1e9)))
    served = [
        built(node, data={**data, "standardise": True}, sets=[data]).named[0].data.eval_batch(0, 9)
        for data in (near, far)
    ]
    assert torch.allclose(served[0].inputs, served[1].inputs, atol=1e-5)


def test_named_classes_of_a_set_have_the_numbers_of_the_model(node: Node) -> None:
    """A set that shows one class alone would call it 0."""
    names = ["maybe", "no", "yes"]
    data = rows(node, "main", y=names * 20)
    sets = [rows(node, "one", y=["yes"] * 60), rows(node, "two", y=["yes", "no"] * 30)]
    one, two = (one.data for one in built(node, data=data, sets=sets).named)
    assert set(one.eval_batch(0, 99).targets.tolist()) == {2}
    assert set(two.train_batch(np.arange(57)).targets.tolist()) == {1, 2}
    assert one.description.class_names == tuple(names)


@pytest.mark.parametrize(
    ("main", "other", "expected"),
    [
        (["no", "yes"], ["no", "nay"], "in the model's data, 'no', 'yes', saw 'nay', 'no'"),
        (["no", "yes"], [0, 1], "in the model's data, 'no', 'yes', saw by number"),
        ([0, 1], ["no", "yes"], "in the model's data, by number, saw 'no', 'yes'"),
    ],
)
def test_classes_of_other_names_are_refused(
    node: Node, main: Any, other: Any, expected: str
) -> None:
    sets = [rows(node, "other", y=other * 30)]
    reason, message = fault(node, data=rows(node, "main", y=main * 30), sets=sets)
    assert reason is Reason.DATA_INVALID
    assert expected in message


SYNTHETIC = {"kind": "builtin", "name": "synthetic", "num_train": 64, "num_eval": 8}


@pytest.mark.parametrize(
    ("data", "other", "expected"),
    [
        (
            {**SYNTHETIC, "generator": "classification", "num_classes": 3},
            {**SYNTHETIC, "generator": "classification", "num_classes": 4},
            "expected at most the 3 classes of the model's data, saw 4",
        ),
        (
            {**SYNTHETIC, "generator": "regression", "num_targets": 2},
            {**SYNTHETIC, "generator": "regression", "num_targets": 3},
            "expected the 2 targets of the model's data, saw 3",
        ),
        (
            {"kind": "builtin", "name": "synthetic", "generator": "tokens", "vocabulary": 40},
            {"kind": "builtin", "name": "synthetic", "generator": "tokens", "vocabulary": 41},
            "expected at most the 40 tokens in the vocabulary of the model's data, saw 41",
        ),
    ],
)
def test_made_up_data_that_does_not_fit_fails_likewise(
    node: Node, data: Any, other: Any, expected: str
) -> None:
    task = {"regression": "regression", "tokens": "causal_lm"}.get(
        data["generator"], "classification"
    )
    model = {"kind": "preset", "name": "gpt", "context": 8} if task == "causal_lm" else {}
    changes = {"task": task, **({"model": model} if model else {})}
    reason, message = fault(node, data=data, sets=[other], **changes)
    assert (reason, message) == (Reason.DATA_INVALID, f"evaluation set 'set_0': {expected}")


def test_a_set_that_is_absent_fails_by_its_name(node: Node) -> None:
    absent = {**rows(node, "main"), "path": str(node.root / "absent.csv")}
    reason, message = fault(node, data=rows(node, "main"), sets=[absent])
    assert reason is Reason.DATA_NOT_FOUND
    assert message.startswith("evaluation set 'set_0': ")


def test_images_are_not_scaled_by_the_mean_of_numbers(node: Node) -> None:
    """Bytes of images and numbers of columns may have nothing in common but their shape."""
    data = {"kind": "files", "format": "npz", "target": "y", "eval": {"fraction": 0.5}}
    numbers = np.random.default_rng(0).normal(size=(20, 1, 2, 2)).astype(np.float32)
    target = np.arange(20) % 2
    for name, inputs in (("numbers", numbers), ("bytes", np.uint8(100 + numbers))):
        np.savez(node.root / f"{name}.npz", x=inputs, y=target)
    main, other = (
        {**data, "path": str(node.root / f"{name}.npz")} for name in ("numbers", "bytes")
    )
    expected = "expected inputs of float32, as those that set the scale, saw uint8"
    reason, message = fault(node, data={**main, "standardise": True}, sets=[other])
    assert (reason, message) == (Reason.DATA_INVALID, f"evaluation set 'set_0': {expected}")
    assert built(node, data=main, sets=[other]).named


def images_of(node: Node, name: str, pixels: list[Any]) -> Any:
    """A set of images of these pixels, each of which is in it 20 times."""
    kinds = {True: GREY, False: RGB}
    contents = [png(np.array(one), depth=8, colour=kinds[np.ndim(one) == 2]) for one in pixels] * 20
    path = str(node.root / f"{name}.parquet")
    table = pa.table({"seen": contents, "y": [i % 2 for i in range(len(contents))]})
    pq.write_table(table, path)
    return {"kind": "files", "format": "parquet", "path": path, "image": "seen", "target": "y"}


def test_grey_images_of_a_set_are_read_as_colour_where_those_of_the_model_are(node: Node) -> None:
    colour = images_of(node, "colour", [[[[255, 0, 0], [0, 255, 0]]], [[[0, 0, 9], [9, 9, 9]]]])
    grey = images_of(node, "grey", [[[0, 51]], [[51, 0]]])
    (named,) = built(node, data=colour, sets=[grey]).named
    inputs = named.data.eval_batch(0, 40).inputs
    assert inputs.shape[1:] == (3, 1, 2)
    assert {round(value, 3) for value in inputs.unique().tolist()} == {-1.0, -0.6}
    reason, told = fault(node, data=grey, sets=[colour])
    assert reason is Reason.DATA_INVALID
    assert "'set_0': expected samples of shape (1, 1, 2) of the model's data" in told


def test_samples_that_cannot_be_scaled_do_not_fit_a_standardised_job(node: Node) -> None:
    """They are as they come out of the package: nobody knows what they were scaled by."""
    data = {"kind": "files", "format": "npz", "target": "y", "standardise": True}
    path = str(node.root / "images.npz")
    images = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
    np.savez(path, x=images, y=np.arange(40) % 10)
    reason, message = fault(node, data={**data, "path": path}, sets=[DIGITS])
    assert reason is Reason.DATA_INVALID
    assert message.endswith("expected rows to scale as the model's data is scaled, saw 'digits'")


def test_a_language_models_sets_are_cut_alike(node: Node) -> None:
    texts = {name: node.write(f"{name}.txt", f"{name} " * 400) for name in ("red", "blue")}
    data, other = (
        {"kind": "files", "format": "text", "path": path, "eval": {"fraction": 0.2}}
        for path in texts.values()
    )
    model = {"kind": "preset", "name": "gpt", "context": 8}
    datasets = built(node, data=data, sets=[other], model=model, task="causal_lm")
    (one,) = datasets.named
    assert one.data.description.input_shape == (8,)
    shown = bytes(one.data.eval_batch(0, 1).inputs[0].tolist()).decode()
    assert shown in "blue " * 4


def test_a_metric_that_does_not_fit_fails_before_any_step(node: Node) -> None:
    bad = {"name": "bad", "entry_point": f"{METRICS}:too_many"}
    reason, message = fault(node, data=DIGITS, metrics=[bad])
    assert reason is Reason.METRIC_INVALID
    assert message.startswith("metric 'bad': expected metric_functions:too_many to return float32")


def test_a_metric_that_fails_on_what_a_model_says_fails_by_name(node: Node) -> None:
    later = {"name": "later", "entry_point": f"{METRICS}:failing_later"}
    datasets = built(node, data=DIGITS, metrics=[later])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(JobFailed, match=r"metric 'later'.*ValueError: outputs that are not zero"):
        reevaluate(model, datasets=datasets, spec=make_spec())
