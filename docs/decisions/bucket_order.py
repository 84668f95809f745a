"""Measures record 0007: does a repeated iteration give the same gradients, to the last bit?

Run ``.venv/bin/python docs/decisions/bucket_order.py``; takes half a minute on two cores.
"""

import os
import sys
from multiprocessing import get_context

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from roadless.service.contract.job.models import ConvnetPreset
from roadless.worker.data.builtin.digits import Digits
from roadless.worker.data.sampler import global_indices, rank_slice
from roadless.worker.model.build import build_model

_SPEC = ConvnetPreset(kind="preset", name="convnet", width=48)


def rank_main(rank: int, world_size: int, find_unused: bool, port: int) -> None:
    """Compute the gradients of one batch twice; rank 0 prints how many elements differ."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    data = Digits()
    model = build_model(_SPEC, data=data.description, seed=3)
    wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
    indices = global_indices(0, batch_size=48, num_train=data.num_train, seed=3)
    batch = data.train_batch(rank_slice(indices, rank=rank, world_size=world_size))
    first, second = (_gradients(wrapped, batch.inputs, batch.targets) for _ in range(2))
    if rank == 0:
        differ = int((first != second).sum())
        said = f"{world_size} ranks, find_unused_parameters={find_unused}: {differ} of"
        sys.stdout.write(f"{said} {first.numel()} gradient elements differ\n")
        sys.stdout.flush()
    os._exit(0)


def _gradients(model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def main() -> None:
    """Try two and three ranks, three of them both ways."""
    for port, case in enumerate([(2, False), (3, False), (3, True)], start=29700):
        ranks = [
            get_context("spawn").Process(target=rank_main, args=(rank, *case, port))
            for rank in range(case[0])
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()


if __name__ == "__main__":
    main()
