"""One small specification of every kind of model that can be trained on built-in data."""

from typing import Any

from pydantic import TypeAdapter

from roadless.service.contract.job.models import ModelSpec
from roadless.worker.data.base import Description

DIGITS = Description((1, 8, 8), 10, tokens_per_sample=0, fingerprint="")
BYTES = Description((16,), 256, tokens_per_sample=16, fingerprint="", bytes_per_token=1.0)

PRESETS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"hidden": [6]},
    "convnet": {"width": 2},
    "resnet": {"depths": [1, 1], "width": 4},
    "resnet of bottlenecks": {"name": "resnet", "stem": "large", "block": "bottleneck", "width": 4},
    "vit": {"layers": 2, "width": 16, "heads": 2},
    "gpt": {"width": 32, "heads": 2, "context": 16},
    "gpt of two heads": {"name": "gpt", "width": 32, "heads": 2, "context": 16, "tied_head": False},
}
GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}


def transformers_model(config: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """The specification of a causal language model, or of what ``changes`` say."""
    default = {"kind": "transformers", "auto_class": "AutoModelForCausalLM", "context": 16}
    return {**default, "config": config, **changes}


MODELS: dict[str, dict[str, Any]] = {
    **{name: {"kind": "preset", "name": name, **fields} for name, fields in PRESETS.items()},
    "transformers gpt2": transformers_model(GPT2),
    "transformers resnet": transformers_model(
        RESNET, auto_class="AutoModelForImageClassification", context=None
    ),
}


def parse(model: dict[str, Any]) -> ModelSpec:
    parsed: ModelSpec = TypeAdapter(ModelSpec).validate_python(model)
    return parsed


def is_language_model(name: str) -> bool:
    return "gpt" in name


def data_of(name: str) -> Description:
    """What the built-in data of this model looks like."""
    return BYTES if is_language_model(name) else DIGITS


def job_of(name: str) -> dict[str, Any]:
    """The parts of a job that go with this model."""
    if is_language_model(name):
        data = {"kind": "builtin", "name": "python_stdlib_bytes"}
        return {"model": MODELS[name], "data": data, "task": "causal_lm"}
    data = {"kind": "builtin", "name": "digits"}
    return {"model": MODELS[name], "data": data, "task": "classification"}
