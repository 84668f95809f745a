"""SOAP's direction for one tensor: Adam's, taken in the eigenbasis of the factors.

State per parameter: ``step``, the number of its updates; ``exp_avg_sq`` (v) and, with momentum,
``exp_avg`` (m), both in the eigenbasis and in the layout; and for each rotated dimension i
``factor_i`` (L) and ``basis_i`` (Q). All are contiguous: a state loaded from a file in another
layout would give products that differ in the last bits.
"""

import math

import torch
from torch import Tensor

from roadless.optim.rules.base import State
from roadless.optim.soap.basis import eigenbasis, refreshed
from roadless.optim.soap.coefficients import Coefficients
from roadless.optim.soap.factors import update_factors
from roadless.optim.soap.layout import Layout
from roadless.optim.soap.rotation import carry, rotate, rotate_back


def begin(g: Tensor, layout: Layout, *, has_momentum: bool) -> State:
    """Return the state after a tensor's first gradient, which sets the basis and moves nothing.

    A gradient rotated into its own eigenbasis would say nothing about its noise there.

    Args:
        g: the gradient in its layout, in the dtype of the state.
        layout: of the tensor.
        has_momentum: whether to keep m.
    """
    # On the CPU, where it is read in every step, whatever device a program makes its own default.
    step = torch.zeros((), dtype=torch.int64, device="cpu")
    state = {"step": step, "exp_avg_sq": torch.zeros_like(g)}
    if has_momentum:
        state["exp_avg"] = torch.zeros_like(g)
    for i in layout.rotated:
        state[f"factor_{i}"] = g.new_zeros(layout.shape[i], layout.shape[i])
    factors = _along("factor", state, layout)
    update_factors(factors, g, beta=0.0)
    for i in layout.rotated:
        state[f"basis_{i}"] = eigenbasis(state[f"factor_{i}"]).contiguous()
    return state


def direction(g: Tensor, state: State, layout: Layout, coefficients: Coefficients) -> Tensor:
    """Update m and v; return u, in the layout.

    A hat marks what is in the eigenbasis, where m and v stay::

        ĝ = Q₀ᵀ g Q₁
        m̂ ← β₁ m̂ + (1 - β₁) ĝ
        v̂ ← β₂ v̂ + (1 - β₂) ĝ²
        u = Q₀ (m̂ / max(√v̂, ε)) Q₁ᵀ

    Without momentum, m̂ is ĝ. Where v̂ is no more than the rounding error of zeros, u is 0: see
    `_rounding_squared`.

    Source: Vyas et al. 2024, arXiv 2409.11321, algorithm 3, lines 3 to 11.
    """
    bases = _along("basis", state, layout)
    rotated = rotate(g, bases)
    v = state["exp_avg_sq"]
    v.mul_(coefficients.beta2).addcmul_(rotated, rotated, value=1 - coefficients.beta2)
    if coefficients.beta1 is not None:
        rotated = state["exp_avg"].lerp_(rotated, 1 - coefficients.beta1)
    u = rotated / v.sqrt().clamp_(min=coefficients.eps)
    if not coefficients.eps:
        u.masked_fill_(v == 0, 0)
    if layout.rotated and _may_be_rounding(v, layout):
        u.masked_fill_(v <= _rounding_squared(v, layout), 0)
    return rotate_back(u, bases)


def _may_be_rounding(v: Tensor, layout: Layout) -> bool:
    """Return whether any entry may be rounding; an accelerator would have to wait for the check."""
    if v.device.type != "cpu":
        return True
    return float(v.amin()) <= (len(layout.rotated) + 1) * _rounding_share(v) * float(v.sum())


def _rounding_squared(v: Tensor, layout: Layout) -> Tensor:
    """Return, for each entry, the v̂ that rotations can leave where the gradient has none.

    A direction that no gradient has, as between two identical units, or among the logits of a
    softmax, whose gradients add up to 0, is 0 only up to rounding once rotated. Divided by its own
    root, rounding would move such a direction as fast as all others. A basis is accurate to a few ε
    (the dtype's precision), so entry (j, k) has a few ε of its column and of its row, and what
    random signs leave of all entries. To be far above both, ε^¾ is used instead; squared::

        ε^1.5 (Σⱼ v̂ + Σₖ v̂ + Σⱼₖ v̂ / √(n₀ n₁))
    """
    num_entries = math.prod(layout.shape[i] for i in layout.rotated)
    left = v.sum(layout.rotated, keepdim=True) / math.sqrt(num_entries)
    for i in layout.rotated:
        left = left + v.sum(i, keepdim=True)
    return left * _rounding_share(v)


def _rounding_share(v: Tensor) -> float:
    return float(torch.finfo(v.dtype).eps ** 1.5)


def learn(g: Tensor, state: State, layout: Layout, coefficients: Coefficients) -> None:
    """Average the gradient's outer products into the factors."""
    update_factors(_along("factor", state, layout), g, beta=coefficients.factor_beta)


def turn(state: State, layout: Layout, *, floor: float) -> None:
    """Refresh the bases, and carry m and v over to the new ones.

    m is rotated exactly. A second moment cannot be; as the bases turn little, v keeps its entries,
    moved with the columns that they belong to.
    """
    before = _along("basis", state, layout)
    for i in layout.rotated:
        Q, order = refreshed(state[f"factor_{i}"], state[f"basis_{i}"], floor=floor)
        state[f"basis_{i}"] = Q.contiguous()
        state["exp_avg_sq"] = state["exp_avg_sq"].index_select(i, order)
    if "exp_avg" in state:
        carried = carry(state["exp_avg"], before, _along("basis", state, layout))
        state["exp_avg"] = carried.contiguous()


def _along(name: str, state: State, layout: Layout) -> list[Tensor | None]:
    """Return a tensor or None for each dimension of the layout."""
    return [state.get(f"{name}_{i}") for i in range(len(layout.shape))]
