"""What ranks do in the tests of parallelism: the training loop, with a reporter that only listens.

``job_id`` names a folder beside the rank's scratch folder with what to do: ``changes.json``.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import psutil
import torch
from training_bench import Bench, make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.worker.checkpointing.state_saver import StateSaver
from roadless.worker.distributed.parallel import shard
from roadless.worker.distributed.process_group import join
from roadless.worker.rank_launch import RankLaunch

_ = shard, StateSaver  # imported before the fork, as in production


def main(launch: RankLaunch) -> None:
    """Train as told and note what was found; states and models go to folders of their own."""
    scratch = Path(launch.scratch)
    wanted = json.loads((scratch / "changes.json").read_text())
    cluster = join(launch)
    resume = scratch / "resume" if (scratch / "resume").exists() else None
    bench = Bench(
        make_brief(**wanted), scratch / f"rank-{launch.rank}", cluster=cluster, resume=resume
    )
    bench.training.run()
    _collect(bench, scratch)
    found = _found(bench)
    path = scratch / f"found-{launch.rank}.json"
    path.with_suffix(".tmp").write_text(json.dumps(found))
    path.with_suffix(".tmp").rename(path)
    # Nobody leaves before all have saved, as in production, where the lead waits for the uploads.
    cluster.sum(torch.zeros(1, dtype=torch.float64))
    os._exit(0)


def _collect(bench: Bench, scratch: Path) -> None:
    """Bring this rank's files where those of the others go, as an upload would."""
    for kind, name in ((CheckpointKind.RESUME, "state"), (CheckpointKind.EVAL, "model")):
        for staged in bench.reporter.of_kind(kind)[-1:]:
            (scratch / name).mkdir(exist_ok=True)
            for file in staged.manifest.files:
                shutil.copy(staged.folder / file.name, scratch / name / file.name)


def _found(bench: Bench) -> dict[str, Any]:
    return {
        "losses": [point.values["train.loss"] for point in bench.reporter.steps],
        "norms": [point.values["grad.norm"] for point in bench.reporter.steps],
        "skips": [point.values.get("train.skipped") for point in bench.reporter.steps],
        "evals": [(point.step, point.loss) for point in bench.reporter.evals],
        "checkpoints": [staged.manifest.checkpoint_id for staged in bench.reporter.published],
        "files": [
            [file.name for file in staged.manifest.files] for staged in bench.reporter.published
        ],
        "threads": torch.get_num_threads(),
        "listens_on": sorted(
            {
                connection.laddr.ip
                for connection in psutil.Process().net_connections()
                if connection.status == psutil.CONN_LISTEN
            }
        ),
    }
