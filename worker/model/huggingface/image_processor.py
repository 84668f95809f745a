"""The image processor that is written beside a classifier of images: what its training did.

That of the model's own folder describes how it was pretrained. Whoever loads the result with that
one would feed it other numbers than it was trained on (huggingface/transformers#13663).
"""

import json
from typing import Any

from roadless.worker.data.base import Description

FILE = "preprocessor_config.json"
_NUM_CHANNELS = (1, 3)
_BILINEAR = 2  # of PIL.Image.Resampling
_HIGHEST_RESIZED = 255


def files_of(data: Description) -> dict[str, bytes]:
    """Return the processor's file by name; nothing for data that are not images.

    It resizes, and does with each channel what the data set did. What it is given must be upright
    and without transparency already, as ``decode`` of the data's ``pixels.py`` makes them. Images
    of 16 bits are not resized: transformers 5.23.0 cannot.
    """
    if data.tokens_per_sample or len(data.input_shape) != 3:
        return {}
    if data.input_shape[0] not in _NUM_CHANNELS:
        return {}
    return {FILE: json.dumps(_config(data), indent=2).encode()}


def _config(data: Description) -> dict[str, Any]:
    num_channels, height, width = data.input_shape
    return {
        # The one that does no more than this in its fixed order; any model may have it.
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True if num_channels == 3 else None,
        "do_resize": data.white <= _HIGHEST_RESIZED,
        "size": {"height": height, "width": width},
        "resample": _BILINEAR,
        **_scaled(data, unit=data.white if data.white and data.mean else 1),
    }


def _scaled(data: Description, *, unit: int) -> dict[str, Any]:
    """``unit``: what a number is divided by before the mean is subtracted, by custom the white."""
    num_channels = data.input_shape[0]
    return {
        "do_rescale": unit != 1,
        "rescale_factor": 1 / unit,
        "do_normalize": bool(data.mean),
        "image_mean": [mean / unit for mean in data.mean] or [0.0] * num_channels,
        "image_std": [deviation / unit for deviation in data.deviation] or [1.0] * num_channels,
    }
