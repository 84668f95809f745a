"""A transformers configuration from a job's specification, completed from the data."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from roadless.service.contract.job.models import TransformersModel
from roadless.worker.data.base import Description
from roadless.worker.errors import ModelInvalid

#: Fields that fetch or run code, or choose what the job's precision chooses.
_REFUSED = frozenset(
    {
        *{"auto_map", "attn_implementation", "experts_implementation", "quantization_config"},
        *{"use_kernels", "kernel_config", "dtype", "torch_dtype", "name_or_path"},
    }
)
#: Implementations of attention in torch; a longer name would be a kernel to download.
_ATTENTION = frozenset({None, "eager", "sdpa"})
#: With it a mixture of experts of transformers (5.23) adds ``router_aux_loss_coef`` times a loss of
#: its own to the one that it computes; without it none does, whatever the coefficient.
_ROUTER_LOGITS = "output_router_logits"
_TASK_LOSS = (
    "the loss is that of the task alone, and what a model would add to it is not trained on; leave "
    "the field out, or balance the experts in a model of your own"
)
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def new_config(spec: TransformersModel, *, data: Description) -> PreTrainedConfig:
    """Return the configuration of a fresh model; raise ModelInvalid for one that makes no sense.

    Number of labels, vocabulary, channels and image size follow from the data where left out.
    """
    fields = dict(spec.config or {})
    model_type = fields.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ModelInvalid(f"expected a model_type of transformers, saw {model_type!r}")
    default = _made(model_type, {})
    _require_known(fields, default, model_type=model_type)
    _require_no_loss(fields)
    return _made(model_type, {**_from_data(spec, data, default, given=fields), **fields})


def require_plain(config: PreTrainedConfig) -> None:
    """Raise ModelInvalid for a configuration that asks for quantised weights or foreign kernels."""
    for one in _with_parts(config):
        if getattr(one, "quantization_config", None) is not None:
            raise ModelInvalid("expected weights in plain floating point, saw quantised ones")
        if one._attn_implementation not in _ATTENTION:
            raise ModelInvalid(
                f"expected attention of torch itself, saw {one._attn_implementation!r}"
            )


def require_task_loss(config: PreTrainedConfig) -> None:
    """Raise ModelInvalid for a saved configuration whose model would add to the loss by itself."""
    for one in _with_parts(config):
        if getattr(one, _ROUTER_LOGITS, False):
            raise ModelInvalid(
                f"expected {_ROUTER_LOGITS} = false in the folder's config.json, saw true: "
                f"{_TASK_LOSS}"
            )


def require_positions(model: PreTrainedModel, *, spec: TransformersModel) -> None:
    """Raise ModelInvalid where a table of positions is shorter than the context.

    RoBERTa and its kin count positions from behind the padding's own, so that a table of
    max_position_embeddings has two positions fewer (transformers 5.23).
    """
    for name, module in model.named_modules():
        is_table = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if not (is_table and spec.context and module.padding_idx is not None):
            continue
        num_positions = module.num_embeddings - module.padding_idx - 1
        if num_positions < spec.context:
            raise ModelInvalid(
                f"expected at least context = {spec.context} positions, saw {num_positions}: of "
                f"{module.num_embeddings} in {name} the first {module.padding_idx + 1} are not for "
                "tokens; raise max_position_embeddings, or lower context"
            )


def require_fit(config: PreTrainedConfig, *, spec: TransformersModel, data: Description) -> None:
    """Raise ModelInvalid where labels, vocabulary or positions do not fit the data."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if spec.context and isinstance(positions, int) and 0 < positions < spec.context:
        raise ModelInvalid(f"expected at least context = {spec.context} positions, saw {positions}")
    if _is_language_model(spec):
        vocabulary = getattr(text, "vocab_size", 0)
        if vocabulary < data.num_classes:
            raise ModelInvalid(
                f"expected a vocabulary of at least {data.num_classes}, saw {vocabulary}"
            )
    elif config.num_labels != data.num_outputs:
        raise ModelInvalid(f"expected num_labels = {data.num_outputs}, saw {config.num_labels}")


def _is_language_model(spec: TransformersModel) -> bool:
    return spec.auto_class == "AutoModelForCausalLM"


def _made(model_type: str, fields: Mapping[str, Any]) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[model_type](**fields)
    except Exception as error:  # each architecture checks its fields in its own way
        raise ModelInvalid(f"{model_type}: {type(error).__name__}: {error}") from error
    return config


def _require_known(
    fields: Mapping[str, Any], default: PreTrainedConfig, *, model_type: str
) -> None:
    for name, _ in _items(fields):
        if name in _REFUSED or name.startswith("_"):
            raise ModelInvalid(f"expected no field {name!r} in the config of a job, saw one")
    for name in fields:
        if not hasattr(default, name) or callable(getattr(default, name)):
            raise ModelInvalid(f"expected fields of {model_type}, saw {name!r}, which is none")


def _require_no_loss(value: Any) -> None:
    """Refuse what a job asks for in vain, such as ``router_aux_loss_coef``, however deep."""
    for name, number in _items(value):
        is_asked = isinstance(number, int | float) and number != 0
        if is_asked and (name == _ROUTER_LOGITS or "_loss" in name):
            raise ModelInvalid(f"expected no {name} in the config, saw {number}: {_TASK_LOSS}")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _items(part)


def _from_data(
    spec: TransformersModel,
    data: Description,
    default: PreTrainedConfig,
    *,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of this architecture that the data determines."""
    found: dict[str, Any] = {}
    if _is_language_model(spec):
        found["vocab_size"] = data.num_classes
        vocabulary = given.get("vocab_size", data.num_classes)
        found |= _without_foreign_tokens(default, vocabulary=vocabulary)
    elif not {"id2label", "label2id"} & given.keys():
        found["num_labels"] = data.num_outputs
    if not data.tokens_per_sample and len(data.input_shape) == 3:
        channels, height, width = data.input_shape
        found |= {"num_channels": channels, "image_size": height if height == width else None}
    return {
        name: value
        for name, value in found.items()
        if hasattr(default, name) and not (name == "image_size" and value is None)
    }


def _without_foreign_tokens(default: PreTrainedConfig, *, vocabulary: Any) -> dict[str, None]:
    """Default special tokens of an architecture refer to its own vocabulary, not to ours."""
    numbers = {name: getattr(default, name, None) for name in _SPECIAL_TOKENS}
    return {
        name: None
        for name, number in numbers.items()
        if isinstance(number, int) and isinstance(vocabulary, int) and number >= vocabulary
    }


def _with_parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            yield from _with_parts(part)
