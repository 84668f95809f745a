"""Ranks as real processes: how each one ends, and that two of them agree in everything."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fake_attempt_server import AttemptServer
from rank_runs import Ranks
from torch import nn
from training_bench import Bench, make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointFile, CheckpointKind, Manifest
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.reports.events import (
    EvalPoint,
    Failed,
    Finished,
    Started,
    StepMetrics,
)
from roadless.service.contract.states import Desired, Reason
from roadless.worker.api import EventsMissing, Refused
from roadless.worker.checkpointing.training_state import tensors_file
from roadless.worker.training.agreement import Orders, Signals

# ---- two ranks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drill", "expected"),
    [
        ("nonfinite loss", "expected a finite training loss, saw nan"),
        ("infinite gradient", "expected a finite gradient norm, saw"),
    ],
)
def test_what_is_not_finite_on_one_rank_stops_both_before_the_update(
    ranks: Ranks, tmp_path: Path, drill: str, expected: str
) -> None:
    """Parameters and momentum stay as the good step before has left them."""
    first, second = ranks.drill(tmp_path, drill)
    assert first == second
    assert first["message"].startswith(expected)
    assert first["is_untouched"]


def test_the_loss_of_a_step_is_the_mean_over_all_ranks(ranks: Ranks, tmp_path: Path) -> None:
    found, _ = ranks.drill(tmp_path, "infinite gradient")
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    losses = []
    for rank in range(2):
        torch.manual_seed(rank)
        logits = net(torch.randn(4, 3))
        losses.append(nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1])))
    mean = sum(losses) / 2
    mean.backward()
    assert float.fromhex(found["first_loss"]) == pytest.approx(mean.item(), rel=1e-6)
    norm = nn.utils.get_total_norm([p.grad for p in net.parameters()]).item()
    assert float.fromhex(found["first_norm"]) == pytest.approx(norm, rel=1e-6)


def test_only_the_leads_orders_are_carried(ranks: Ranks, tmp_path: Path) -> None:
    first, second = ranks.drill(tmp_path, "agreement")
    assert first == second
    assert first["orders"] == list(Orders(Signals(evaluate=True)).flags)
    assert first["loss"] == (10 + 20) / (1 + 3)
    assert first["sum"] == [3.0, 1.0]


def test_both_ranks_take_the_same_decisions_after_the_same_step(
    ranks: Ranks, tmp_path: Path
) -> None:
    """An evaluation and a stop that only the lead has heard of; only the lead speaks and saves.

    States are announced beside training, so anywhere behind their step.
    """
    lead, other = ranks.drill(tmp_path, "training")
    assert (lead["reason"], lead["step"]) == ("stopped_by_user", 4)
    assert (other["reason"], other["step"]) == ("stopped_by_user", 4)
    assert lead["parameters"] == other["parameters"]
    assert lead["states"] == [2, 4]
    said = [kind for kind in lead["order"] if kind != "resume"]
    assert said == ["step", "step", "eval", "eval"] * 2
    assert lead["order"].index("resume") >= 4
    assert other["order"] == []


# ---- how a rank ends ----------------------------------------------------------------------------


def test_a_rank_trains_to_its_end_and_goes_on_from_its_state(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    """Fetched, built, trained, uploaded, said, over HTTP; then once more from what was saved."""
    server = serve(make_brief(budget={"max_steps": 3}))
    assert ranks.run(tmp_path / "1", "rank", url=server.url) == [0]
    said = server.service.said
    kinds = ["started", "step", "step", "step", "eval", "checkpoint", "checkpoint", "finished"]
    assert [event.kind for event in said if event.kind != "usage"] == kinds
    started, finished = said[0], said[-1]
    assert isinstance(started, Started)
    assert (started.resumed_step, started.world_size) == (0, 1)
    assert started.provenance["torch"] == torch.__version__
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.step) == (Reason.BUDGET_REACHED, 3)

    state = next(e.manifest for e in said[::-1] if e.kind == "checkpoint")
    assert state.kind is CheckpointKind.RESUME
    longer = make_brief(budget={"max_steps": 5}).model_copy(update={"resume": state})
    again = serve(longer)
    again.service.files = server.service.files
    assert ranks.run(tmp_path / "2", "rank", url=again.url) == [0]
    assert again.service.said[0].resumed_step == 3
    steps = [event.step for event in again.service.said if isinstance(event, StepMetrics)]
    assert steps == [4, 5]
    assert [e.step for e in again.service.said if isinstance(e, EvalPoint)] == [5]
    assert not list((tmp_path / "2").glob("resume-*"))
    assert not list((tmp_path / "2").glob("staging-*/*"))


def test_a_job_that_cannot_be_trained_fails_with_its_reason(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    path = "/" + "nowhere/" * 500
    gpt = {"kind": "preset", "name": "gpt", "context": 4}
    data = {"kind": "files", "name": "bytes", "path": path}
    server = serve(make_brief(model=gpt, data=data, task="causal_lm"))
    assert ranks.run(tmp_path, "rank", url=server.url) == [0]
    (failed,) = server.service.said
    assert isinstance(failed, Failed)
    assert failed.reason in (Reason.DATA_NOT_FOUND, Reason.DATA_FORBIDDEN)
    assert len(failed.message) <= 4000


def test_an_unexpected_error_is_told_with_the_end_of_its_traceback(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    """A training state that the service does not give away is an error that has no name."""
    server = serve(make_brief().model_copy(update={"resume": _missing_state()}))
    server.status_of_missing = 403
    assert ranks.run(tmp_path, "rank", url=server.url) == [0]
    (failed,) = server.service.said
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.WORKER_ERROR
    assert failed.message.startswith("rank 0: Refused: 403: no such file\n")
    assert "in _fetch_file" in failed.message


def test_a_state_that_is_gone_is_one_that_cannot_be_read(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    """As after a database was restored; the next attempt takes the other one."""
    server = serve(make_brief().model_copy(update={"resume": _missing_state()}))
    assert ranks.run(tmp_path, "rank", url=server.url) == [0]
    (failed,) = server.service.said
    assert failed.reason is Reason.CHECKPOINT_UNREADABLE
    assert failed.message == "state.json: expected the file that was stored, saw none"


def _missing_state() -> Manifest:
    file = CheckpointFile(name="state.json", size=1, sha256="0" * 64)
    return Manifest(
        checkpoint_id="ckpt_1",
        job_id="job_1",
        attempt_id="att_0",
        kind=CheckpointKind.RESUME,
        step=1,
        samples=1,
        files=(file,),
    )


def test_a_state_that_differs_from_its_manifest_fails_the_attempt(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    """One bit of one weight: it would load, and train on from something else."""
    bench = Bench(make_brief(budget={"max_steps": 1}), tmp_path / "bench")
    bench.training.run()
    (staged,) = bench.reporter.of_kind(CheckpointKind.RESUME)
    server = serve(make_brief().model_copy(update={"resume": staged.manifest}))
    for file in staged.manifest.files:
        content = (staged.folder / file.name).read_bytes()
        is_changed = file.name == tensors_file(0)
        content = content[:-1] + bytes([content[-1] ^ is_changed])
        server.service.files[staged.manifest.checkpoint_id, file.name] = content
    assert ranks.run(tmp_path, "rank", url=server.url) == [0]
    (failed,) = server.service.said
    assert failed.reason is Reason.CHECKPOINT_UNREADABLE
    assert failed.message.startswith(f"{tensors_file(0)}: expected")


def test_a_diverging_job_fails_in_the_words_of_the_lead_after_all_its_steps(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    """Both ranks see it; a quicker report of it would cut off what the lead has yet to say."""
    optimizer = {"name": "sgd_schedulefree", "lr": 1e6, "weight_decay": 100}
    brief = make_brief(
        model={"kind": "preset", "name": "mlp", "hidden": [6]},
        optimizer=optimizer,
        parallelism={"num_workers": 2},
        budget=None,
        checkpoints={"state_every_steps": 1},
    )
    server = serve(brief)
    assert ranks.run(tmp_path, "rank", world_size=2, url=server.url) == [0, 0]
    said = server.service.said
    failed = said[-1]
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.NON_FINITE_LOSS
    steps = [event.step for event in said if isinstance(event, StepMetrics)]
    saved = [event.manifest.step for event in said if event.kind == "checkpoint"]
    assert steps == list(range(1, len(steps) + 1))
    assert saved[-1] == steps[-1]
    assert {event.kind for event in server.service.applied[1]} == {"usage"}


def test_a_rank_that_is_to_stop_when_it_starts_takes_no_step(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    server = serve(make_brief(budget=None).model_copy(update={"desired": Desired.STOP}))
    server.service.desired = Desired.STOP
    assert ranks.run(tmp_path, "rank", url=server.url) == [0]
    kinds = [event.kind for event in server.service.said]
    assert kinds == ["started", "eval", "checkpoint", "checkpoint", "finished"]
    assert server.service.said[-1].reason is Reason.STOPPED_BY_USER


def test_a_fenced_rank_leaves_in_silence(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    server = serve(make_brief())
    server.service.is_over = True
    assert ranks.run(tmp_path, "rank", url=server.url) == [0]
    assert server.service.reports == []


def test_a_rank_fenced_in_the_midst_of_training_leaves_in_silence(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    # A fast machine takes a thousand steps before the first answer.
    rarely = {"evaluation": {"every_steps": 10**6}, "checkpoints": {"state_every_steps": 10**6}}
    server = serve(make_brief(budget=None, **rarely))

    def end_at_once(event: object) -> bool:
        server.service.is_over = isinstance(event, StepMetrics)
        return False

    server.service.refuses = end_at_once
    assert ranks.run(tmp_path, "rank", url=server.url) == [0]
    assert {event.kind for event in server.service.said} <= {"started", "step", "usage"}


def test_a_rank_that_cannot_deliver_its_ending_says_so_by_its_exit_code(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    server = serve(make_brief(budget={"max_steps": 1}))
    server.service.is_away = True
    assert ranks.run(tmp_path, "rank:impatient", url=server.url) == [1]
    assert server.service.said == []


# ---- a service that does not hear it ------------------------------------------------------------


def _endless(**changes: object) -> AttemptBrief:
    rarely = {"evaluation": {"every_steps": 10**6}, "checkpoints": {"state_every_steps": 10**6}}
    return make_brief(budget=None, **rarely, **changes)


def test_a_rank_whose_reports_are_all_refused_ends_the_attempt_in_words(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    """It would train on for nobody. The end is said beside the reports, which do not pass."""
    server = serve(_endless(retry={"hang_seconds": 2}))

    def refuse_from_now_on(event: object) -> bool:
        if isinstance(event, StepMetrics):
            server.service.refusal = Refused("expected less", status=422)
        return False

    server.service.refuses = refuse_from_now_on
    assert ranks.run(tmp_path, "rank:hasty", url=server.url) == [1]
    (ended,) = server.ended
    assert ended.reason is Reason.UNHEARD
    assert ended.message.startswith("rank 0: expected the service to accept a report within 2 s")
    assert ended.message.endswith("422: expected less")


def test_a_rank_says_again_what_a_restored_database_lacks(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    """It was about to end: each step is there once, and the end behind all that was said before."""
    server = serve(make_brief(budget={"max_steps": 300}))
    lost: list[object] = []

    def restore_once(event: object) -> bool:
        if isinstance(event, Finished) and not lost:
            lost.extend(server.service.said[50:])
            del server.service.said[50:]
            raise EventsMissing("restored", status=409, applied_seq=50)
        return False

    server.service.refuses = restore_once
    assert ranks.run(tmp_path, "rank:hasty", url=server.url) == [0]
    said = server.service.said
    assert lost
    assert [event.seq for event in said] == list(range(1, len(said) + 1))
    assert [event.step for event in said if isinstance(event, StepMetrics)] == list(range(1, 301))
    assert isinstance(said[-1], Finished)
    assert server.ended == []


# ---- a full disk --------------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder for a file's name, but for not one byte of its content."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(bytes(4096)):
            pass
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_rank_without_room_for_a_byte_reports_all_that_it_computes(
    ranks: Ranks, full_disk: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    """Neither spool nor log has room, nor the checkpoint: so the attempt fails at its end."""
    server = serve(make_brief(budget={"max_steps": 40}, checkpoints={"state_every_steps": 10**6}))
    assert ranks.run(full_disk, "rank", url=server.url) == [0]
    said = server.service.said
    assert [event.step for event in said if isinstance(event, StepMetrics)] == list(range(1, 41))
    assert [event.step for event in said if isinstance(event, EvalPoint)][-1] == 40
    failed = said[-1]
    assert isinstance(failed, Failed)
    assert "No space left on device" in failed.message
