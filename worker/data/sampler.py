"""Which samples a step trains on, and which of them a rank takes: functions of seed and step.

No state is kept, so a resumed run, or one on another number of ranks, sees the same samples in the
same steps. A sample's global number is ``epoch * num_train + sample``, which lets a data set
cut or augment differently in every epoch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from roadless.worker.data.base import Batch, Indices, TrainSplit

#: User seeds are below 2**63; this bit makes a second stream that no user's seed can reach.
_RESERVED_BIT = 1 << 63


@dataclass(frozen=True)
class Sampler:
    """``sampler(steps)``: one rank's share of each of these steps' batches.

    Holds no position and draws nothing, so any thread may call it for any steps, also in advance.
    ``batch_size``: of the global batch, a multiple of ``world_size``.
    """

    data: TrainSplit
    batch_size: int
    seed: int
    rank: int
    world_size: int

    def __call__(self, steps: range) -> list[Batch]:
        """Return a batch for each of the steps, in order; ``steps`` is not empty.

        Each has the bits and the alignment that it would have alone: with another alignment a
        library may sum in another order.
        """
        indices = global_indices(
            steps.start,
            batch_size=self.batch_size,
            num_train=self.data.num_train,
            seed=self.seed,
            num_steps=len(steps),
        )
        by_step = indices.reshape(len(steps), self.batch_size)
        mine = rank_slice(by_step, rank=self.rank, world_size=self.world_size)
        samples = self.data.train_batch(mine.reshape(-1))
        return [batch.aligned() for batch in samples.split(mine.shape[1])]


def reserved_seed(seed: int) -> int:
    """Return the seed of the stream that training never uses, for batch-norm statistics of x.

    ``seed``: of the job, in [0, 2**63).
    """
    return seed | _RESERVED_BIT


def global_indices(
    step: int, *, batch_size: int, num_train: int, seed: int, num_steps: int = 1
) -> Indices:
    """Return the global sample numbers of an optimizer step, or of several consecutive ones.

    ``step`` counts from 0; ``batch_size``, ``num_train`` and ``num_steps`` are at least 1; ``seed``
    is in [0, 2**64). Steps follow each other without a gap: a batch that reaches the end of an
    epoch continues in the next one. Returns ``num_steps * batch_size`` numbers, step after step.
    """
    start = step * batch_size
    stop = start + num_steps * batch_size
    epochs = range(start // num_train, (stop - 1) // num_train + 1)
    by_epoch = [
        _epoch(epoch, num_train, seed)[max(0, start - epoch * num_train) : stop - epoch * num_train]
        for epoch in epochs
    ]
    return by_epoch[0] if len(by_epoch) == 1 else np.concatenate(by_epoch)


def rank_slice(indices: Indices, *, rank: int, world_size: int) -> Indices:
    """Return this rank's contiguous share of a step's numbers, or of each row of several steps'.

    All shares are equal, in order of rank.
    """
    share, rest = divmod(indices.shape[-1], world_size)
    assert rest == 0, f"expected world_size to divide {indices.shape[-1]} samples, saw {world_size}"
    return indices[..., rank * share : (rank + 1) * share]


@lru_cache(maxsize=4)
def _epoch(epoch: int, num_train: int, seed: int) -> Indices:
    # Sorting raw words, not Generator.permutation: numpy guarantees only the raw stream.
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_train)
    numbers = epoch * num_train + np.argsort(words, kind="stable").astype(np.int64)
    numbers.setflags(write=False)
    return numbers
