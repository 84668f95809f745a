"""What happens between steps: an evaluation at x, and its checkpoint."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch

from roadless.optim import at_average
from roadless.optim.buffers import using_buffers
from roadless.service.contract.checkpoint.manifest import (
    CheckpointFile,
    CheckpointKind,
    EvaluationReceipt,
    Manifest,
)
from roadless.service.contract.ids import new_id
from roadless.service.contract.reports.events import EvalPoint, Notice
from roadless.worker.checkpointing.model_files import help_to_gather, write_model
from roadless.worker.distributed.shared_tensors import share_buffers
from roadless.worker.evaluation.evaluate import (
    EvalResult,
    evaluate_all,
    noop,
    num_passes,
    recalibrated_buffers,
    set_receipts,
)
from roadless.worker.evaluation.sets import Datasets
from roadless.worker.position import Position
from roadless.worker.reporting.staged_checkpoint import Staged, ValidatedManifest
from roadless.worker.setup import RankContext
from roadless.worker.training.diagnostics import LagHint, diagnostics
from roadless.worker.validation.checkpoint_validator import CheckpointValidator

log = logging.getLogger(__name__)

#: Evaluations beside training: one that runs and one that waits.
MAX_UNDER_WAY = 2
#: How long the lead waits for them at a time; then all ranks show that they are alive.
_WAIT_SECONDS = 0.5


class EvaluationManager:
    """Evaluates and saves for one rank of one attempt; only the lead writes and reports."""

    def __init__(
        self,
        context: RankContext,
        *,
        staging: Path,
        validator: CheckpointValidator | None,
        beat: Callable[[], None] = noop,
    ) -> None:
        """``beat``: called after each batch and checkpoint, as a sign of progress.

        ``validator``: the lead's; None for the others.
        """
        self._context = context
        self._setup = context.setup
        self._brief = context.brief
        self._cluster = context.cluster
        self._reporter = context.reporter
        self._staging = staging
        self._validator = validator
        self._beat = beat
        #: The last step whose evaluation beside training was lost; none runs there after that.
        self.lost_step: int | None = None
        self._failure: OSError | None = None  #: of the last eval checkpoint that was written
        self._has_told_waiting = False
        self._lag_hint = LagHint()
        shutil.rmtree(staging, ignore_errors=True)

    def num_passes(self) -> int:
        """Return how many samples one evaluation passes through the model."""
        spec = self._brief.spec.evaluation
        return num_passes(self._setup.model, datasets=self._setup.datasets, spec=spec)

    def evaluate(
        self, position: Position, *, evaluations_served: int, is_last: bool = False
    ) -> EvalResult | None:
        """Evaluate the averaged point and publish it; the training point is left as it was.

        ``evaluations_served``: above 0, the checkpoint answers that many of the users' requests.
        Every rank returns the same result, or None when it is evaluated beside training;
        :meth:`results` has it later. The last one of an attempt runs here: all ranks have time.
        """
        share_buffers(self._setup.model.buffers(), cluster=self._cluster)  # each has its own
        if self._is_beside_training(is_last=is_last):
            self._begin_evaluation(position, evaluations_served)
            return None
        return self._evaluate_now(position, evaluations_served)

    def drain(self, *, at_most: int = 0) -> None:
        """Wait until at most ``at_most`` evaluations are under way; all ranks together."""
        if self._brief.spec.evaluation.placement == "inline":
            return
        while self._is_under_way(at_most):
            self._beat()

    def results(self) -> list[tuple[int, EvalResult]]:
        """Return the results of evaluations beside training since the last call, with their steps.

        In order, and for the lead only.
        """
        return self._validator.results() if self._validator is not None else []

    def require_written(self) -> None:
        """Raise OSError when the last eval checkpoint was not written."""
        if self._failure is not None:
            raise self._failure

    def _is_beside_training(self, *, is_last: bool) -> bool:
        """Make room for one more evaluation under way, or decide that it must run here."""
        if self._brief.spec.evaluation.placement == "inline":
            return False
        if not is_last and self.lost_step is None:
            self._tell_waiting()
            self.drain(at_most=MAX_UNDER_WAY - 1)
        if not is_last and self.lost_step is None:
            return True
        self.drain()
        return False

    def _is_under_way(self, at_most: int) -> bool:
        """Whether more than ``at_most`` are under way; the lead waits briefly and informs all."""
        told = torch.zeros(2, dtype=torch.float64)
        if self._validator is not None:
            is_done = self._validator.wait(at_most=at_most, seconds=_WAIT_SECONDS)
            lost = self._validator.lost_step
            told = torch.tensor([not is_done, 0 if lost is None else 1 + lost], dtype=told.dtype)
        is_under_way, lost_step = self._cluster.sum(told).tolist()
        self.lost_step = int(lost_step) - 1 if lost_step else None
        return bool(is_under_way)

    def _tell_waiting(self) -> None:
        """Report once that training waits for its evaluations, since they are slower."""
        if self._validator is None or self._has_told_waiting:
            return
        if self._validator.wait(at_most=MAX_UNDER_WAY - 1, seconds=0):
            return
        self._has_told_waiting = True
        message = (
            f"training waits for its evaluations, of which {MAX_UNDER_WAY} may be under way; "
            "evaluate less often, or on fewer batches"
        )
        self._reporter.say(Notice(code="evaluation.slow", message=message))

    def _evaluate_now(self, position: Position, evaluations_served: int) -> EvalResult:
        checkpoint_id, model = new_id("ckpt"), self._setup.model
        loss_at_y = self._evaluate_y().loss if self._brief.spec.evaluation.at_y else None
        at_x = at_average(self._setup.optimizer, model=model)
        with at_x, using_buffers(model, self._buffers()):
            result, seen = self._evaluate(self._setup.datasets), diagnostics(self._setup.optimizer)
            files = self._written(checkpoint_id)
        self._beat()
        if self._validator is None:
            return result
        self._say_evaluation(position, result, seen, loss_at_y)
        if files is not None:
            manifest = self._context.manifest(
                checkpoint_id,
                CheckpointKind.EVAL,
                position,
                files,
                evaluation=self._receipt(result),
            )
            validated = self._validator.check(
                self._staging / checkpoint_id, manifest, checked=result.checked
            )
            self._publish(manifest, evaluations_served, validated)
        return result

    def _begin_evaluation(self, position: Position, evaluations_served: int) -> None:
        """Write the averaged point to files, and have those evaluated while training continues."""
        checkpoint_id, model = new_id("ckpt"), self._setup.model
        at_x = at_average(self._setup.optimizer, model=model)
        with at_x, using_buffers(model, self._buffers()):
            seen = diagnostics(self._setup.optimizer)
            files = self._written(checkpoint_id)
        self._beat()
        if self._validator is None:
            return
        if files is None:
            self._validator.lose(position.step, "its files were not written")
            return
        manifest = self._context.manifest(checkpoint_id, CheckpointKind.EVAL, position, files)
        validated = self._validator.evaluate(
            self._staging / checkpoint_id,
            manifest,
            say=lambda result: self._say_evaluation(position, result, seen, None),
            receipt_of=self._receipt,
        )
        self._publish(manifest, evaluations_served, validated)

    def _written(self, checkpoint_id: str) -> tuple[CheckpointFile, ...] | None:
        """Have the lead write the model as it is; None: not written, or this is not the lead.

        A failing disk costs this checkpoint, not the job, which continues to the next one.
        """
        if not self._cluster.is_lead:
            help_to_gather(self._setup.model)
            return None
        folder = self._staging / checkpoint_id
        try:
            files = write_model(folder, self._setup.model)
        except OSError as error:
            log.error("checkpoint %s was not written: %s", checkpoint_id, error)
            shutil.rmtree(folder, ignore_errors=True)
            if self._failure is None:
                message = f"a checkpoint was not written; training continues: {error}"
                self._reporter.say(Notice(code="checkpoint.failed", message=message))
            self._failure = error
            return None
        self._failure = None
        return files

    def _buffers(self) -> dict[str, torch.Tensor]:
        """Batch-norm statistics of the model as it is; none without batch norm."""
        return recalibrated_buffers(
            self._setup.model,
            data=self._setup.datasets.train,
            spec=self._brief.spec.evaluation,
            seed=self._brief.spec.training.seed,
            rank=self._cluster.rank,
            world_size=self._cluster.world_size,
            gather=self._cluster.sum,
            on_batch=self._beat,
        )

    def _evaluate_y(self) -> EvalResult:
        """On the main set alone: y is evaluated only to compare its loss with that of x."""
        return self._evaluate(self._setup.datasets.validation_only())

    def _evaluate(self, datasets: Datasets) -> EvalResult:
        return evaluate_all(
            self._setup.model,
            datasets=datasets,
            spec=self._brief.spec,
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
            data_fingerprint=self._setup.datasets.train.description.fingerprint,
            data_shape=self._setup.datasets.train.description.shape,
            sets=set_receipts(self._setup.datasets, spec=spec),
        )

    def _publish(
        self,
        manifest: Manifest,
        evaluations_served: int,
        validated: Future[ValidatedManifest | None],
    ) -> None:
        staged = Staged(
            self._staging / manifest.checkpoint_id,
            manifest,
            evaluations_served,
            validated=validated,
            keep=self._brief.spec.checkpoints,
        )
        self._reporter.publish(staged)
