"""A whole rank that starts by itself: it trains as a forked one does, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
from fake_attempt_server import serving
from training_bench import make_brief
from worker_drills import make_launch, wait_until

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.reports.events import EvalPoint, Finished, StepMetrics
from roadless.worker.agent.launcher import RANK_ENTRY, Exited
from roadless.worker.agent.node_launcher import NodeLauncher


def trained(launcher: NodeLauncher, exits: list[Exited], folder: Path, method: str) -> Any:
    """What a rank says of its steps and evaluations."""
    with serving(make_brief(evaluation={"every_steps": 3})) as server:
        launcher.launch([make_launch(folder / method, method=method, service_url=server.url)])
        wait_until(lambda: bool(exits), seconds=120)
        assert exits.pop().code == 0, (folder / method / "rank-0.log").read_text()
        said = server.service.said
    assert isinstance(said[-1], Finished)
    steps = [event.values["train.loss"].hex() for event in said if isinstance(event, StepMetrics)]
    evals = [event.loss.hex() for event in said if isinstance(event, EvalPoint)]
    saved = [event.manifest for event in said if event.kind == "checkpoint"]
    receipts = [one.evaluation for one in saved if one.kind is CheckpointKind.EVAL]
    return steps, evals, receipts


@pytest.mark.usefixtures("stand_in_path")
def test_a_spawned_rank_takes_the_steps_of_a_forked_one(tmp_path: Path) -> None:
    """And a process that it has forked evaluates its checkpoints again, and agrees."""
    exits: list[Exited] = []
    launcher = NodeLauncher(scratch=tmp_path, on_exit=exits.append, entry=RANK_ENTRY)
    try:
        launcher.wait_ready(120)
        forked, spawned = (
            trained(launcher, exits, tmp_path, method) for method in ("fork", "spawn")
        )
    finally:
        launcher.close()
    assert spawned == forked
    steps, evals, receipts = spawned
    assert (len(steps), len(evals)) == (6, 2)
    assert all(receipt.check is not None and receipt.check.holds for receipt in receipts)
