"""The training loop: step, report, evaluate at x, save, until a budget or a user ends it."""

import random
from collections.abc import Callable

import numpy as np
import torch

from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.job.training import accumulation_steps
from roadless.service.contract.reports.events import BudgetNow, Notice, StepMetrics, Usage
from roadless.service.contract.states import Desired, Reason
from roadless.worker.checkpointing.state_saver import StateSaver
from roadless.worker.data.base import Batch
from roadless.worker.data.prefetch import Prefetch
from roadless.worker.data.sampler import Sampler
from roadless.worker.early_stopping import judge, reached
from roadless.worker.evaluation.evaluate import EvalResult, noop
from roadless.worker.position import Position, Stopwatch, is_used_up
from roadless.worker.setup import RankContext
from roadless.worker.training.agreement import Due, Ending, Orders, Signals, agree
from roadless.worker.training.cadence import build_cadence, build_state_cadence
from roadless.worker.training.diagnostics import WarmupHint
from roadless.worker.training.evaluations import EvaluationManager
from roadless.worker.training.lr_schedule import build_lr_schedule
from roadless.worker.training.resource_usage import UsageMeter
from roadless.worker.training.step import StepResult, StepSettings, train_step


class Training:
    """One attempt's run of one rank. All ranks make the same decisions after the same step."""

    def __init__(
        self,
        context: RankContext,
        *,
        evaluations: EvaluationManager,
        states: StateSaver,
        position: Position,
        evaluated_step: int | None,
        beat: Callable[[], None] = noop,
        usage: UsageMeter | None = None,
    ) -> None:
        """``beat``: called after each step, as a sign of progress.

        ``usage``: measures what the rank uses; None for the usual meter of its device.
        """
        brief, cluster = context.brief, context.cluster
        self._setup = context.setup
        self._evaluations = evaluations
        self._states = states
        self._spec = brief.spec
        self._cluster = cluster
        self._reporter = context.reporter
        self._position = position
        self._evaluated_step = evaluated_step
        self._beat = beat
        self._warmup_hint = WarmupHint()
        self._usage = usage or UsageMeter(cluster.device)
        #: Step and evaluated step of the last saved training state.
        self._saved = (position.step, evaluated_step) if brief.resume else None
        self._evaluations_served = brief.evaluations_served
        self._budget = BudgetNow(limits=brief.spec.budget)
        self._cadence = build_cadence(
            brief.spec.evaluation,
            batch_size=brief.spec.training.batch_size,
            num_passes=evaluations.num_passes(),
        )
        #: Steps of planned evaluations that are under way beside training; for the lead.
        self._unjudged: set[int] = set()
        self._asked = position  #: where the cadence was last asked, or an evaluation ended
        self._state_cadence = build_state_cadence(brief.spec.checkpoints)
        self._state_asked = position  #: where the state cadence was last asked
        self._lr_schedule = build_lr_schedule(brief.spec)
        self._batches = _batches(context)
        self._step_settings = _step_settings(brief.spec, world_size=cluster.world_size)
        gpus = cluster.world_size * brief.spec.parallelism.gpus_per_worker
        self._stopwatch = Stopwatch(position, gpus=gpus)

    @property
    def position(self) -> Position:
        """How far training is, with the record of its planned evaluations."""
        return self._position

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self._position.step

    @property
    def budget(self) -> BudgetNow:
        """The budget that the lead rank last applied."""
        return self._budget

    def run(self) -> Reason | None:
        """Train to the end; return why it ended, or None when the attempt is already over."""
        orders = agree(self._cluster, self._orders(self._position)).orders
        first_step, is_moving = self.step + 1, False
        while not (orders.is_end or is_moving):
            orders = self.take_step()
            if self.step == first_step:
                self._states.prepare()
            if not orders.is_end:
                orders = self._evaluate_and_save(orders)
                is_moving = orders.signals.resize and orders.due.state and not orders.is_end
        self._batches.close()
        if orders.signals.leave:
            return None
        if not is_moving:
            self.evaluate(orders)
            self._save_state()
        self._states.settle()
        self._evaluations.require_written()
        return Reason.RESIZED if is_moving else _reason_of(orders)

    def take_step(self) -> Orders:
        """Take one step and report it; return the orders of all ranks after it."""
        self._judge_results()
        step, spec = self._position.step, self._spec.training
        seed_step(
            spec.seed,
            step=step,
            rank=self._cluster.rank,
            device=self._cluster.device,
            is_foreign=self._spec.model.kind != "preset",
        )
        self._set_lr()
        after = self._position.after_step(
            samples=spec.batch_size,
            tokens=spec.batch_size * self._setup.datasets.train.description.tokens_per_sample,
        )
        now = self._stopwatch.stamp(after)
        result = train_step(
            self._setup.wrapped,
            self._batches(step).to(self._cluster.device),
            optimizer=self._setup.optimizer,
            cluster=self._cluster,
            settings=self._step_settings,
            orders=self._orders(
                now,
                evaluation_due=self._cadence(now, self._asked),
                state_due=self._state_cadence(now, self._state_asked),
            ),
            may_skip=self._may_skip(),
        )
        self._asked = self._state_asked = now
        self._position = self._stopwatch.stamp(after.after_update(is_skipped=result.is_skipped))
        self._say(result)
        self._say_usage()
        self._beat()
        return result.orders

    def evaluate(self, orders: Orders) -> None:
        """Evaluate at x, once per step; at the end, after all earlier evaluations.

        ``orders``: of the last step, which say why: it is due, requested by a user, or final.
        """
        if orders.is_end:
            self._settle_evaluations()
        is_lost = self._evaluations.lost_step == self._position.step
        if self._evaluated_step == self._position.step and not is_lost:
            return
        self._evaluated_step = self._position.step
        if orders.signals.evaluate:
            self._evaluations_served = self._reporter.heard.evaluations_requested
        result = self._evaluations.evaluate(
            self._position,
            evaluations_served=self._evaluations_served if orders.signals.evaluate else 0,
            is_last=orders.is_end,
        )
        self._position = self._asked = self._stopwatch.stamp(self._position)
        if not orders.due.evaluation or not self._cluster.is_lead:
            return
        if result is None:
            self._unjudged.add(self._position.step)
        else:
            self._position = self._judged(result)

    def _may_skip(self) -> bool:
        spec = self._spec.training
        return spec.on_non_finite == "skip" and self._position.skips_in_a_row < spec.max_skips

    def _set_lr(self) -> None:
        """Set the scheduled rate of the next step; without a schedule, keep the optimizer's."""
        if self._lr_schedule is None:
            return
        lr = self._lr_schedule.after(self._position.step)
        for group in self._setup.optimizer.param_groups:
            group["lr"] = lr

    def _orders(
        self, position: Position, *, evaluation_due: bool = False, state_due: bool = False
    ) -> Orders:
        """The lead's orders: the service's signals, what is due, and endings at ``position``."""
        heard = self._reporter.heard
        self._budget = heard.budget or self._budget
        signals = Signals(
            stop=heard.desired is Desired.STOP,
            pause=heard.desired is Desired.PAUSE,
            leave=heard.is_fenced,
            evaluate=heard.evaluations_requested > self._evaluations_served,
            resize=heard.resize,
        )
        due = Due(
            evaluation=evaluation_due,
            state=state_due,
            judgement=self._spec.evaluation.placement == "async" and self._may_stop_early(),
        )
        ending = self._early_ending()._replace(
            budget_reached=is_used_up(self._budget.limits, position)
        )
        return Orders(signals, due, ending)

    def _may_stop_early(self) -> bool:
        limits = self._budget.limits
        return limits is not None and bool(limits.until or limits.patience)

    def _early_ending(self) -> Ending:
        """Whether planned evaluations end the job, and why."""
        reason = reached(self._position.early_stopping, self._budget.limits)
        return Ending(
            good_enough=reason is Reason.GOAL_REACHED, no_better=reason is Reason.NO_BETTER
        )

    def _say(self, result: StepResult) -> None:
        if not self._cluster.is_lead:
            return
        position = self._position
        point = StepMetrics(
            step=position.step,
            samples=position.samples,
            tokens=position.tokens,
            wall_seconds=position.wall_seconds,
            gpu_seconds=position.gpu_seconds,
            values=self._values(result),
        )
        self._reporter.say(point)
        hint = self._warmup_hint.after(position.step, loss=result.loss, grad_norm=result.grad_norm)
        if hint is not None:
            self._reporter.say(hint)
        if result.is_skipped and _is_power_of_two(position.skips):
            self._reporter.say(_skip_notice(position, result))

    def _say_usage(self) -> None:
        """Report this rank's usage every few seconds."""
        values = self._usage.due()
        if values:
            self._reporter.say(Usage(step=self._position.step, values=values))

    def _values(self, result: StepResult) -> dict[str, float]:
        group = self._setup.optimizer.param_groups[0]
        values = {
            "train.loss": result.loss,
            "grad.norm": result.grad_norm,
            "optimizer.lr": float(group.get("scheduled_lr", group["lr"])),
        }
        if self._spec.training.on_non_finite == "skip":
            values["train.skipped"] = float(self._position.skips)
        return values

    def _evaluate_and_save(self, orders: Orders) -> Orders:
        """Evaluate and save as often as the specification says, in this order.

        So a state includes the evaluation of its own step, and no later attempt repeats it; if a
        job may stop early, the state also records whether it ended the job. Returns the orders with
        what the evaluation adds to them.
        """
        due = orders.due
        if orders.evaluates:
            self.evaluate(orders)
        if due.state and due.judgement:
            self._settle_evaluations()
        if due.evaluation or (due.state and due.judgement):
            orders = self._with_early_ending(orders)
        if due.state and not orders.is_end:
            self._save_state()
        return orders

    def _with_early_ending(self, orders: Orders) -> Orders:
        """The orders with the lead's endings, since only the lead receives a changed budget."""
        agreed = agree(self._cluster, Orders(ending=self._early_ending())).orders.ending
        ending = agreed._replace(budget_reached=orders.ending.budget_reached)
        return orders._replace(ending=ending)

    def _settle_evaluations(self) -> None:
        """Wait for evaluations beside training, and judge them."""
        self._evaluations.drain()
        self._judge_results()

    def _judge_results(self) -> None:
        """Judge the results of planned evaluations beside training, in their order."""
        for step, result in self._evaluations.results():
            if step in self._unjudged:
                self._unjudged.remove(step)
                self._position = self._judged(result)

    def _judged(self, result: EvalResult) -> Position:
        """The position with one more planned evaluation in its record."""
        values = {"eval.loss": result.loss, **result.metrics}
        record = judge(self._position.early_stopping, values, budget=self._budget.limits)
        return self._position._replace(early_stopping=record)

    def _save_state(self) -> None:
        """Save the training state, unless this one is already saved."""
        if self._saved == (self._position.step, self._evaluated_step):
            return
        self._saved = (self._position.step, self._evaluated_step)
        self._states.save(self._position, evaluated_step=self._evaluated_step)
        self._beat()


def _batches(context: RankContext) -> Prefetch[Batch]:
    cluster, training = context.cluster, context.brief.spec.training
    sampler = Sampler(
        context.setup.datasets.train,
        batch_size=training.batch_size,
        seed=training.seed,
        rank=cluster.rank,
        world_size=cluster.world_size,
    )
    return Prefetch(sampler)


def _step_settings(spec: JobSpec, *, world_size: int) -> StepSettings:
    training = spec.training
    return StepSettings(
        task=spec.task,
        accumulation_steps=accumulation_steps(training, spec.parallelism, world_size=world_size),
        precision=training.precision,
        max_grad_norm=training.max_grad_norm,
    )


def _reason_of(orders: Orders) -> Reason:
    if orders.signals.stop:
        return Reason.STOPPED_BY_USER
    if orders.ending.budget_reached:
        return Reason.BUDGET_REACHED
    if orders.ending.good_enough:
        return Reason.GOAL_REACHED
    return Reason.NO_BETTER if orders.ending.no_better else Reason.PAUSED_BY_USER


def _skip_notice(position: Position, result: StepResult) -> Notice:
    """For the first skip and each doubling of their number, so that lines stay few."""
    return Notice(
        code="train.skipped",
        message=f"step {position.step} made no update (skipped steps so far: {position.skips}): "
        f"loss {result.loss:.6g}, gradient norm {result.grad_norm:.6g}",
    )


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def seed_step(seed: int, *, step: int, rank: int, device: torch.device, is_foreign: bool) -> None:
    """Make the step's random numbers (dropout) a function of seed, step and rank.

    So there is no random state to save, and a resumed run draws what an uninterrupted one draws.
    Other people's models (``is_foreign``) may draw from numpy and random too. Not by
    ``torch.manual_seed``: it records the stack of each call for devices that may be used later,
    which takes a tenth of a fast model's time.
    """
    number = (seed * 1_000_003 + step) * 65_537 + rank
    torch.default_generator.manual_seed(number & 0x7FFF_FFFF_FFFF_FFFF)
    if device.type == "cuda":
        torch.cuda.manual_seed(number & 0x7FFF_FFFF_FFFF_FFFF)
    if is_foreign:
        np.random.seed(number & 0xFFFF_FFFF)
        random.seed(number)
