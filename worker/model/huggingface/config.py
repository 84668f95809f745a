"""A transformers configuration from a job's specification, completed by what the data decides."""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

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
#: Kinds of attention that torch has; a longer name would be a kernel to download.
_ATTENTION = frozenset({None, "eager", "sdpa"})
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


def require_fit(config: PreTrainedConfig, *, spec: TransformersModel, data: Description) -> None:
    """Raise ModelInvalid where labels, vocabulary or positions do not reach for the data."""
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
    for name in _names(fields):
        if name in _REFUSED or name.startswith("_"):
            raise ModelInvalid(f"expected no field {name!r} in the config of a job, saw one")
    for name in fields:
        if not hasattr(default, name) or callable(getattr(default, name)):
            raise ModelInvalid(f"expected fields of {model_type}, saw {name!r}, which is none")


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _names(item)
    if isinstance(value, list):
        for item in value:
            yield from _names(item)


def _from_data(
    spec: TransformersModel,
    data: Description,
    default: PreTrainedConfig,
    *,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """What the data decides, of the fields that this architecture has."""
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
    """Special tokens that an architecture has by default lie in its own vocabulary, not in ours."""
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
