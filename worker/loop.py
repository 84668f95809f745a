"""The training loop: step, say, evaluate at x, save, until a budget or a user ends it."""

import torch

from service.contract.cluster import AttemptBrief
from service.contract.events import StepMetrics
from service.contract.states import Desired, Reason
from worker.built import Built
from worker.cluster import Cluster
from worker.data.base import Batch
from worker.data.order import global_indices, rank_slice
from worker.milestones import Milestones
from worker.position import Position, Stopwatch, is_used_up
from worker.rates import build_rates
from worker.report import Reporter
from worker.step import Orders, StepResult, agree, train_step


class Training:
    """One attempt's run of one rank. All ranks take the same decisions after the same step."""

    def __init__(
        self,
        built: Built,
        milestones: Milestones,
        *,
        brief: AttemptBrief,
        cluster: Cluster,
        reporter: Reporter,
        position: Position,
        evaluated_step: int | None,
    ) -> None:
        seats = brief.spec.parallelism
        self._built = built
        self._milestones = milestones
        self._spec = brief.spec
        self._cluster = cluster
        self._reporter = reporter
        self._position = position
        self._evaluated_step = evaluated_step
        #: Step and evaluated step of the training state that was saved last.
        self._saved = (position.step, evaluated_step) if brief.resume else None
        self._evaluations_served = brief.evaluations_served
        self._rates = build_rates(brief.spec)
        self._stopwatch = Stopwatch(position, gpus=seats.num_workers * seats.gpus_per_worker)

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self._position.step

    def run(self) -> Reason | None:
        """Train to the end; return why it ended, or None when the attempt is over already."""
        orders = agree(self._cluster, self._orders(self._position)).orders
        while not orders.is_end:
            orders = self._step()
            if not orders.is_end:
                self._reach_milestones(orders)
        if orders.leave:
            return None
        self._evaluate(serves_request=orders.evaluate)
        self._save_state()
        return Reason.STOPPED_BY_USER if orders.stop else Reason.BUDGET_REACHED

    def _step(self) -> Orders:
        step, spec = self._position.step, self._spec.training
        _seed_step(spec.seed, step=step, rank=self._cluster.rank)
        self._set_rate()
        after = self._position.after_step(
            samples=spec.batch_size,
            tokens=spec.batch_size * self._built.data.description.tokens_per_sample,
        )
        result = train_step(
            self._built.wrapped,
            self._batch(step),
            optimizer=self._built.optimizer,
            cluster=self._cluster,
            max_grad_norm=spec.max_grad_norm,
            orders=self._orders(self._stopwatch.stamp(after)),
        )
        self._position = self._stopwatch.stamp(after)
        self._say(result)
        return result.orders

    def _set_rate(self) -> None:
        """Set what the schedule says for the next step; without one the optimizer's rate stays."""
        if self._rates is None:
            return
        rate = self._rates.after(self._position.step)
        for group in self._built.optimizer.param_groups:
            group["lr"] = rate

    def _batch(self, step: int) -> Batch:
        spec, data = self._spec.training, self._built.data
        indices = global_indices(
            step, batch_size=spec.batch_size, num_train=data.num_train, seed=spec.seed
        )
        mine = rank_slice(indices, rank=self._cluster.rank, world_size=self._cluster.world_size)
        return data.train_batch(mine).to(self._cluster.device)

    def _orders(self, position: Position) -> Orders:
        """What the lead rank has heard, and whether the budget is used up at ``position``."""
        heard = self._reporter.heard
        return Orders(
            stop=heard.desired is Desired.STOP,
            finish=is_used_up(self._spec.budget, position),
            leave=heard.is_fenced,
            evaluate=heard.evaluations_requested > self._evaluations_served,
        )

    def _say(self, result: StepResult) -> None:
        if not self._cluster.is_lead:
            return
        position = self._position
        group = self._built.optimizer.param_groups[0]
        point = StepMetrics(
            step=position.step,
            samples=position.samples,
            tokens=position.tokens,
            wall_seconds=position.wall_seconds,
            gpu_seconds=position.gpu_seconds,
            values={
                "train.loss": result.loss,
                "grad.norm": result.grad_norm,
                "optimizer.lr": float(group.get("scheduled_lr", group["lr"])),
            },
        )
        self._reporter.say(point)

    def _reach_milestones(self, orders: Orders) -> None:
        """Evaluate and save as often as the specification says, in this order.

        So a state knows of the evaluation of its own step, and no later attempt repeats it.
        """
        step = self._position.step
        if orders.evaluate or step % self._spec.evaluation.every_steps == 0:
            self._evaluate(serves_request=orders.evaluate)
        if step % self._spec.checkpoints.state_every_steps == 0:
            self._save_state()

    def _evaluate(self, *, serves_request: bool) -> None:
        """Evaluate at x, once per step."""
        if self._evaluated_step == self._position.step:
            return
        self._evaluated_step = self._position.step
        if serves_request:
            self._evaluations_served = self._reporter.heard.evaluations_requested
        self._milestones.evaluate(
            self._position,
            evaluations_served=self._evaluations_served if serves_request else 0,
        )

    def _save_state(self) -> None:
        """Save the training state, unless this very one is saved already."""
        if self._saved == (self._position.step, self._evaluated_step):
            return
        self._saved = (self._position.step, self._evaluated_step)
        self._milestones.save_state(self._position, evaluated_step=self._evaluated_step)


def _seed_step(seed: int, *, step: int, rank: int) -> None:
    """Make the step's random numbers (dropout) a function of seed, step and rank.

    So there is no random state to save, and a resumed run draws what an uninterrupted one draws.
    """
    number = (seed * 1_000_003 + step) * 65_537 + rank
    torch.manual_seed(number & 0x7FFF_FFFF_FFFF_FFFF)
