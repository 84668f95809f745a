"""SOAP as a rule of the engine: what it rotates, with which numbers, and when it learns."""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from torch import Tensor

from roadless.optim.checks import require_inside_unit_interval
from roadless.optim.core.shapes import require_shape
from roadless.optim.numerics.sharding import part_of, whole
from roadless.optim.rules.base import Batch, Group, Rule, State, TensorList
from roadless.optim.soap.checks import check_soap
from roadless.optim.soap.clipping import clip_adaptively
from roadless.optim.soap.coefficients import coefficients_of
from roadless.optim.soap.layout import Layout, layout_of
from roadless.optim.soap.matrix import begin, direction, learn, turn
from roadless.optim.soap.schedule import timing_of

_layout_of = cache(layout_of)


@dataclass(frozen=True, slots=True)
class SoapRule(Rule):
    """Adam in the eigenbasis of Shampoo's factors; for equations see `roadless.optim.soap.matrix`.

    A tensor's first gradient sets its basis and moves nothing. In each later step the direction is
    computed in the old basis, then the factors learn the gradient, and the basis is refreshed if
    the group's schedule says so.

    For a sharded tensor, each rank gathers the gradient and keeps the whole state, so that all get
    the same result as one process; each takes its part of u.
    """

    #: Whether u is made of an average of gradients; false if y's interpolation takes its place.
    has_momentum: bool
    rests_first: ClassVar[bool] = True
    keeps_whole_state: ClassVar[bool] = True
    #: It is, but the state has a count of its own.
    depends_on_age: ClassVar[bool] = False

    def check(self, group: Group) -> None:
        """Raise ValueError when a setting of SOAP is out of range."""
        check_soap(group)
        if not self.has_momentum:
            require_inside_unit_interval("betas[0]", group["betas"][0])

    def start(self, point: Tensor, gradient: Tensor, group: Group, /) -> State:
        """Return the state after a parameter's first gradient, which sets the basis."""
        layout = layout_for(point, group)
        g = layout.fold(_clipped(gradient, point, group))
        return begin(g.to(point.dtype), layout, has_momentum=self.has_momentum)

    def direction(self, batch: Batch) -> TensorList:
        """Return u for each gradient; moments, factors and bases are updated."""
        is_due, _ = timing_of(batch.group).is_due(batch.pace.t, batch.group["precond_due"])
        members = zip(batch.points, batch.gradients, batch.states, strict=True)
        return [self._direction(*member, batch.group, is_due) for member in members]

    def _direction(
        self, point: Tensor, gradient: Tensor, state: State, group: Group, is_due: bool
    ) -> Tensor:
        layout = layout_for(point, group)
        g = layout.fold(_clipped(gradient, point, group))
        require_shape(state["exp_avg_sq"], g, name="exp_avg_sq")
        state["step"] += 1
        coefficients = coefficients_of(group, t=int(state["step"]), has_momentum=self.has_momentum)
        u = direction(g, state, layout, coefficients)
        learn(g, state, layout, coefficients)
        if is_due:
            turn(state, layout, floor=group["eps"])
        u = layout.unfold(u)
        if group["normalize_grads"]:
            u = u / u.square().mean().sqrt()
        return part_of(u, like=point)


def layout_for(point: Tensor, group: Group) -> Layout:
    """Return how a tensor is seen by the preconditioner, under the settings of its group."""
    return _layout_of(
        tuple(point.shape),
        max_precond_dim=group["max_precond_dim"],
        merge_dims=group["merge_dims"],
        precondition_1d=group["precondition_1d"],
        data_format=group["data_format"],
    )


def _clipped(gradient: Tensor, point: Tensor, group: Group) -> Tensor:
    """Return the clipped gradient; the whole one if sharded, as its basis is that of the whole."""
    most, g = group["gradient_clip_val"], whole(gradient)
    return g if most == 0 else clip_adaptively(g, whole(point), most=most, eps=group["eps"])
