"""SOAP in float64 straight from the paper: one matrix, every line in view, nothing of ours.

Momentum is kept in the space of the parameter and rotated anew in each step, as in the paper's
algorithm 3. The basis is not sorted: QR takes its columns in the order of their eigenvalues and
they go back to their places.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class DirectSOAP:
    """The one-matrix optimizer; ``lr`` and all else constant."""

    W: Tensor
    lr: float
    beta1: float
    beta2: float
    shampoo_beta: float
    eps: float
    decay: float
    frequency: int
    t: int = -1
    largest: float = 0.0  #: element of a direction so far
    M: Tensor = field(init=False)
    V: Tensor = field(init=False)
    L: Tensor = field(init=False)
    R: Tensor = field(init=False)

    def step(self, G: Tensor) -> None:
        self.t += 1
        if self.t == 0:
            self.L, self.R = G @ G.T, G.T @ G
            self.QL, self.QR = torch.linalg.eigh(self.L)[1], torch.linalg.eigh(self.R)[1]
            self.M, self.V = torch.zeros_like(G), torch.zeros_like(G)
            return
        self.M = self.average(self.M, G, self.beta1, self.t)
        rotated = self.QL.T @ G @ self.QR
        self.V = self.average(self.V, rotated**2, self.beta2, self.t)
        N = (self.QL.T @ self.M @ self.QR) / self.V.sqrt().clamp(min=self.eps)
        self.largest = max(self.largest, float(N.abs().max()))
        self.W = self.W * (1 - self.lr * self.decay) - self.lr * self.QL @ N @ self.QR.T
        self.L = self.average(self.L, G @ G.T, self.shampoo_beta, self.t + 1)
        self.R = self.average(self.R, G.T @ G, self.shampoo_beta, self.t + 1)
        if self.t % self.frequency == 0:
            self.QL, self.QR = self.turned(self.L, self.QL), self.turned(self.R, self.QR)

    @staticmethod
    def average(old: Tensor, new: Tensor, beta: float, t: int) -> Tensor:
        """The weighted mean in which the s-th of t values has weight beta^(t-s)."""
        before = sum(beta**s for s in range(1, t))
        return (before * old + new) / (before + 1)

    def turned(self, L: Tensor, Q: Tensor) -> Tensor:
        eigenvalues = (Q.T @ L @ Q).diagonal()
        shift = max(self.eps, 64 * len(L) * 2.0**-52) * eigenvalues.abs().max()
        order = eigenvalues.argsort(descending=True)
        columns = (L + shift * torch.eye(len(L), dtype=L.dtype)) @ Q
        turned = torch.empty_like(Q)
        turned[:, order] = torch.linalg.qr(columns[:, order])[0]
        return turned
