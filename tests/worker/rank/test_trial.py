"""Two real ranks with models that differ from rank to rank, or that cannot be cut into shards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_attempt_server import AttemptServer
from rank_runs import Ranks
from training_bench import make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.reports.events import EvalPoint, Failed, Notice, StepMetrics
from roadless.service.contract.states import Reason
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
