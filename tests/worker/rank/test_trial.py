"""Which models a rank tries; and two real ranks with models that differ, or cannot be sharded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_attempt_server import AttemptServer
from faulty_models import make
from model_cases import job_of
from rank_runs import Ranks
from training_bench import (
    ALONE,
    MLP,
    Bench,
    ScriptedReporter,
    build,
    context_of,
    make_brief,
)
from worker_drills import make_launch

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.reports.events import EvalPoint, Failed, Notice, StepMetrics
from roadless.service.contract.states import Reason
from roadless.worker.rank.trial import try_model
from roadless.worker.rank_launch import ModelSources

FACTORY = "faulty_models:make"
SOURCES = ModelSources(entry_points=(FACTORY,))
DDP, FSDP = {"num_workers": 2}, {"num_workers": 2, "strategy": "fsdp"}
Serve = Callable[[AttemptBrief], AttemptServer]


@pytest.fixture
def run(ranks: Ranks, serve: Serve, tmp_path: Path) -> Callable[..., list[Any]]:
    """Train with one or two ranks; return what they have said, the lead first."""

    def train(kind: str, parallelism: dict[str, Any], **changes: Any) -> list[Any]:
        model = {"kind": "entry_point", "factory": FACTORY, "arguments": {"kind": kind}}
        evaluation = {"every_steps": 2, "max_batches": 4}
        default = {"budget": {"max_steps": 4}, "evaluation": evaluation}
        brief = make_brief(model=model, parallelism=parallelism, **{**default, **changes})
        server = serve(brief)
        folder = tmp_path / f"{kind}-{parallelism.get('strategy', 'ddp')}"
        num_workers = parallelism["num_workers"]
        ranks.run(folder, "rank", world_size=num_workers, url=server.url, model_sources=SOURCES)
        return [event for rank in (0, 1) for event in server.service.applied[rank]]

    return train


def refusal(said: list[Any]) -> str:
    """Why the attempt ended before its first step, for the model's sake."""
    failed = next(event for event in said if isinstance(event, Failed))
    assert not [event for event in said if isinstance(event, StepMetrics)]
    assert failed.reason is Reason.MODEL_INVALID
    return failed.message


def losses(said: list[Any]) -> list[float]:
    return [event.values["train.loss"] for event in said if isinstance(event, StepMetrics)]


def assert_good(said: list[Any]) -> None:
    """All steps taken, and each model listed: a fresh process has found the same loss in it."""
    assert len(losses(said)) == 4
    points = [event.step for event in said if isinstance(event, EvalPoint)]
    models = [
        event.manifest.step
        for event in said
        if event.kind == "checkpoint" and event.manifest.kind is CheckpointKind.EVAL
    ]
    assert points == [2, 4]
    assert models == points, [event for event in said if isinstance(event, Notice)]


# ---- which models are tried ----------------------------------------------------------------------


def num_passes(folder: Path, *, resume: Any = None, **changes: Any) -> int:
    """How often the model runs before its first step."""
    brief = make_brief(**changes).model_copy(update={"resume": resume})
    setup, passes = build(brief.spec), []
    setup.model.register_forward_hook(lambda *_: passes.append(1))
    context = context_of(brief, setup, ScriptedReporter(), cluster=ALONE)
    assert try_model(make_launch(folder), context) == []
    return len(passes)


def test_a_model_of_a_library_is_tried_once_in_a_jobs_life(tmp_path: Path) -> None:
    job = job_of("transformers resnet")
    assert num_passes(tmp_path, **job) == 4
    assert num_passes(tmp_path, **job, resume="a state") == 0


OF_PRESET = {"kind": "checkpoint", "checkpoint_id": "ckpt_" + "0" * 26, "architecture": MLP}


@pytest.mark.parametrize("model", [MLP, OF_PRESET], ids=["preset", "checkpoint of one"])
def test_presets_cost_no_trial(model: dict[str, Any], tmp_path: Path) -> None:
    assert num_passes(tmp_path, model=model) == 0


# ---- what differs from rank to rank --------------------------------------------------------------


@pytest.mark.parametrize("parallelism", [DDP, FSDP], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["OwnParameter", "OwnBuffer"])
def test_ranks_that_were_made_differently_start_as_the_lead(
    run: Callable[..., list[Any]], kind: str, parallelism: dict[str, Any]
) -> None:
    assert_good(run(kind, parallelism))


@pytest.mark.parametrize("parallelism", [DDP, FSDP], ids=["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("OwnUnkeptBuffer", "expected the same buffer scale on every rank"),
        ("OwnAttribute", "expected the same outputs for the same inputs on every rank"),
        ("OwnModules", "expected the same modules on every rank"),
    ],
)
def test_what_no_checkpoint_would_keep_must_not_differ(
    run: Callable[..., list[Any]], kind: str, message: str, parallelism: dict[str, Any]
) -> None:
    assert message in refusal(run(kind, parallelism))


def test_ranks_that_differ_are_refused_when_a_job_resumes_too(
    ranks: Ranks, serve: Serve, tmp_path: Path
) -> None:
    """It began with one rank, where nothing differs."""
    model = {"kind": "entry_point", "factory": FACTORY, "arguments": {"kind": "OwnAttribute"}}
    own = make(input_shape=(1, 8, 8), num_outputs=10, kind="OwnAttribute")
    bench = Bench(make_brief(model=model, budget={"max_steps": 1}), tmp_path / "bench", model=own)
    bench.training.run()
    (staged,) = bench.reporter.of_kind(CheckpointKind.RESUME)
    brief = make_brief(model=model, parallelism=DDP)
    server = serve(brief.model_copy(update={"resume": staged.manifest}))
    for file in staged.manifest.files:
        content = (staged.folder / file.name).read_bytes()
        server.service.files[staged.manifest.checkpoint_id, file.name] = content
    ranks.run(tmp_path / "2", "rank", world_size=2, url=server.url, model_sources=SOURCES)
    said = [event for rank in (0, 1) for event in server.service.applied[rank]]
    assert "expected the same outputs for the same inputs on every rank" in refusal(said)


@pytest.mark.parametrize("parallelism", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_a_buffer_that_each_rank_moves_is_evaluated_and_saved_as_the_leads(
    run: Callable[..., list[Any]], parallelism: dict[str, Any]
) -> None:
    """Else each rank would evaluate its batches with a model of its own."""
    assert_good(run("FollowsItsInputs", parallelism))


def test_shards_move_a_buffer_as_replicas_do(run: Callable[..., list[Any]]) -> None:
    """In every pass it is the lead's, so that one training is resumed as it went on."""
    in_shards = losses(run("FollowsItsInputs", FSDP))
    assert in_shards == pytest.approx(losses(run("FollowsItsInputs", DDP)), rel=1e-5)


@pytest.mark.parametrize("kind", ["OwnUnkeptBuffer", "OwnAttribute", "TimeOfDay"])
def test_a_model_that_is_another_one_when_it_is_made_anew_is_refused_on_one_rank_too(
    run: Callable[..., list[Any]], kind: str
) -> None:
    """Else it would train to its end, and no process would ever find its loss in its files."""
    said = run(kind, {"num_workers": 1})
    assert "expected the same outputs of a model made anew with the same state" in refusal(said)


# ---- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Scalar", "saw the scalar scale; give it the shape (1,), or use strategy ddp"),
        ("TiedBlocks", "saw some shared between blocks"),
        ("TwoTypes", "expected parameters of one dtype in TwoTypes with strategy fsdp"),
        ("Empty", "saw none of shape (0, 10); use strategy ddp"),
        ("SparseEmbedding", "with sparse=True"),
        ("ComplexWeights", "saw phase of torch.complex64"),
        ("DropsAlways", "expected the same outputs for the same inputs in evaluation mode"),
        ("DividesByZero", "saw ZeroDivisionError"),
        ("NoBackward", "saw NotImplementedError: to be done"),
        ("GrowsInTraining", "others under late.bias, late.weight"),
    ],
)
def test_a_fault_is_final_in_shards_too(
    run: Callable[..., list[Any]], kind: str, message: str
) -> None:
    assert message in refusal(run(kind, FSDP))


@pytest.mark.parametrize(
    "kind",
    [
        "Turned",
        "ChannelsLast",
        "OneBlockTwice",
        "IntegerParameter",
        "CountsItsBlocks",
        "WeightNorm",
    ],
)
def test_whatever_lies_otherwise_in_memory_trains_in_shards_as_in_replicas(
    run: Callable[..., list[Any]], kind: str
) -> None:
    in_shards = run(kind, FSDP)
    assert_good(in_shards)
    assert losses(in_shards) == pytest.approx(losses(run(kind, DDP)), rel=1e-5)


# ---- what the factory does -----------------------------------------------------------------------


def test_a_lazy_model_gets_its_shapes_and_the_same_weights_on_all_ranks(
    run: Callable[..., list[Any]],
) -> None:
    assert_good(run("Lazy", FSDP))
