"""Decodes images to arrays. Imported only by ranks that need it, since Pillow may be absent.

``pixels.py`` says what one image shows; this module makes those of a column alike.
"""

from typing import NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError

from roadless.worker.data.formats import pixels
from roadless.worker.data.formats.chunk import Chunk, shown
from roadless.worker.data.formats.pixels import NotShowable, Pixels

#: The most pixels of one image; a file of a few bytes can claim more than fit in memory.
_MAX_PIXELS = 64 * 2**20
Image.MAX_IMAGE_PIXELS = _MAX_PIXELS // 2  # Pillow warns at this and refuses at twice as many
#: From 8 bits a sample to 16: 255 becomes 65535.
_TO_DEEP = 257
_WHOLE = f"a whole {' or '.join(pixels.FORMATS)} image"
_SHOWN_BYTES = 16
_LUMA = (299, 587, 114)  # thousandths of red, green and blue


class Decoder:
    """Decodes images alike: the first one determines size, depth and whether they are grey.

    A later one is fitted to it where that loses nothing: grey to colour and 8 bits to 16, and the
    other way where no pixel has a colour, or none more than 8 bits.

    ``size``: height and width to resize to, or None. ``num_channels``: 1 to make all grey, 3 to
    make all RGB, or None.
    """

    def __init__(self, size: tuple[int, int] | None, num_channels: int | None = None) -> None:
        self._resized_to = size
        self._num_channels = num_channels
        self._first: Pixels | None = None

    def decode(self, chunk: Chunk, name: str) -> Pixels:
        """Return uint8 or uint16 of shape (rows, channels, height, width).

        Raises DataInvalid for the first row that is not an image, or unlike the first one.
        """
        return np.stack(
            [self._image(chunk, name, row, value) for row, value in enumerate(chunk.columns[name])]
        )

    def _image(self, chunk: Chunk, name: str, row: int, value: object) -> Pixels:
        if not isinstance(value, bytes):
            _refuse_unencoded(chunk, name, row, value)
        try:
            return self._like_first(pixels.decode(value))
        except NotShowable as error:
            chunk.refuse(row, name, expected=error.expected, seen=error.seen, way_out=error.way_out)
        except UnidentifiedImageError:  # whose message has an address of memory
            _refuse_other_content(chunk, name, row, value)
        except Exception as error:  # Pillow raises a dozen kinds over a broken file
            chunk.refuse(row, name, expected=_WHOLE, seen=str(error) or type(error).__name__)

    def _like_first(self, image: Pixels) -> Pixels:
        if self._num_channels is not None:
            image = _with_channels(image, self._num_channels)
        if self._resized_to is not None:
            image = _resized(image, *self._resized_to)
        if self._first is None:
            self._first = image
        first = self._first
        if image.shape[1:] != first.shape[1:]:
            raise NotShowable(
                expected=f"{_size(first)} pixels like the first image, or an image_size",
                seen=_size(image),
            )
        return _with_depth_of(first, _with_channels_of(first, image))


def _refuse_other_content(chunk: Chunk, name: str, row: int, content: bytes) -> NoReturn:
    seen = f"content that begins with {content[:_SHOWN_BYTES]!r}" if content else "no bytes"
    chunk.refuse(row, name, expected=_WHOLE, seen=seen, way_out="convert it, or leave the row out")


def _refuse_unencoded(chunk: Chunk, name: str, row: int, value: object) -> NoReturn:
    way_out = "leave such rows out"
    if isinstance(value, str | dict):
        way_out = "store the content of the file in the column, not its path or another text"
    if isinstance(value, np.ndarray | list):
        way_out = "name arrays of pixels in `columns`, not as `image`"
    seen = f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else shown(value)
    chunk.refuse(row, name, expected="the bytes of an image", seen=seen, way_out=way_out)


def _resized(image: Pixels, height: int, width: int) -> Pixels:
    """The pixels, resized in the precision of their own depth."""
    return np.stack([_resized_channel(channel, height, width) for channel in image])


def _resized_channel(channel: Pixels, height: int, width: int) -> Pixels:
    # In float32 for 16 bits, whose every number it holds.
    source = Image.fromarray(channel if channel.dtype == np.uint8 else channel.astype(np.float32))
    resized = np.asarray(source.resize((width, height), Image.Resampling.BILINEAR))
    return resized if channel.dtype == np.uint8 else np.rint(resized).astype(channel.dtype)


def _with_channels(image: Pixels, num_channels: int) -> Pixels:
    """Grey from colour by the luma of ITU-R BT.601, as Pillow and torchvision have it."""
    if len(image) == num_channels:
        return image
    if num_channels > 1:
        return np.repeat(image, num_channels, axis=0)
    luma = np.tensordot(np.array(_LUMA), image.astype(np.uint32), axes=1)
    grey: Pixels = ((luma + 500) // 1000).astype(image.dtype)
    return grey[None]


def _with_channels_of(first: Pixels, image: Pixels) -> Pixels:
    if len(image) < len(first):
        return _with_channels(image, len(first))
    if len(image) > len(first):
        if (image != image[:1]).any():
            raise NotShowable(
                expected="a grey image like the first one",
                seen="a colour image",
                way_out="set image_channels to 3 to read grey ones as colour, or to 1 for the "
                "other way",
            )
        return image[:1]
    return image


def _with_depth_of(first: Pixels, image: Pixels) -> Pixels:
    if image.dtype == first.dtype:
        return image
    if first.dtype == np.uint16:
        return image.astype(np.uint16) * np.uint16(_TO_DEEP)
    if (image % _TO_DEEP).any():
        raise NotShowable(
            expected="8 bits a sample like the first image",
            seen="16 bits a sample",
            way_out="convert all to one depth, or put one of 16 bits first",
        )
    return (image // _TO_DEEP).astype(np.uint8)


def _size(image: Pixels) -> str:
    return "x".join(map(str, image.shape[1:]))
