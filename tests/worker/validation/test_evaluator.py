"""What a fresh process makes of each checkpoint before it is listed, in real, forked ranks."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluator_drills import BAD_EVALUATORS, BAD_FILES
from fake_attempt_server import AttemptServer
from model_cases import MODELS, job_of
from pydantic import SecretStr
from rank_runs import Ranks
from training_bench import make_brief
from worker_drills import wait_until

from roadless.service.contract.checkpoint.manifest import (
    CheckpointKind,
    EvaluationReceipt,
    Manifest,
)
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.reports.events import CheckpointSaved, EvalPoint, Finished, Notice

Serve = Callable[[AttemptBrief], AttemptServer]
EACH_STEP = {"every_steps": 1}
ASYNC = {"every_steps": 1, "placement": "async"}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, stand_in_path: None) -> Iterator[Ranks]:
    running = Ranks(tmp_path_factory.mktemp("ranks"), entry="evaluator_drills:main")
    yield running
    running.close()


def evals(server: AttemptServer) -> list[Manifest]:
    saved = [event.manifest for event in server.service.said if isinstance(event, CheckpointSaved)]
    return [manifest for manifest in saved if manifest.kind is CheckpointKind.EVAL]


def receipts(server: AttemptServer) -> list[EvaluationReceipt]:
    found = [manifest.evaluation for manifest in evals(server)]
    return [receipt for receipt in found if receipt is not None]


def curve(server: AttemptServer) -> list[Any]:
    points = [event for event in server.service.said if isinstance(event, EvalPoint)]
    return [
        (
            point.step,
            point.samples,
            point.loss.hex(),
            {k: v.hex() for k, v in point.metrics.items()},
        )
        for point in points
    ]


def notices(server: AttemptServer) -> list[str]:
    return [event.code for event in server.service.said if isinstance(event, Notice)]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_passes_and_its_curve_is_the_same_beside_training(
    ranks: Ranks, tmp_path: Path, serve: Serve, name: str
) -> None:
    job = {**job_of(name), "budget": {"max_steps": 3}}
    inline = serve(make_brief(**job, evaluation=EACH_STEP))
    beside = serve(make_brief(**job, evaluation=ASYNC))
    assert ranks.run(tmp_path / "inline", "plain", url=inline.url) == [0]
    assert ranks.run(tmp_path / "async", "plain", url=beside.url) == [0]
    for server in (inline, beside):
        assert notices(server) == []
        assert [m.step for m in evals(server)] == [1, 2, 3]
        for receipt in receipts(server):
            assert receipt.check is not None
            assert receipt.check.loss == receipt.check.seen_loss
            assert receipt.check.tolerance == 0
    assert curve(inline) == curve(beside)
    assert [p[0] for p in curve(inline)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt", {"training": {"precision": "bf16"}}),
        ("resnet", {"training": {"precision": "bf16"}}),
        ("vit", {"training": {"deterministic": True}}),
        ("gpt", {"training": {"activation_checkpointing": True, "precision": "amp_bf16"}}),
        ("convnet", {"evaluation": {"max_batches": None, "batch_size": 7}}),
    ],
)
@pytest.mark.parametrize("placement", ["inline", "async"])
def test_every_manner_of_training_passes(
    ranks: Ranks, tmp_path: Path, serve: Serve, name: str, changes: dict[str, Any], placement: str
) -> None:
    """Narrow parameters, deterministic kernels, recomputed layers, a rest of a batch."""
    evaluation = {"every_steps": 1, "placement": placement, **changes.pop("evaluation", {})}
    brief = make_brief(**job_of(name), budget={"max_steps": 2}, evaluation=evaluation, **changes)
    server = serve(brief)
    assert ranks.run(tmp_path, "plain", url=server.url) == [0]
    assert notices(server) == []
    assert [manifest.step for manifest in evals(server)] == [1, 2]


@pytest.mark.parametrize("name", ["transformers gpt2", "resnet", "vit"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("placement", ["inline", "async"])
def test_what_two_ranks_have_trained_passes(
    ranks: Ranks, tmp_path: Path, serve: Serve, name: str, strategy: str, placement: str
) -> None:
    """Replicas and gathered shards, in every bit."""
    evaluation = {"every_steps": 1, "placement": placement}
    parallelism = {"num_workers": 2, "strategy": strategy}
    job = {**job_of(name), "budget": {"max_steps": 2}, "parallelism": parallelism}
    server = serve(make_brief(**job, evaluation=evaluation))
    assert ranks.run(tmp_path, "plain", world_size=2, url=server.url) == [0, 0]
    assert notices(server) == []
    assert [manifest.step for manifest in evals(server)] == [1, 2]
    for receipt in receipts(server):
        assert receipt.check is not None
        assert receipt.check.seen_loss == receipt.check.loss


@pytest.mark.parametrize("factory", ["small", "frozen_norm"])
@pytest.mark.parametrize("placement", ["inline", "async"])
def test_what_a_package_makes_passes(
    ranks: Ranks, tmp_path: Path, serve: Serve, factory: str, placement: str
) -> None:
    evaluation = {"every_steps": 1, "placement": placement}
    model = {"kind": "entry_point", "factory": f"entry_point_models:{factory}"}
    server = serve(make_brief(model=model, budget={"max_steps": 2}, evaluation=evaluation))
    assert ranks.run(tmp_path, "plain", url=server.url) == [0]
    assert notices(server) == []
    assert [manifest.step for manifest in evals(server)] == [1, 2]


def test_further_sets_and_metrics_are_the_same_beside_training(
    ranks: Ranks, tmp_path: Path, serve: Serve
) -> None:
    """All of them in the point; the second look of a job that waits is at the main set alone."""
    sets = [{"name": "again", "data": {"kind": "builtin", "name": "digits"}, "max_batches": 1}]
    metrics = [{"name": "top2", "entry_point": "metric_functions:top", "arguments": {"k": 2}}]
    curves = []
    for placement in ("inline", "async"):
        evaluation = {
            "every_steps": 1,
            "placement": placement,
            "sets": sets,
            "metrics": metrics,
        }
        server = serve(make_brief(budget={"max_steps": 3}, evaluation=evaluation))
        assert ranks.run(tmp_path / placement, "plain", url=server.url) == [0]
        assert notices(server) == []
        assert len(evals(server)) == 3
        curves.append(curve(server))
    assert curves[0] == curves[1]
    assert {"eval.top2", "eval.again.loss", "eval.again.top2"} <= curves[0][0][3].keys()


# ---- what is not listed -------------------------------------------------------------------------


@pytest.mark.parametrize("what", BAD_FILES)
def test_files_that_are_not_what_training_evaluated_are_never_listed(
    ranks: Ranks, tmp_path: Path, serve: Serve, what: str
) -> None:
    """The first checkpoint of three: said plainly; its point stays, and the others are listed."""
    brief = make_brief(**job_of("mlp"), budget={"max_steps": 3}, evaluation=EACH_STEP)
    server = serve(brief)
    assert ranks.run(tmp_path, f"{what}:1", url=server.url) == [0]
    assert [manifest.step for manifest in evals(server)] == [2, 3]
    assert [point[0] for point in curve(server)] == [1, 2, 3]
    assert notices(server) == ["checkpoint.mismatch"]
    assert isinstance(server.service.said[-1], Finished)
    assert not list(tmp_path.glob("staging-*/*"))


def test_a_model_that_keeps_something_back_from_its_files_is_never_listed(
    ranks: Ranks, tmp_path: Path, serve: Serve
) -> None:
    """Every file is whole: only who evaluates them can tell that this is not what was trained."""
    model = {"kind": "entry_point", "factory": "evaluator_drills:forgetful"}
    server = serve(make_brief(model=model, budget={"max_steps": 2}, evaluation=EACH_STEP))
    assert ranks.run(tmp_path, "plain", url=server.url) == [0]
    assert evals(server) == []
    assert notices(server) == ["checkpoint.mismatch"] * 2
    message = next(e.message for e in server.service.said if isinstance(e, Notice))
    assert "expected the loss" in message
    assert "saw" in message


def impatient_brief() -> AttemptBrief:
    """Two steps with an evaluation each, whose evaluator may be silent for a second."""
    return make_brief(
        **job_of("mlp"),
        budget={"max_steps": 2},
        evaluation=EACH_STEP,
        retry={"hang_seconds": 1},
    )


@pytest.mark.parametrize("what", BAD_EVALUATORS)
def test_an_evaluator_that_fails_once_is_replaced(
    ranks: Ranks, tmp_path: Path, serve: Serve, what: str
) -> None:
    server = serve(impatient_brief())
    assert ranks.run(tmp_path, f"{what}:1", url=server.url) == [0]
    assert [manifest.step for manifest in evals(server)] == [1, 2]
    assert notices(server) == []


@pytest.mark.parametrize("what", BAD_EVALUATORS)
def test_what_no_evaluator_can_check_is_never_listed(
    ranks: Ranks, tmp_path: Path, serve: Serve, what: str
) -> None:
    server = serve(impatient_brief())
    assert ranks.run(tmp_path, f"{what}:2", url=server.url) == [0]
    assert [manifest.step for manifest in evals(server)] == [2]
    assert [point[0] for point in curve(server)] == [1, 2]
    assert notices(server) == ["checkpoint.unchecked"]
    assert not list(tmp_path.glob("staging-*/*"))


@pytest.mark.parametrize("what", [*BAD_EVALUATORS, "flipped"])
def test_beside_training_a_lost_point_is_told_and_later_ones_are_found_in_training(
    ranks: Ranks, tmp_path: Path, serve: Serve, what: str
) -> None:
    brief = make_brief(
        **job_of("mlp"),
        budget={"max_steps": 5},
        evaluation=ASYNC,
        retry={"hang_seconds": 1},
    )
    server = serve(brief)
    times = 1 if what == "flipped" else 2
    assert ranks.run(tmp_path, f"{what}:{times}", url=server.url) == [0]
    assert [code for code in notices(server) if code != "evaluation.slow"] == ["evaluation.lost"]
    listed = [manifest.step for manifest in evals(server)]
    assert listed == [point[0] for point in curve(server)] == [2, 3, 4, 5]
    assert not list(tmp_path.glob("staging-*/*"))


# ---- what a fresh process is --------------------------------------------------------------------


def test_an_evaluator_is_born_with_one_thread_apart_from_its_rank(
    ranks: Ranks, tmp_path: Path, serve: Serve
) -> None:
    """In the rank's session and group, so that it goes with it; without a pipe but its own."""
    brief = make_brief(**job_of("mlp"), budget={"max_steps": 2}, evaluation=EACH_STEP)
    server = serve(brief)
    assert ranks.run(tmp_path, "watched", url=server.url) == [0]
    note = json.loads((tmp_path / "evaluator.json").read_text())
    assert note["threads"] == 1
    assert note["session"] == note["group"] not in (note["pid"], note["parent"])
    assert note["niceness"] == 10
    assert not note["has_cuda"]
    assert note["sockets"] == 1
    assert [manifest.step for manifest in evals(server)] == [1, 2]


def test_an_evaluator_computes_with_what_its_rank_computes_with(
    ranks: Ranks, tmp_path: Path, serve: Serve
) -> None:
    """Threads, kernels, and the secrets that its data may want."""
    brief = make_brief(
        **job_of("mlp"), budget={"max_steps": 1}, training={"deterministic": True}
    ).model_copy(update={"secrets": {"HF_TOKEN": SecretStr("hf_a_secret")}})
    assert ranks.run(tmp_path, "set up", url=serve(brief).url) == [0]
    note = json.loads((tmp_path / "settings.json").read_text())
    assert note == {"threads": 1, "deterministic": True, "secret": "hf_a_secret"}


def test_nothing_outlives_a_rank_that_ends(ranks: Ranks, tmp_path: Path, serve: Serve) -> None:
    """Its end is told when what it has forked is dead and reaped, with whatever that held."""
    brief = make_brief(**job_of("mlp"), budget={"max_steps": 1}, evaluation=EACH_STEP)
    assert ranks.run(tmp_path, "watched", url=serve(brief).url) == [0]
    note = json.loads((tmp_path / "evaluator.json").read_text())
    assert not Path(f"/proc/{note['pid']}").exists()
    assert not Path(f"/proc/{note['parent']}").exists()


def test_nothing_outlives_a_rank_that_is_killed(ranks: Ranks, tmp_path: Path, serve: Serve) -> None:
    brief = make_brief(**job_of("mlp"), budget=None, evaluation={"every_steps": 1})
    server = serve(brief)
    killer = threading.Thread(target=_kill_rank, args=(tmp_path,))
    killer.start()
    assert ranks.run(tmp_path, "watched", url=server.url) == [-9]
    killer.join(20)
    note = json.loads((tmp_path / "evaluator.json").read_text())
    assert not Path(f"/proc/{note['pid']}").exists()
    assert not Path(f"/proc/{note['parent']}").exists()


def _kill_rank(scratch: Path) -> None:
    wait_until((scratch / "evaluator.json").exists, seconds=30)
    note = json.loads((scratch / "evaluator.json").read_text())
    os.kill(note["session"], signal.SIGKILL)  # a rank leads its session


@pytest.mark.parametrize("what", ["no zygote", "frozen zygote"])
def test_without_a_zygote_nothing_is_listed_and_the_job_goes_on(
    ranks: Ranks, tmp_path: Path, serve: Serve, what: str
) -> None:
    brief = make_brief(**job_of("mlp"), budget={"max_steps": 2}, evaluation=EACH_STEP)
    server = serve(brief)
    assert ranks.run(tmp_path, what, url=server.url) == [0]
    assert evals(server) == []
    assert [point[0] for point in curve(server)] == [1, 2]
    assert notices(server) == ["checkpoint.unchecked"] * 2
    assert isinstance(server.service.said[-1], Finished)
