"""Further sets and custom metrics in real, forked ranks: one curve, its receipts, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_attempt_server import AttemptServer
from rank_runs import Ranks
from training_bench import CONVNET, bits, make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.reports.events import EvalPoint, Failed, Finished, Started
from roadless.service.contract.states import Reason
from roadless.worker.data.builtin.digits import Digits
from roadless.worker.rank_launch import ModelSources
from roadless.worker.validation.reload import MANIFEST_FILE
from roadless.worker.verify import verify

TOP = "metric_functions:top"
SPREAD = "metric_functions:spread"
ALLOWED = (TOP, SPREAD)
SOURCES = ModelSources(entry_points=ALLOWED)
SHIFTED = {
    "kind": "builtin",
    "name": "synthetic",
    "generator": "classification",
    "num_train": 8,
    "num_eval": 33,
    "input_shape": [1, 8, 8],
}
EVALUATION = {
    "every_steps": 2,
    "sets": [
        {"name": "shifted", "data": SHIFTED},
        {"name": "again", "data": {"kind": "builtin", "name": "digits"}, "max_batches": 2},
    ],
    "metrics": [
        {"name": "top3", "entry_point": TOP, "arguments": {"k": 3}},
        {"name": "spread", "entry_point": SPREAD},
    ],
}


Serve = Callable[[AttemptBrief], AttemptServer]


def make(**changes: Any) -> AttemptBrief:
    return make_brief(evaluation=EVALUATION, budget={"max_steps": 2}, **changes)


def evals(server: AttemptServer) -> list[EvalPoint]:
    return [event for event in server.service.said if isinstance(event, EvalPoint)]


def download(server: AttemptServer, folder: Path) -> Path:
    """The newest eval checkpoint as ``roadless pull`` leaves it."""
    folder.mkdir()
    saved = [event.manifest for event in server.service.said if event.kind == "checkpoint"]
    manifest = [one for one in saved if one.kind is CheckpointKind.EVAL][-1]
    for file in manifest.files:
        content = server.service.files[manifest.checkpoint_id, file.name]
        (folder / file.name).write_bytes(content)
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_tell_of_every_set_what_a_stranger_finds_in_the_download(
    ranks: Ranks, tmp_path: Path, serve: Serve, strategy: str
) -> None:
    """Replicas bit for bit; a model in shards is summed in another order by one process."""
    parallelism = {"num_workers": 2, "strategy": strategy}
    server = serve(make(parallelism=parallelism, model=CONVNET))
    codes = ranks.run(
        tmp_path / "ranks", "rank", world_size=2, url=server.url, model_sources=SOURCES
    )
    assert codes == [0, 0], (tmp_path / "ranks" / "rank-0.log").read_text()[-2000:]
    (point,) = evals(server)
    told = {name for name in point.metrics if name.startswith("eval.")}
    own = ("accuracy", "top5_accuracy", "top3", "spread")
    sets = {f"eval.{one}.{name}" for one in ("shifted", "again") for name in ("loss", *own)}
    assert told == {f"eval.{name}" for name in own} | sets
    threads = torch.get_num_threads()
    receipt, seen = verify(download(server, tmp_path / "download"), entry_points=ALLOWED)
    torch.set_num_threads(threads)
    found = {name: point.metrics[name] for name in told}
    assert bits(receipt.metrics) == bits(found)
    if strategy == "ddp":
        assert bits(seen.metrics) == bits(found)
    else:
        assert seen.metrics == pytest.approx(found, rel=1e-6)
    examples = {name: one.num_examples for name, one in receipt.sets.items()}
    assert examples == {"shifted": 33, "again": 40}
    assert receipt.sets["again"].data_fingerprint == Digits().description.fingerprint


def test_a_goal_about_a_further_set_ends_training(
    ranks: Ranks, tmp_path: Path, serve: Serve
) -> None:
    until = {"metric": "eval.shifted.top3", "value": 0.0, "mode": "max"}
    brief = make_brief(evaluation=EVALUATION, budget={"max_steps": 50, "until": until})
    server = serve(brief)
    assert ranks.run(tmp_path, "rank", url=server.url, model_sources=SOURCES) == [0]
    finished = server.service.said[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.step) == (Reason.GOAL_REACHED, 2)


# ---- what is refused ----------------------------------------------------------------------------


def run_to_failure(
    ranks: Ranks, folder: Path, server: AttemptServer, *, allowed: tuple[str, ...] = ALLOWED
) -> Failed:
    assert ranks.run(
        folder, "rank", url=server.url, model_sources=ModelSources(entry_points=allowed)
    ) == [0]
    failed = server.service.said[-1]
    assert isinstance(failed, Failed)
    return failed


@pytest.mark.parametrize("is_same", [True, False])
def test_a_set_that_has_changed_since_training_began_is_refused_by_name(
    ranks: Ranks, tmp_path: Path, serve: Serve, is_same: bool
) -> None:
    first = serve(make())
    assert ranks.run(tmp_path / "1", "rank", url=first.url, model_sources=SOURCES) == [0]
    started = first.service.said[0]
    assert isinstance(started, Started)
    known = {name: started.provenance[f"data_fingerprint.{name}"] for name in ("shifted", "again")}
    assert known["again"] == started.provenance["data_fingerprint"]
    known["shifted"] = known["shifted"] if is_same else "0" * 64
    second = serve(make().model_copy(update={"set_fingerprints": known}))
    if is_same:
        assert ranks.run(tmp_path / "2", "rank", url=second.url, model_sources=SOURCES) == [0]
        assert isinstance(second.service.said[-1], Finished)
        return
    failed = run_to_failure(ranks, tmp_path / "2", second)
    assert failed.reason is Reason.DATA_INVALID
    assert failed.message.startswith("evaluation set 'shifted': expected the data that training")
    assert f"fingerprint is {'0' * 64}, saw" in failed.message


def test_a_metric_that_the_operator_does_not_allow_ends_the_job_before_any_step(
    ranks: Ranks, tmp_path: Path, serve: Serve
) -> None:
    server = serve(make())
    failed = run_to_failure(ranks, tmp_path, server, allowed=(TOP,))
    assert failed.reason is Reason.METRIC_FORBIDDEN
    assert len(server.service.said) == 1


def test_a_metric_that_fails_in_one_rank_ends_the_job_in_its_words(
    ranks: Ranks, tmp_path: Path, serve: Serve
) -> None:
    """The other waits for it in the exchange of scores; what it says after that is not heard."""
    entry_point = "metric_functions:failing_on_the_second_rank"
    evaluation = {"every_steps": 1, "metrics": [{"name": "later", "entry_point": entry_point}]}
    server = serve(make_brief(evaluation=evaluation, parallelism={"num_workers": 2}))
    sources = ModelSources(entry_points=(entry_point,))
    codes = ranks.run(tmp_path, "rank", world_size=2, url=server.url, model_sources=sources)
    assert codes == [0, 0]
    failed = server.service.applied[1][-1]
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.METRIC_INVALID
    assert failed.message.startswith("metric 'later': expected metric_functions:failing_on")
    assert "ValueError: outputs that are not zero" in failed.message
    assert not any(isinstance(event, Failed) for event in server.service.said)
