"""The models that a job can name."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.contract.base import Spec


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


class GptPreset(Spec):
    """A decoder-only transformer over bytes."""

    kind: Literal["preset"]
    name: Literal["gpt"]
    layers: int = Field(2, ge=1, le=128)
    width: int = Field(96, ge=8, le=16384, description="must be a multiple of 2 * heads")
    heads: int = Field(4, ge=1, le=256)
    context: int = Field(64, ge=2, le=65536, description="tokens per sample")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"expected width to be a multiple of 2 * heads = {2 * self.heads}, saw {self.width}"
            )
        return self


ModelSpec = Annotated[MlpPreset | ConvnetPreset | GptPreset, Field(discriminator="name")]
