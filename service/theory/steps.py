"""The steps of a job as the theory sees them: the rate and the gradient norm of each.

A long job has too many steps for one answer. Past MAX_BLOCKS steps, consecutive steps are summed in
blocks; the sums that the bound consists of do not change. The last blocks before a horizon are
expanded again, since most of the last iterate's term, a logarithm, comes from there. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: The most blocks of a job; up to this many steps nothing is grouped.
MAX_BLOCKS = 20_000
#: A block this many blocks before a horizon is one piece; nearer ones are expanded into more.
FINENESS = 512


class Steps(NamedTuple):
    """Consecutive steps, as a bound needs them: rates and gradient norms, shape (n,)."""

    eta: Floats
    grad_norms: Floats


@dataclass(frozen=True)
class Blocks:
    """All steps of a job; block i holds steps i * size + 1 to (i + 1) * size, the last one fewer.

    ``eta``, ``noise`` and ``norm_square`` are sums over a block of η, η²G² and G².
    """

    num_steps: int
    size: int
    eta: Floats
    noise: Floats
    norm_square: Floats

    @property
    def lengths(self) -> Floats:
        """Steps in each block."""
        return _lengths(self.num_steps, self.size)

    def grad_norm(self, *, last_share: float = 1.0) -> float:
        """Return the root mean square of the gradient norms over that share of the steps."""
        first = min(int((1 - last_share) * self.eta.size), self.eta.size - 1)
        return float(np.sqrt(self.norm_square[first:].sum() / self.lengths[first:].sum()))

    def with_even_norms(self) -> Self:
        """Return the same steps, each with the root mean square of all gradient norms."""
        square = self.grad_norm() ** 2
        lengths = self.lengths
        noise = self.eta**2 / lengths * square
        return replace(self, noise=noise, norm_square=square * lengths)

    def at_rates(self, eta: Floats) -> Self:
        """Return the same steps and norms at other rates, one for each block."""
        return replace(self, eta=eta * self.lengths, noise=eta**2 * self.norm_square)

    def going_on(self, num_steps: int, *, eta: Floats, grad_norm: float) -> Self:
        """Return these steps and further ones up to ``num_steps``, all of one gradient norm.

        ``eta``: a rate for each block of ``num_steps`` steps; those of steps taken are not used.
        """
        more = _lengths(num_steps, self.size)
        more[: self.eta.size] -= self.lengths
        return replace(
            self,
            num_steps=num_steps,
            eta=_after(self.eta, eta * more),
            noise=_after(self.noise, (eta * grad_norm) ** 2 * more),
            norm_square=_after(self.norm_square, grad_norm**2 * more),
        )

    def coarser(self, times: int) -> Self:
        """Return the same steps in blocks ``times`` as large."""
        first = np.arange(0, self.eta.size, times)
        sums = (self.eta, self.noise, self.norm_square)
        eta, noise, norm_square = (np.add.reduceat(one, first) for one in sums)
        return replace(self, size=self.size * times, eta=eta, noise=noise, norm_square=norm_square)

    def even(self) -> Steps:
        """Return one step per block, the last one as if it were as long as the others."""
        scale = self.size / self.lengths
        return _steps(self.eta * scale, self.noise * scale)

    def until(self, horizon: int) -> Steps:
        """Return the first ``horizon`` steps, 1 to ``num_steps``, the last ones one by one."""
        assert 1 <= horizon <= self.num_steps, f"expected 1 to {self.num_steps}, saw {horizon}"
        whole, rest = divmod(horizon, self.size)
        pieces = _pieces(whole, self.size)

        def spread(sums: Floats) -> Floats:
            last = sums[whole : whole + 1] / self.lengths[whole : whole + 1]
            return np.concatenate([np.repeat(sums[:whole] / pieces, pieces), np.repeat(last, rest)])

        return _steps(spread(self.eta), spread(self.noise))


def _steps(eta: Floats, noise: Floats) -> Steps:
    norms = np.divide(np.sqrt(noise), eta, out=np.zeros_like(eta), where=eta > 0)
    return Steps(eta, norms)


def _lengths(num_steps: int, size: int) -> Floats:
    ends = np.minimum(np.arange(size, num_steps + size, size), num_steps)
    return np.diff(ends, prepend=0).astype(np.float64)


def _after(sums: Floats, more: Floats) -> Floats:
    return np.asarray(more + np.concatenate([sums, np.zeros(more.size - sums.size)]))


def _pieces(num_blocks: int, size: int) -> Ints:
    """Into how many equal pieces each block is cut: more near the horizon, at most one per step."""
    ahead = np.arange(num_blocks)[::-1]
    pieces: Ints = np.clip(FINENESS // np.maximum(ahead, 1), 1, size)
    pieces[ahead == 0] = size
    return pieces


def block_size(num_steps: int) -> int:
    """Steps per block, so that there are at most MAX_BLOCKS of them."""
    return -(-num_steps // MAX_BLOCKS)


def blocks_of(parts: Iterable[Steps], *, num_steps: int) -> Blocks:
    """Sum the steps 1 to ``num_steps``, at least 1, which come in parts of any length."""
    size = block_size(num_steps)
    eta, noise, norm_square = sums = np.zeros((3, -(-num_steps // size)))
    done = 0
    for part in parts:
        block = np.arange(done, done + part.eta.size) // size
        terms = (part.eta, (part.eta * part.grad_norms) ** 2, part.grad_norms**2)
        for total, term in zip(sums, terms, strict=True):
            np.add.at(total, block, term)
        done += part.eta.size
    assert done == num_steps, f"expected {num_steps} steps, saw {done}"
    return Blocks(num_steps, size, eta, noise, norm_square)
