"""Encoded images to arrays. Imported by ranks that need it: Pillow may be absent elsewhere."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from roadless.worker.data.formats.chunk import Chunk, shown

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_GREY_MODES = ("1", "L")
#: What one image may unpack to; a file of a few bytes can claim to be larger than the memory.
_MAX_PIXELS = 64 * 2**20
Image.MAX_IMAGE_PIXELS = _MAX_PIXELS // 2  # Pillow warns at this and refuses at twice as many


class Decoder:
    """Decodes images alike: the first one says whether they are grey, and how large.

    ``size``: height and width to resize to, or None.
    """

    def __init__(self, size: tuple[int, int] | None) -> None:
        self._resized_to = size
        self._mode: str | None = None
        self._first_size: tuple[int, ...] | None = None

    def decode(self, chunk: Chunk, name: str) -> NDArray[np.uint8]:
        """Return uint8 of shape (rows, channels, height, width).

        Raises DataInvalid for the first row that is no image, or unlike the first one.
        """
        return np.stack(
            [self._image(chunk, name, row, value) for row, value in enumerate(chunk.columns[name])]
        )

    def _image(self, chunk: Chunk, name: str, row: int, value: object) -> NDArray[np.uint8]:
        if not isinstance(value, bytes):
            chunk.refuse(row, name, expected="the bytes of an image", seen=shown(value))
        try:
            with Image.open(io.BytesIO(value), formats=_FORMATS) as image:
                pixels = self._pixels(image)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
            chunk.refuse(row, name, expected=f"a {' or '.join(_FORMATS)} image", seen=str(error))
        self._first_size = self._first_size or pixels.shape[1:]
        if pixels.shape[1:] != self._first_size:
            expected = f"{_shown(self._first_size)} pixels like the first image, or an image_size"
            chunk.refuse(row, name, expected=expected, seen=_shown(pixels.shape[1:]))
        return pixels

    def _pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        is_grey = image.mode in _GREY_MODES
        self._mode = self._mode or ("L" if is_grey else "RGB")
        if self._mode == "L" and not is_grey:
            raise ValueError("a colour image after a grey first one")
        alike = image.convert(self._mode)
        if self._resized_to is not None:
            height, width = self._resized_to
            alike = alike.resize((width, height), Image.Resampling.BILINEAR)
        array = np.asarray(alike, dtype=np.uint8)
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _shown(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
