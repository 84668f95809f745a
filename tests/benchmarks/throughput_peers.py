"""The peers of ``make bench-runtime``, each a fresh process: the same model, batches and optimizer.

Arguments: "bare", "transformers" or "lightning", then a job's specification as JSON. One thread, as
the job's rank has. Prints one JSON line with the steps per second after the warm-up.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from roadless.service.contract.job.spec import JobSpec
from roadless.worker.data.base import DataSet
from roadless.worker.data.build import build_data
from roadless.worker.data.sampler import global_indices
from roadless.worker.model.build import build_model
from roadless.worker.setup import build_optimizer

WARMUP_STEPS = 50


class Watch:
    """Takes the time once the warm-up is over."""

    def __init__(self) -> None:
        self._steps, self._started = 0, 0.0

    def step(self) -> None:
        self._steps += 1
        if self._steps == WARMUP_STEPS:
            self._started = time.perf_counter()

    def steps_per_second(self) -> float:
        return (self._steps - WARMUP_STEPS) / (time.perf_counter() - self._started)


class WithLoss(nn.Module):
    """A model that returns its loss, as trainers want it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(inputs)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return {"loss": loss}


class Batches(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """The job's own batches, in its order."""

    def __init__(self, spec: JobSpec, data: DataSet, steps: int) -> None:
        self._spec, self._data, self._steps = spec, data, steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        training = self._spec.training
        for step in range(self._steps):
            indices = global_indices(
                step,
                batch_size=training.batch_size,
                num_train=self._data.num_train,
                seed=training.seed,
            )
            batch = self._data.train_batch(indices)
            yield {"inputs": batch.inputs, "labels": batch.targets}


def bare(model: WithLoss, batches: Batches, optimizer: torch.optim.Optimizer, _: int) -> float:
    watch = Watch()
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        model(**batch)["loss"].backward()
        optimizer.step()
        watch.step()
    return watch.steps_per_second()


def transformers(
    model: WithLoss, batches: Batches, optimizer: torch.optim.Optimizer, steps: int
) -> float:
    """Its Trainer with its defaults, but for what would be work that the others do not do."""
    from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: PLC0415  a peer

    watch = Watch()

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=1,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            max_grad_norm=0.0,
            remove_unused_columns=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=batches,
            data_collator=lambda batch: batch[0],
            optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
            callbacks=[Clock()],
        )
        trainer.train()
    return watch.steps_per_second()


def lightning(
    model: WithLoss, batches: Batches, optimizer: torch.optim.Optimizer, steps: int
) -> float:
    """Its Trainer; every step's loss is logged, and nothing is saved."""
    from lightning import Callback, LightningModule, Trainer  # noqa: PLC0415  a peer

    watch = Watch()

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, Tensor]) -> Tensor:
            loss = self.model(**batch)["loss"]
            self.log("train.loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    class Clock(Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            watch.step()

    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            max_steps=steps,
            callbacks=[Clock()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        trainer.fit(Module(), loader)
    return watch.steps_per_second()


def main() -> None:
    name, text = sys.argv[1:]
    torch.set_num_threads(1)
    spec = JobSpec.model_validate_json(text)
    assert spec.budget is not None
    assert spec.budget.max_steps is not None
    data = build_data(spec.data, model=spec.model, task=spec.task)
    model = build_model(spec.model, data=data.description, seed=spec.training.seed)
    optimizer = build_optimizer(spec.optimizer, params=model.parameters())
    steps = spec.budget.max_steps
    batches = Batches(spec, data, steps)
    run = {"bare": bare, "transformers": transformers, "lightning": lightning}[name]
    rate = run(WithLoss(model), batches, optimizer, steps)
    print(json.dumps({"steps_per_second": rate}))


if __name__ == "__main__":
    main()
