"""What happens between steps: an evaluation at x with its checkpoint, and the training state."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from optim import at_average
from optim.batchnorm import using_buffers
from service.contract.cluster import AttemptBrief
from service.contract.events import EvalPoint
from service.contract.ids import new_id
from service.contract.manifest import (
    CheckpointFile,
    CheckpointKind,
    EvaluationReceipt,
    Manifest,
)
from worker.built import Built
from worker.checkpoint import write_model
from worker.cluster import Cluster
from worker.evaluate import EvalResult, evaluate, recalibrated_buffers, unheard
from worker.gathered import help_to_gather
from worker.peeks import LagHint, peeks
from worker.position import Position
from worker.report import Reporter, Staged
from worker.saving import StateSaver


class Milestones:
    """Evaluates and saves for one rank of one attempt; only the lead writes and speaks."""

    def __init__(
        self,
        built: Built,
        *,
        brief: AttemptBrief,
        cluster: Cluster,
        reporter: Reporter,
        staging: Path,
        beat: Callable[[], None] = unheard,
    ) -> None:
        """``beat``: called after each batch and checkpoint, for who watches that it goes on."""
        self._built = built
        self._brief = brief
        self._cluster = cluster
        self._reporter = reporter
        self._staging = staging
        self._beat = beat
        self._lag_hint = LagHint()
        shutil.rmtree(staging, ignore_errors=True)
        self._states = StateSaver(built, cluster=cluster, reporter=reporter, staging=staging)

    def evaluate(self, position: Position, *, evaluations_served: int) -> EvalResult:
        """Evaluate the averaged point and publish it; the training point is left as it was.

        ``evaluations_served``: above 0, the checkpoint answers that many of the users' requests.
        Every rank returns the same result.
        """
        checkpoint_id, model = new_id("ckpt"), self._built.model
        loss_at_y = self._evaluate().loss if self._brief.spec.evaluation.at_y else None
        at_x = at_average(self._built.optimizer, model=model)
        with at_x, using_buffers(model, self._buffers()):
            result, seen = self._evaluate(), peeks(self._built.optimizer)
            if not self._cluster.is_lead:
                help_to_gather(model)
                self._beat()
                return result
            files = write_model(self._staging / checkpoint_id, model)
        self._beat()
        self._say_evaluation(position, result, seen, loss_at_y)
        manifest = self._manifest(
            checkpoint_id, CheckpointKind.EVAL, position, files, evaluation=self._receipt(result)
        )
        self._publish(manifest, evaluations_served)
        return result

    def prepare_states(self) -> None:
        """Get ready to save; called once an update has made the optimizer's state."""
        self._states.prepare()

    def save_state(self, position: Position, *, evaluated_step: int | None) -> None:
        """Publish everything that a later attempt needs to go on from here, beside training."""

        def manifest_of(checkpoint_id: str, files: tuple[CheckpointFile, ...]) -> Manifest:
            return self._manifest(checkpoint_id, CheckpointKind.RESUME, position, files)

        self._states.save(position, evaluated_step=evaluated_step, manifest_of=manifest_of)
        self._beat()

    def settle(self) -> None:
        """Return once the last training state is published; raise OSError when it cannot be."""
        self._states.settle()

    def close(self) -> None:
        """Return once nothing is being written any more."""
        self._states.close()

    def _buffers(self) -> dict[str, torch.Tensor]:
        """Batch-norm statistics of the model as it stands, for one without batch norm none."""
        return recalibrated_buffers(
            self._built.model,
            data=self._built.data,
            spec=self._brief.spec.evaluation,
            seed=self._brief.spec.training.seed,
            rank=self._cluster.rank,
            world_size=self._cluster.world_size,
            gather=self._cluster.sum,
            on_batch=self._beat,
        )

    def _evaluate(self) -> EvalResult:
        return evaluate(
            self._built.model,
            data=self._built.data,
            task=self._brief.spec.task,
            spec=self._brief.spec.evaluation,
            rank=self._cluster.rank,
            world_size=self._cluster.world_size,
            gather=self._cluster.sum,
            on_batch=self._beat,
        )

    def _say_evaluation(
        self,
        position: Position,
        result: EvalResult,
        seen: dict[str, float],
        loss_at_y: float | None,
    ) -> None:
        at_y = {} if loss_at_y is None else {"eval.loss_at_y": loss_at_y}
        point = EvalPoint(
            step=position.step,
            samples=position.samples,
            tokens=position.tokens,
            wall_seconds=position.wall_seconds,
            gpu_seconds=position.gpu_seconds,
            loss=result.loss,
            metrics={**result.metrics, **at_y, **seen},
        )
        self._reporter.say(point)
        if loss_at_y is None:
            return
        hint = self._lag_hint.after(loss_at_x=result.loss, loss_at_y=loss_at_y)
        if hint is not None:
            self._reporter.say(hint)

    def _receipt(self, result: EvalResult) -> EvaluationReceipt:
        spec = self._brief.spec.evaluation
        return EvaluationReceipt(
            loss=result.loss,
            metrics=result.metrics,
            num_examples=result.num_examples,
            batch_size=spec.batch_size,
            max_batches=spec.max_batches,
            threads=torch.get_num_threads(),
            torch_version=torch.__version__,
            data_fingerprint=self._built.data.description.fingerprint,
        )

    def _manifest(
        self,
        checkpoint_id: str,
        kind: CheckpointKind,
        position: Position,
        files: tuple[CheckpointFile, ...],
        *,
        evaluation: EvaluationReceipt | None = None,
    ) -> Manifest:
        return Manifest(
            checkpoint_id=checkpoint_id,
            job_id=self._brief.job_id,
            attempt_id=self._brief.attempt_id,
            kind=kind,
            step=position.step,
            samples=position.samples,
            spec=self._brief.spec.model_dump(mode="json"),
            evaluation=evaluation,
            files=files,
        )

    def _publish(self, manifest: Manifest, evaluations_served: int) -> None:
        folder = self._staging / manifest.checkpoint_id
        self._reporter.publish(Staged(folder, manifest, evaluations_served))
