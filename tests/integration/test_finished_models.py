"""Every kind of model and optimizer, as replicas and as shards: what is listed is a finished model.

Each is trained as a job on two ranks, downloaded over HTTP, and evaluated again by a process that
has never seen the training: the loss and every metric equal the curve's point bit for bit (P5).
"""

import json
import subprocess
import sys
from typing import Any

import pytest
from stack import wait_for_end

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.states import Phase

DIGITS = {"kind": "builtin", "name": "digits"}
BYTES = {"kind": "builtin", "name": "python_stdlib_bytes"}
CONVNET = {"kind": "preset", "name": "convnet", "width": 8}
SCHEDULE_FREE = {"name": "adamw_schedulefree", "lr": 0.01, "warmup_steps": 4}

MODELS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "preset", "name": "linear"},
    "mlp": {"kind": "preset", "name": "mlp", "hidden": [16]},
    "convnet": CONVNET,
    "resnet": {"kind": "preset", "name": "resnet", "depths": [1, 1], "width": 8},
    "vit": {"kind": "preset", "name": "vit", "layers": 2, "width": 16, "heads": 2},
    "gpt": {"kind": "preset", "name": "gpt", "layers": 2, "width": 16, "heads": 2, "context": 16},
    "transformers image classifier": {
        "kind": "transformers",
        "auto_class": "AutoModelForImageClassification",
        "config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
    },
    "transformers language model": {
        "kind": "transformers",
        "auto_class": "AutoModelForCausalLM",
        "config": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "context": 16,
    },
}
OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "sgd_schedulefree", "lr": 0.1},
    {"name": "adamw_schedulefree", "inner_momentum": 0.5},
    {"name": "adamw_schedulefree_paper"},
    {"name": "radam_schedulefree"},
    {"name": "adamc_schedulefree_plus", "c_warmup": 2},
    {"name": "schedulefree_wrapper", "base": {"name": "RMSprop", "lr": 1e-3}},
    {"name": "adamw"},
    {"name": "laprop"},
    {"name": "adopt"},
    {"name": "soap", "schedule_free": True, "palm_beta2": True, "precond_schedule": True},
    {"name": "PrecondSchedulePaLMForeachSOAP"},
    {"name": "AdamWScheduleFreeClosure"},
]
STRATEGIES = ("ddp", "fsdp")


def spec_of(
    model: dict[str, Any], *, optimizer: dict[str, Any] = SCHEDULE_FREE, strategy: str
) -> dict[str, Any]:
    is_language = model.get("name") == "gpt" or "CausalLM" in model.get("auto_class", "")
    return {
        "name": "finished",
        "model": model,
        "data": BYTES if is_language else DIGITS,
        "task": "causal_lm" if is_language else "classification",
        "optimizer": optimizer,
        "training": {"batch_size": 16, "seed": 1},
        "parallelism": {"num_workers": 2, "strategy": strategy},
        "budget": {"max_steps": 12},
        "evaluation": {"every_steps": 6, "batch_size": 64, "max_batches": 2},
    }


SPECS = {
    **{
        f"{name}, {strategy}": spec_of(model, strategy=strategy)
        for name, model in MODELS.items()
        for strategy in STRATEGIES
    },
    **{
        f"{optimizer['name']}, {strategy}": spec_of(CONVNET, optimizer=optimizer, strategy=strategy)
        for optimizer in OPTIMIZERS
        for strategy in STRATEGIES
    },
}


@pytest.fixture(scope="module")
def submitted(stack) -> dict[str, str]:
    """All jobs at once: they wait for each other's seats while the first are looked at."""
    with stack.client() as client:
        return {name: client.submit(spec).id for name, spec in SPECS.items()}


@pytest.fixture(scope="module")
def seen_again(stack, submitted, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What one process, which has trained nothing, sees in all the downloads."""
    folders = {name: tmp_path_factory.mktemp("download") for name in submitted}
    with stack.client() as client:
        for name, job_id in submitted.items():
            job = wait_for_end(client, job_id)
            assert job.phase is Phase.SUCCEEDED, f"{name}: {job.message}"
            client.download(client.eval_curve(job_id)[-1].checkpoint_id, folders[name])
    command = [sys.executable, "-m", "roadless.worker.verify", *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(zip(folders, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", SPECS)
def test_a_downloaded_model_scores_what_the_curve_says(client, submitted, seen_again, name):
    first, last = client.eval_curve(submitted[name])
    assert (first.step, last.step) == (6, 12)
    assert last.loss != first.loss
    seen = seen_again[name]
    assert seen["loss"].hex() == last.loss.hex()
    scored = {key: value for key, value in last.metrics.items() if key in seen}
    assert scored
    assert {key: seen[key].hex() for key in scored} == {
        key: value.hex() for key, value in scored.items()
    }
    kept = client.checkpoints(submitted[name], kind=CheckpointKind.EVAL)
    assert last.checkpoint_id in {checkpoint.id for checkpoint in kept}
