"""A rank's shares of the global batches: samples by the order of the job, as the rank trains on."""

from dataclasses import dataclass

from worker.data.base import Batch, DataSet
from worker.data.order import global_indices, rank_slice


@dataclass(frozen=True)
class Shares:
    """``shares(steps)``: one rank's part of each of these steps' batches.

    Holds no position and draws nothing, so it may be called for any steps, ahead and by any thread.
    ``batch_size``: of the global batch, a multiple of ``world_size``.
    """

    data: DataSet
    batch_size: int
    seed: int
    rank: int
    world_size: int

    def __call__(self, steps: range) -> list[Batch]:
        """Return a batch for each of the steps, in order; ``steps`` is not empty.

        Bit for bit what each would be by itself, and where each would be: a library may sum in
        another order where memory is aligned otherwise.
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
