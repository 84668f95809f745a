"""Several ranks train as one does: replicas, shards and both, and states that fit all of them."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rank_runs import Findings, Ranks
from training_bench import ALONE, Bench, build, make_brief, make_spec

from roadless.worker.checkpointing.model_files import read_model
from roadless.worker.evaluation.evaluate import reevaluate

GPT = {"kind": "preset", "name": "gpt", "layers": 2, "width": 16, "heads": 2, "context": 8}
ON_BYTES = {
    "model": GPT,
    "data": {"kind": "builtin", "name": "python_stdlib_bytes"},
    "task": "causal_lm",
}
SGD = {"name": "sgd_schedulefree", "lr": 0.5, "weight_decay": 0.01}
ADAMW = {"name": "adamw_schedulefree", "lr": 0.02, "warmup_steps": 3, "weight_decay": 0.1}
SOAP = {"name": "soap", "lr": 0.01, "schedule_free": True, "precondition_frequency": 2}
WRAPPED = {"name": "schedulefree_wrapper", "base": {"name": "AdamW", "lr": 0.02}}
CLOSURE = {"name": "AdamWScheduleFreeClosure", "lr": 0.02}
FSDP = {"strategy": "fsdp"}

#: Sums in another order, over a few steps in float32.
NEAR = {"rel": 2e-5, "abs": 1e-7}
Run = Callable[..., "Outcome"]


class Outcome:
    """A finished run: what each rank found, and the folders that it left."""

    def __init__(self, found: Findings, folder: Path) -> None:
        self.found = found
        self.lead = found[0]
        self.state = folder / "state"
        self.model = folder / "model"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, stand_in_path: None) -> Iterator[Ranks]:
    running = Ranks(tmp_path_factory.mktemp("ranks"), entry="parallel_drills:main")
    yield running
    running.close()


@pytest.fixture(scope="module")
def run(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train with so many ranks from changes of a spec, perhaps from an earlier outcome's state.

    The same changes are trained once: what is deterministic need not be run again.
    """
    granted: dict[str, Outcome] = {}

    def train(num_workers: int, *, start: Path | None = None, **changes: Any) -> Outcome:
        wanted = _spec(**changes)
        wanted["parallelism"] = {"num_workers": num_workers, **wanted.get("parallelism", {})}
        key = json.dumps([wanted, str(start)], sort_keys=True)
        if key not in granted:
            folder = tmp_path_factory.mktemp("run")
            (folder / "changes.json").write_text(json.dumps(wanted))
            if start is not None:
                shutil.copytree(start, folder / "resume")
            found = ranks.drill(folder, "train", world_size=num_workers)
            granted[key] = Outcome(found, folder)
        return granted[key]

    return train


def _spec(**changes: Any) -> dict[str, Any]:
    training = {"batch_size": 24, "max_grad_norm": 0.7, **changes.pop("training", {})}
    return {
        **ON_BYTES,
        "optimizer": ADAMW,
        "training": training,
        "budget": {"max_steps": 6},
        "evaluation": {"every_steps": 3, "batch_size": 20, "max_batches": 3},
        **changes,
    }


def assert_near(seen: Outcome, expected: Outcome, **tolerance: float) -> None:
    tolerance = tolerance or NEAR
    assert seen.lead["losses"] == pytest.approx(expected.lead["losses"], **tolerance)
    assert seen.lead["norms"] == pytest.approx(expected.lead["norms"], **tolerance)
    evals, others = dict(seen.lead["evals"]), dict(expected.lead["evals"])
    assert evals == pytest.approx(others, **tolerance)


# ---- one result, whatever the ranks ------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_workers", "parallelism"),
    [(2, {}), (2, FSDP), (3, FSDP), (4, {**FSDP, "replicas": 2})],
    ids=["two replicas", "two shards", "three shards", "two replicas of two shards"],
)
def test_ranks_train_as_one_process_does(
    run: Run, num_workers: int, parallelism: dict[str, Any]
) -> None:
    """Losses, gradient norms before clipping, and evaluations at x."""
    seen = run(num_workers, parallelism=parallelism)
    assert_near(seen, run(1))
    states = {found["checkpoints"][-1] for found in seen.found if found["checkpoints"]}
    assert len(states) == 1


def test_ranks_of_one_node_listen_to_nobody_else(run: Run) -> None:
    """Neither the rendezvous nor what moves gradients asks who connects."""
    assert [found["listens_on"] for found in run(1).found] == [[]]
    for outcome in (run(2), run(4, parallelism={**FSDP, "replicas": 2})):
        assert {address for found in outcome.found for address in found["listens_on"]} == {
            "127.0.0.1"
        }


@pytest.mark.parametrize("optimizer", [SOAP, WRAPPED, CLOSURE], ids=lambda spec: spec["name"])
def test_every_kind_of_optimizer_trains_in_shards(run: Run, optimizer: dict[str, Any]) -> None:
    changes = {"optimizer": optimizer}
    tolerance = {"rel": 1e-3} if optimizer is SOAP else NEAR
    assert_near(run(2, parallelism=FSDP, **changes), run(1, **changes), **tolerance)


def test_shards_of_a_model_with_batch_norm_evaluate_what_replicas_do(run: Run) -> None:
    changes = {
        "model": {"kind": "preset", "name": "convnet", "width": 4},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
    }
    assert_near(run(3, parallelism=FSDP, **changes), run(3, **changes), rel=1e-4)


@pytest.mark.parametrize("precision", ["amp_bf16", "bf16"])
def test_narrow_shards_train_as_narrow_replicas_do(run: Run, precision: str) -> None:
    """Gradients are added up in bfloat16, so the two agree to its few digits."""
    changes = {"training": {"precision": precision}}
    assert_near(run(2, parallelism=FSDP, **changes), run(2, **changes), rel=0.02)


@pytest.mark.parametrize("parallelism", [{}, FSDP], ids=["replicas", "shards"])
def test_parts_computed_one_by_one_are_the_batch(run: Run, parallelism: dict[str, Any]) -> None:
    parts = run(2, parallelism=parallelism, training={"accumulation_steps": 3})
    assert_near(parts, run(2, parallelism=parallelism))


def test_two_parts_on_one_rank_are_two_ranks(run: Run) -> None:
    """Half the batch each, and one addition: bit for bit the same."""
    both, one = run(2), run(1, training={"accumulation_steps": 2})
    assert one.lead["losses"] == both.lead["losses"]
    assert one.lead["norms"] == both.lead["norms"]
    assert one.lead["evals"] == both.lead["evals"]


def test_recomputed_activations_change_no_bit_of_shards(run: Run) -> None:
    seen = run(2, parallelism=FSDP, training={"activation_checkpointing": True})
    expected = run(2, parallelism=FSDP)
    assert seen.lead["losses"] == expected.lead["losses"]


# ---- eval checkpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_of_shards_scores_in_one_process_what_the_curve_says(
    run: Run, precision: str
) -> None:
    """Gathered whole, bit for bit."""
    changes = _spec(training={"precision": precision})
    changes["parallelism"] = {**FSDP, "num_workers": 3}
    seen = run(3, parallelism=FSDP, training={"precision": precision})
    setup = build(make_spec(**changes), cluster=ALONE)
    read_model(seen.model, setup.model)
    result = reevaluate(setup.model, datasets=setup.datasets, spec=make_spec(**changes))
    assert seen.lead["evals"][-1] == [6, result.loss]
    assert [found["files"] for found in seen.found[1:]] == [
        [["state-00001.safetensors"]],
        [["state-00002.safetensors"]],
    ]


# ---- states -------------------------------------------------------------------------------------

#: One rank, replicas, shards, an uneven number of shards, replicas of shards.
SHAPES = [
    (1, {}),
    (2, {}),
    (2, FSDP),
    (3, FSDP),
    (4, {**FSDP, "replicas": 2}),
]


@pytest.mark.parametrize(
    ("first", "others", "optimizer"),
    [
        (0, range(5), ADAMW),
        (2, range(5), ADAMW),
        (4, (0, 4), ADAMW),
        (0, (2,), SOAP),
        (2, (0, 2), SOAP),
        (0, (2,), WRAPPED),
        (2, (0, 2), WRAPPED),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_a_state_fits_any_number_of_ranks_and_any_strategy(
    run: Run, first: int, others: Iterable[int], optimizer: dict[str, Any]
) -> None:
    """Three steps in one shape and three in another are six steps; bit for bit in the same one."""
    num_workers, parallelism = SHAPES[first]
    half = run(num_workers, parallelism=parallelism, optimizer=optimizer, budget={"max_steps": 3})
    whole = run(num_workers, parallelism=parallelism, optimizer=optimizer)
    for other in others:
        num_others, theirs = SHAPES[other]
        rest = run(num_others, parallelism=theirs, optimizer=optimizer, start=half.state)
        if other == first:
            assert rest.lead["losses"] == whole.lead["losses"][3:]
            assert rest.lead["evals"] == whole.lead["evals"][1:]
        tolerance = {"rel": 1e-3} if optimizer is SOAP else NEAR
        assert rest.lead["losses"] == pytest.approx(whole.lead["losses"][3:], **tolerance)
        assert rest.lead["evals"][0][1] == pytest.approx(whole.lead["evals"][1][1], **tolerance)


@pytest.mark.parametrize("optimizer", [ADAMW, WRAPPED], ids=lambda spec: spec["name"])
def test_a_narrow_state_is_taken_up_bit_for_bit_by_shards(
    run: Run, optimizer: dict[str, Any]
) -> None:
    training = {"precision": "bf16"}
    changes = {"parallelism": FSDP, "training": training, "optimizer": optimizer}
    half, whole = run(2, budget={"max_steps": 3}, **changes), run(2, **changes)
    rest = run(2, start=half.state, **changes)
    assert rest.lead["losses"] == whole.lead["losses"][3:]


def test_each_rank_of_shards_writes_its_own_blocks_and_nothing_twice(run: Run) -> None:
    alone, shards = run(1), run(4, parallelism={**FSDP, "replicas": 2})
    files = [found["files"][-1:] for found in shards.found]
    assert files == [[["state.safetensors", "state.json"]], [["state-00001.safetensors"]], [], []]
    sizes = [sum(f.stat().st_size for f in o.state.glob("*.safetensors")) for o in (alone, shards)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_the_bench_alone_is_a_rank_alone(run: Run, tmp_path: Path) -> None:
    """So that the other tests, which run in one process, speak of real ranks."""
    bench = Bench(make_brief(**_spec()), tmp_path)
    bench.training.run()
    losses = [point.values["train.loss"] for point in bench.reporter.steps]
    assert losses == pytest.approx(run(1).lead["losses"], **NEAR)
