"""The training loop: step, say, evaluate at x, save, until a budget or a user ends it."""

import random
from collections.abc import Callable

import numpy as np
import torch

from roadless.service.contract.job.training import num_parts
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.reports.events import BudgetNow, Notice, StepMetrics, Usage
from roadless.service.contract.states import Desired, Reason
from roadless.worker.data.prefetch import Prefetch
from roadless.worker.data.sampler import Shares
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.early_stopping import judge, standing
from roadless.worker.evaluation.evaluate import EvalResult, unheard
from roadless.worker.position import Position, Stopwatch, is_used_up
from roadless.worker.reporting.reporter import Reporter
from roadless.worker.setup import Built
from roadless.worker.training.cadence import build_cadence, build_state_cadence
from roadless.worker.training.diagnostics import WarmupHint
from roadless.worker.training.evaluations import Milestones
from roadless.worker.training.lr_schedule import build_rates
from roadless.worker.training.resource_usage import UsageMeter
from roadless.worker.training.step import Orders, StepResult, StepSettings, agree, train_step


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
        beat: Callable[[], None] = unheard,
    ) -> None:
        """``beat``: called after each step, for who watches that training goes on."""
        seats, training = brief.spec.parallelism, brief.spec.training
        self._built = built
        self._milestones = milestones
        self._spec = brief.spec
        self._cluster = cluster
        self._reporter = reporter
        self._position = position
        self._evaluated_step = evaluated_step
        self._beat = beat
        self._warmup_hint = WarmupHint()
        self._usage = UsageMeter(cluster.device)
        #: Step and evaluated step of the training state that was saved last.
        self._saved = (position.step, evaluated_step) if brief.resume else None
        self._evaluations_served = brief.evaluations_served
        self._budget = BudgetNow(limits=brief.spec.budget)
        self._cadence = build_cadence(
            brief.spec.evaluation,
            batch_size=training.batch_size,
            num_passes=milestones.num_passes(),
        )
        #: Steps of planned evaluations that are under way beside training; for the lead.
        self._unjudged: set[int] = set()
        self._asked = position  #: where the cadence was asked last, or an evaluation ended
        self._state_cadence = build_state_cadence(brief.spec.checkpoints)
        self._state_asked = position  #: where that one was asked last
        self._rates = build_rates(brief.spec)
        shares = Shares(
            built.data,
            batch_size=training.batch_size,
            seed=training.seed,
            rank=cluster.rank,
            world_size=cluster.world_size,
        )
        self._batches = Prefetch(shares)
        self._step_settings = StepSettings(
            task=brief.spec.task,
            num_parts=num_parts(training, seats, world_size=cluster.world_size),
            precision=training.precision,
            max_grad_norm=training.max_grad_norm,
        )
        self._stopwatch = Stopwatch(position, gpus=cluster.world_size * seats.gpus_per_worker)

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self._position.step

    @property
    def budget(self) -> BudgetNow:
        """The budget that the lead rank last held training to."""
        return self._budget

    def run(self) -> Reason | None:
        """Train to the end; return why it ended, or None when the attempt is over already."""
        orders = agree(self._cluster, self._orders(self._position)).orders
        first_step, is_moving = self.step + 1, False
        while not (orders.is_end or is_moving):
            orders = self._step()
            if self.step == first_step:
                self._milestones.prepare_states()
            if not orders.is_end:
                orders = self._reach_milestones(orders)
                is_moving = orders.resize and orders.save and not orders.is_end
        self._batches.close()
        if orders.leave:
            return None
        if not is_moving:
            self._evaluate(orders)
            self._save_state()
        self._milestones.settle()
        return Reason.RESIZED if is_moving else _reason_of(orders)

    def _step(self) -> Orders:
        self._judge_found()
        step, spec = self._position.step, self._spec.training
        _seed_step(
            spec.seed,
            step=step,
            rank=self._cluster.rank,
            device=self._cluster.device,
            is_foreign=self._spec.model.kind != "preset",
        )
        self._set_rate()
        after = self._position.after_step(
            samples=spec.batch_size,
            tokens=spec.batch_size * self._built.data.description.tokens_per_sample,
        )
        now = self._stopwatch.stamp(after)
        result = train_step(
            self._built.wrapped,
            self._batches(step).to(self._cluster.device),
            optimizer=self._built.optimizer,
            cluster=self._cluster,
            settings=self._step_settings,
            orders=self._orders(
                now,
                is_due=self._cadence(now, self._asked),
                is_state_due=self._state_cadence(now, self._state_asked),
            ),
            may_skip=self._may_skip(),
        )
        self._asked = self._state_asked = now
        self._position = self._stopwatch.stamp(after.after_update(is_skipped=result.is_skipped))
        self._say(result)
        self._say_usage()
        self._beat()
        return result.orders

    def _may_skip(self) -> bool:
        spec = self._spec.training
        return spec.on_non_finite == "skip" and self._position.skips_in_a_row < spec.max_skips

    def _set_rate(self) -> None:
        """Set what the schedule says for the next step; without one the optimizer's rate stays."""
        if self._rates is None:
            return
        rate = self._rates.after(self._position.step)
        for group in self._built.optimizer.param_groups:
            group["lr"] = rate

    def _orders(
        self, position: Position, *, is_due: bool = False, is_state_due: bool = False
    ) -> Orders:
        """What the lead rank has heard, and whether the budget is used up at ``position``."""
        heard = self._reporter.heard
        self._budget = heard.budget or self._budget
        goal = self._goal()
        return Orders(
            stop=heard.desired is Desired.STOP,
            pause=heard.desired is Desired.PAUSE,
            finish=is_used_up(self._budget.limits, position),
            leave=heard.is_fenced,
            evaluate=heard.evaluations_requested > self._evaluations_served,
            resize=heard.resize,
            due=is_due,
            save=is_state_due,
            settle=self._spec.evaluation.placement == "async" and self._has_goals(),
            goal=goal is Reason.GOAL_REACHED,
            no_better=goal is Reason.NO_BETTER,
        )

    def _has_goals(self) -> bool:
        limits = self._budget.limits
        return limits is not None and bool(limits.until or limits.patience)

    def _goal(self) -> Reason | None:
        """Which goal planned evaluations have reached."""
        return standing(self._position.goals, self._budget.limits)

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
        """Every rank says what it uses, every few seconds."""
        values = self._usage.due()
        if values:
            self._reporter.say(Usage(step=self._position.step, values=values))

    def _values(self, result: StepResult) -> dict[str, float]:
        group = self._built.optimizer.param_groups[0]
        values = {
            "train.loss": result.loss,
            "grad.norm": result.grad_norm,
            "optimizer.lr": float(group.get("scheduled_lr", group["lr"])),
        }
        if self._spec.training.on_non_finite == "skip":
            values["train.skipped"] = float(self._position.skips)
        return values

    def _reach_milestones(self, orders: Orders) -> Orders:
        """Evaluate and save as often as the specification says, in this order.

        So a state knows of the evaluation of its own step, and no later attempt repeats it; of a
        job with goals it knows the verdict too. Returns the orders with what the evaluation adds to
        them.
        """
        if orders.evaluate or orders.due:
            self._evaluate(orders)
        if orders.save and orders.settle:
            self._settle_evaluations()
        if orders.due or (orders.save and orders.settle):
            orders = self._with_goals(orders)
        if orders.save and not orders.is_end:
            self._save_state()
        return orders

    def _with_goals(self, orders: Orders) -> Orders:
        """The orders with the lead's verdict, since only the lead hears of a changed budget."""
        goal = self._goal()
        mine = Orders(goal=goal is Reason.GOAL_REACHED, no_better=goal is Reason.NO_BETTER)
        verdict = agree(self._cluster, mine).orders
        return orders._replace(goal=verdict.goal, no_better=verdict.no_better)

    def _settle_evaluations(self) -> None:
        """Wait for evaluations beside training, and judge them."""
        self._milestones.drain()
        self._judge_found()

    def _judge_found(self) -> None:
        """Judge what planned evaluations beside training have found, in their order."""
        for step, result in self._milestones.found():
            if step in self._unjudged:
                self._unjudged.remove(step)
                self._position = self._judged(result)

    def _evaluate(self, orders: Orders) -> None:
        """Evaluate at x, once per step; at the end when all before it is done."""
        if orders.is_end:
            self._settle_evaluations()
        is_lost = self._milestones.lost_step == self._position.step
        if self._evaluated_step == self._position.step and not is_lost:
            return
        self._evaluated_step = self._position.step
        if orders.evaluate:
            self._evaluations_served = self._reporter.heard.evaluations_requested
        result = self._milestones.evaluate(
            self._position,
            evaluations_served=self._evaluations_served if orders.evaluate else 0,
            is_last=orders.is_end,
        )
        self._position = self._asked = self._stopwatch.stamp(self._position)
        if not orders.due or not self._cluster.is_lead:
            return
        if result is None:
            self._unjudged.add(self._position.step)
        else:
            self._position = self._judged(result)

    def _judged(self, result: EvalResult) -> Position:
        """The position with one more planned evaluation in its record."""
        values = {"eval.loss": result.loss, **result.metrics}
        goals = judge(self._position.goals, values, budget=self._budget.limits)
        return self._position._replace(goals=goals)

    def _save_state(self) -> None:
        """Save the training state, unless this very one is saved already."""
        if self._saved == (self._position.step, self._evaluated_step):
            return
        self._saved = (self._position.step, self._evaluated_step)
        self._milestones.save_state(self._position, evaluated_step=self._evaluated_step)


def _reason_of(orders: Orders) -> Reason:
    if orders.stop:
        return Reason.STOPPED_BY_USER
    if orders.finish:
        return Reason.BUDGET_REACHED
    if orders.goal:
        return Reason.GOAL_REACHED
    return Reason.NO_BETTER if orders.no_better else Reason.PAUSED_BY_USER


def _skip_notice(position: Position, result: StepResult) -> Notice:
    """Told of the first skip and whenever their number has doubled, so that lines stay few."""
    return Notice(
        code="train.skipped",
        message=f"step {position.step} made no update, the {position.skips}. of the job: loss "
        f"{result.loss:.6g}, gradient norm {result.grad_norm:.6g}",
    )


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _seed_step(seed: int, *, step: int, rank: int, device: torch.device, is_foreign: bool) -> None:
    """Make the step's random numbers (dropout) a function of seed, step and rank.

    So there is no random state to save, and a resumed run draws what an uninterrupted one draws.
    Other people's models (``is_foreign``) may draw from numpy and random too. Not by
    ``torch.manual_seed``: it notes the stack of each call for devices that may be used later, which
    takes a fast model's tenth.
    """
    number = (seed * 1_000_003 + step) * 65_537 + rank
    torch.default_generator.manual_seed(number & 0x7FFF_FFFF_FFFF_FFFF)
    if device.type == "cuda":
        torch.cuda.manual_seed(number & 0x7FFF_FFFF_FFFF_FFFF)
    if is_foreign:
        np.random.seed(number & 0xFFFF_FFFF)
        random.seed(number)
