"""The models that a job can name: presets, transformers, one of our checkpoints, an entry point."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from roadless.service.contract.base import Spec, UnionOfUnions
from roadless.service.contract.ids import CHECKPOINT_ID_PATTERN, WHEEL_ID_PATTERN
from roadless.service.contract.job.tasks import Task

MAX_OBJECT_BYTES = 65_536
MAX_CONTEXT = 1_048_576


def _bounded_object(value: dict[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"expected JSON, saw: {error}") from error
    if len(text) > MAX_OBJECT_BYTES:
        raise ValueError(f"expected at most {MAX_OBJECT_BYTES} bytes of JSON, saw {len(text)}")
    return value


#: Free fields, which third-party code checks; bounded here, so that a specification stays small.
JsonObject = Annotated[dict[str, Any], AfterValidator(_bounded_object)]
#: A folder on the training nodes. Checked there: only nodes know what their operator allows.
NodePath = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")]

# ---- presets ------------------------------------------------------------------------------------


class LinearPreset(Spec):
    """One linear layer over the flattened sample: logistic or linear regression."""

    kind: Literal["preset"]
    name: Literal["linear"]


class MlpPreset(Spec):
    """A multi-layer perceptron: flatten, then ``hidden`` layers with ReLU."""

    kind: Literal["preset"]
    name: Literal["mlp"]
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field((64,), max_length=32)


class ConvnetPreset(Spec):
    """Two blocks of convolution, batch norm and ReLU, then a linear head over the mean."""

    kind: Literal["preset"]
    name: Literal["convnet"]
    width: int = Field(32, ge=1, le=4096, description="channels of the first block")


class ResnetPreset(Spec):
    """A residual network with batch norm; by default ResNet-20 for small images.

    ResNet-18 is ``depths`` 2, 2, 2, 2 with ``width`` 64 and the large stem; ResNet-50 is 3, 4, 6, 3
    with bottlenecks.
    """

    kind: Literal["preset"]
    name: Literal["resnet"]
    stem: Literal["small", "large"] = Field(
        "small", description="small: 3x3; large: 7x7 with stride 2 and pooling, for large images"
    )
    block: Literal["basic", "bottleneck"] = "basic"
    depths: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(
        (3, 3, 3), min_length=1, max_length=8, description="blocks of each stage"
    )
    width: int = Field(
        16, ge=1, le=4096, description="channels of the first stage; each later one doubles them"
    )


class VitPreset(Spec):
    """A vision transformer: patches, learned positions, a class token, pre-norm blocks."""

    kind: Literal["preset"]
    name: Literal["vit"]
    patch: int = Field(4, ge=1, le=256, description="pixels per side; must divide height and width")
    layers: int = Field(4, ge=1, le=128)
    width: int = Field(64, ge=8, le=16384, description="must be a multiple of heads")
    heads: int = Field(4, ge=1, le=256)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"expected width to be a multiple of heads = {self.heads}, saw {self.width}"
            )
        return self


#: The documented sizes of ``gpt``; names are parameters with GPT-2's vocabulary of 50,257.
GPT_SIZES: dict[str, dict[str, int]] = {
    "30M": {"layers": 6, "width": 384, "heads": 6},
    "51M": {"layers": 8, "width": 512, "heads": 8},
    "124M": {"layers": 12, "width": 768, "heads": 12},
    "350M": {"layers": 24, "width": 1024, "heads": 16},
}
GPT_SIZE_CONTEXT = 1024


class GptPreset(Spec):
    """A decoder-only transformer: rotary positions, RMS norm, no biases."""

    kind: Literal["preset"]
    name: Literal["gpt"]
    size: Literal["30M", "51M", "124M", "350M"] | None = Field(
        None, description="a documented size: sets layers, width, heads and a context of 1024"
    )
    layers: int = Field(2, ge=1, le=128)
    width: int = Field(96, ge=8, le=16384, description="must be a multiple of 2 * heads")
    heads: int = Field(4, ge=1, le=256)
    context: int = Field(64, ge=2, le=65536, description="tokens per sample")
    tied_head: bool = Field(True, description="use the embedding as the head too")
    vocabulary_multiple: int = Field(
        64, ge=1, le=4096, description="pad embedding rows to a multiple of this, for speed"
    )

    @model_validator(mode="before")
    @classmethod
    def _size_is_written_out(cls, value: Any) -> Any:
        size = GPT_SIZES.get(str(value.get("size"))) if isinstance(value, dict) else None
        if size is None:
            return value
        for field, number in size.items():
            if value.get(field, number) != number:
                raise ValueError(
                    f"expected {field} = {number} with size {value['size']!r}, saw {value[field]!r}"
                )
        return {"context": GPT_SIZE_CONTEXT, **value, **size}

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"expected width to be a multiple of 2 * heads = {2 * self.heads}, saw {self.width}"
            )
        return self


PresetSpec = Annotated[
    LinearPreset | MlpPreset | ConvnetPreset | ResnetPreset | VitPreset | GptPreset,
    Field(discriminator="name"),
]

# ---- third-party models -------------------------------------------------------------------------

AutoClass = Literal[
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModelForSequenceClassification",
    "AutoModelForAudioClassification",
    "AutoModelForVideoClassification",
]


class TransformersModel(Spec):
    """A model of the transformers library, from exactly one of config, pretrained and hub_id.

    Code from a folder or a hub is never run, and weights are read from safetensors only. An eval
    checkpoint is a folder that ``from_pretrained`` loads.
    """

    kind: Literal["transformers"]
    auto_class: AutoClass
    config: JsonObject | None = Field(
        None,
        description="model_type and any of its fields; those that the data decides may be omitted",
    )
    pretrained: NodePath | None = Field(
        None, description="a saved model below one of the runner's ROADLESS_MODEL_ROOTS"
    )
    hub_id: str | None = Field(
        None,
        max_length=200,
        pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$",
        description="a model on the hub, where the operator allows it",
    )
    revision: str | None = Field(
        None, max_length=200, pattern=r"^[\w][\w./-]*$", description="of hub_id; null: main"
    )
    tokenizer: NodePath | None = Field(
        None,
        description="a tokenizer's folder, below the same roots; null: the model's own, if any",
    )
    context: int | None = Field(
        None, ge=2, le=MAX_CONTEXT, description="tokens per sample; needed for causal_lm"
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        sources = [name for name in ("config", "pretrained", "hub_id") if getattr(self, name)]
        if len(sources) != 1:
            raise ValueError(
                "expected exactly one of config, pretrained and hub_id, saw "
                f"{' and '.join(sources) or 'none'}"
            )
        if self.config and not isinstance(self.config.get("model_type"), str):
            raise ValueError("expected config.model_type, the name of an architecture, saw none")
        if self.revision and not self.hub_id:
            raise ValueError("expected revision with hub_id only, saw it without")
        return self


class EntryPointModel(Spec):
    """A model that a package makes, one on the training nodes or one uploaded as a wheel.

    From packages on the nodes, only factories that their operator lists are called; from a wheel
    any, where wheels are allowed.

    Called as ``factory(input_shape=..., num_outputs=..., **arguments)``; returns a torch module
    that maps a batch of inputs to logits, or to predictions in regression.
    """

    kind: Literal["entry_point"]
    factory: str = Field(
        max_length=255,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="package.module:function",
    )
    arguments: JsonObject = {}
    context: int | None = Field(
        None, ge=2, le=MAX_CONTEXT, description="tokens per sample; needed for causal_lm"
    )
    wheel: str | None = Field(
        None,
        pattern=WHEEL_ID_PATTERN,
        description="an uploaded wheel with the package; null: a package installed on the nodes",
    )
    wheel_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="of the wheel; the service fills it in"
    )

    @model_validator(mode="after")
    def _hash_is_of_a_wheel(self) -> Self:
        if self.wheel_sha256 and not self.wheel:
            raise ValueError("expected wheel_sha256 with wheel only, saw it without")
        return self


ArchitectureSpec = Annotated[
    PresetSpec | TransformersModel | EntryPointModel,
    Field(discriminator="kind"),
    UnionOfUnions(),
]


class CheckpointModel(Spec):
    """Start from the weights of one of the project's eval checkpoints, with a fresh optimizer."""

    kind: Literal["checkpoint"]
    checkpoint_id: str = Field(pattern=CHECKPOINT_ID_PATTERN)
    architecture: ArchitectureSpec | None = Field(
        None, description="the checkpoint's model; the service fills it in"
    )


ModelSpec = Annotated[
    PresetSpec | TransformersModel | CheckpointModel | EntryPointModel,
    Field(discriminator="kind"),
    UnionOfUnions(),
]

# ---- what a model can do ------------------------------------------------------------------------

_ANY: frozenset[Task] = frozenset({"classification", "regression", "causal_lm"})
_SCORES: frozenset[Task] = frozenset({"classification", "regression"})
_TOKENS: frozenset[Task] = frozenset({"causal_lm"})


def tasks_of(model: ModelSpec) -> frozenset[Task]:
    """Return the tasks that the model can learn, as far as its specification tells."""
    match model:
        case GptPreset() | TransformersModel(auto_class="AutoModelForCausalLM"):
            return _TOKENS
        case EntryPointModel() | CheckpointModel(architecture=None):
            return _ANY
        case CheckpointModel(architecture=architecture) if architecture:
            return tasks_of(architecture)
        case _:
            return _SCORES


def context_of(model: ModelSpec) -> int | None:
    """Return the tokens per sample that the model is trained on; None if it does not say."""
    match model:
        case CheckpointModel(architecture=architecture):
            return context_of(architecture) if architecture else None
        case GptPreset() | TransformersModel() | EntryPointModel():
            return model.context
        case _:
            return None


def needs_context(model: ModelSpec) -> bool:
    """Return whether a language model's specification lacks the tokens per sample."""
    return isinstance(model, TransformersModel | EntryPointModel) and model.context is None


def wheel_of(model: ModelSpec) -> EntryPointModel | None:
    """Return the part of the specification that names a wheel, if one does."""
    match model:
        case CheckpointModel(architecture=EntryPointModel() as found):
            return found if found.wheel else None
        case EntryPointModel():
            return model if model.wheel else None
        case _:
            return None


def label_of(model: ModelSpec) -> str:
    """Return the model's name in messages: the preset's, or the kind of any other."""
    return str(getattr(model, "name", model.kind))
