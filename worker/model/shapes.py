"""What models require of the data's shapes, and the errors when they do not fit."""

from roadless.worker.data.base import Description
from roadless.worker.errors import ModelInvalid

#: Of images: grey, RGB, and RGB with alpha.
_CHANNELS = (1, 3, 4)


def image_shape(data: Description, *, model: str) -> tuple[int, int, int]:
    """Return channels, height and width; raise ModelInvalid for samples that are not images."""
    require_numbers(data, model=model)
    if len(data.input_shape) != 3:
        raise ModelInvalid(
            f"expected images of shape (channels, height, width) for {model}, saw samples of shape "
            f"{data.input_shape}"
        )
    channels, height, width = data.input_shape
    if width in _CHANNELS and channels == height > max(_CHANNELS):
        raise ModelInvalid(
            f"expected images of shape (channels, height, width) for {model}, saw samples of shape "
            f"{data.input_shape}, with the channels last; transpose them, or store them as uint8, "
            "which is recognised"
        )
    return channels, height, width


def require_numbers(data: Description, *, model: str) -> None:
    """Raise ModelInvalid for samples of tokens, which only some models read."""
    if data.tokens_per_sample:
        raise ModelInvalid(
            f"expected samples of numbers for {model}, saw {data.tokens_per_sample} tokens a sample"
        )


def require_tokens(data: Description, *, context: int, model: str) -> None:
    """Raise ModelInvalid for samples without tokens, or with more of them than ``context``."""
    if not 0 < data.tokens_per_sample <= context:
        raise ModelInvalid(
            f"expected 1 to {context} tokens a sample for {model}, saw {data.tokens_per_sample}"
        )
