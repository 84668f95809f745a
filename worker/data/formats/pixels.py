"""An encoded image as a viewer shows it: upright, opaque, grey or RGB, and at its own depth.

Written for Pillow 13.0.0, whose ``convert`` clips 16-bit grey to white (python-pillow/Pillow#2574),
drops the alpha channel, and leaves the turn that a camera noted to the caller.
"""

import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

#: uint8 or uint16; the highest number of its type is white, or full colour.
Pixels = NDArray[Any]

_GREY = ("1", "L", "LA", "La")
_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
_DEEP_RAW = re.compile(r"(?P<bands>.+);16(?P<order>[BLN])")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF 6.0
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


class NotShowable(Exception):
    """An image that has no one way to be shown, or none without loss."""

    def __init__(self, *, expected: str, seen: str, way_out: str = "") -> None:
        super().__init__(f"expected {expected}, saw {seen}")
        self.expected = expected
        self.seen = seen
        self.way_out = way_out


def decode(content: bytes) -> Pixels:
    """Return the pixels of a file, of shape (channels, height, width): 1 channel if grey, else 3.

    Orientation is applied; transparent parts show white; palettes, CMYK and the like become RGB.
    Images of up to 8 bits a sample give uint8, of up to 16 bits uint16, always over the full range.
    Colour profiles and gamma are not applied. Raises NotShowable, or whatever Pillow raises for a
    broken file.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        _require_one_picture(image)
        layers = _layers(image, content)
        turn = _TO_UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    shown = _on_white(layers)
    return np.ascontiguousarray((turn(shown) if turn else shown).transpose(2, 0, 1))


@dataclass(frozen=True)
class _Layers:
    colour: Pixels  #: (height, width, 1 or 3)
    alpha: Pixels | None = None  #: (height, width), of the same type; 0: not seen


#: By EXIF's Orientation: from (height, width, ...) as stored to upright. A TIFF is turned by
#: Pillow when it is loaded, and then has no orientation any more.
_TO_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


def _require_one_picture(image: ImageFile) -> None:
    """Of a camera's MPO the first picture is the photograph (CIPA DC-007); others are previews."""
    num_pictures = getattr(image, "n_frames", 1)
    if num_pictures > 1 and image.format != "MPO":
        raise NotShowable(
            expected="one picture in a file",
            seen=f"{num_pictures} frames or pages",
            way_out="save the one to learn from as an image of its own",
        )


def _layers(image: ImageFile, content: bytes) -> _Layers:
    tags = getattr(image, "tag_v2", {})
    if image.mode in ("I", "F") or not _is_unsigned(tags):
        raise NotShowable(
            expected="unsigned samples of up to 16 bits, whose highest is white",
            seen=f"signed, 32-bit or floating-point samples (mode {image.mode!r})",
            way_out="scale them to 8 or 16 bits, or train on the numbers as arrays",
        )
    if image.mode in _DEEP_GREY:
        return _deep_grey(image, tags)
    if _deep_raw(image) is not None:
        return _deep_colour(image, content)
    return _shallow(image)


def _is_unsigned(tags: Any) -> bool:
    formats = tags.get(_SAMPLE_FORMAT, _UNSIGNED)
    return set(formats if isinstance(formats, tuple) else (formats,)) == {_UNSIGNED}


# ---- 8 bits -------------------------------------------------------------------------------------


def _shallow(image: ImageFile) -> _Layers:
    _scale_transparent_grey(image)
    is_grey = image.mode in _GREY
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        samples = np.asarray(image.convert("LA" if is_grey else "RGBA"))
        return _Layers(samples[..., :-1], samples[..., -1])
    samples = np.asarray(image.convert("L" if is_grey else "RGB"))
    return _Layers(samples[..., None] if is_grey else samples)


def _scale_transparent_grey(image: ImageFile) -> None:
    """Pillow 13.0.0 scales PNG's grey of 2 and 4 bits to 8, but not the one that is transparent."""
    raw = _raw_modes(image)
    if image.format == "PNG" and image.info.get("transparency") and raw & {"L;2", "L;4"}:
        image.info["transparency"] *= 85 if "L;2" in raw else 17


# ---- 16 bits ------------------------------------------------------------------------------------


def _deep_grey(image: ImageFile, tags: Any) -> _Layers:
    transparent = image.info.get("transparency")
    grey: Pixels = np.asarray(image).astype(np.uint16)
    if tags.get(_BITS) == (12,):
        grey = grey << 4 | grey >> 8
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow 13.0.0 inverts it in 8 bits only
        grey = ~grey
    alpha = None if transparent is None else _opaque_but(grey == transparent)
    return _Layers(grey[..., None], alpha)


def _deep_colour(image: ImageFile, content: bytes) -> _Layers:
    """Colours of 16 bits, of which Pillow 13.0.0 keeps the upper 8.

    The file is read once more in the other byte order, which gives the lower ones.
    """
    raw = _deep_raw(image)
    assert raw is not None
    if raw["bands"] == "LA":
        return _deep_grey_with_alpha(image)
    if raw["bands"] not in ("RGB", "RGBX", "RGBA") or len(_raw_modes(image)) > 1:
        raise NotShowable(
            expected="grey or RGB in 16 bits a sample, without premultiplied alpha",
            seen=f"samples as {', '.join(sorted(_raw_modes(image)))}",
            way_out="convert the image to 8 bits a sample, or to RGB",
        )
    transparent = image.info.get("transparency")
    with Image.open(io.BytesIO(content), formats=FORMATS) as again:
        again.tile = [_with_raw_mode(tile, _other_order(raw)) for tile in again.tile]
        low = np.asarray(again)
    samples = np.asarray(image).astype(np.uint16) << 8 | low
    if transparent is not None:
        return _Layers(samples, _opaque_but((samples == transparent).all(axis=-1)))
    return _Layers(samples[..., :3], samples[..., 3] if samples.shape[-1] > 3 else None)


def _deep_grey_with_alpha(image: ImageFile) -> _Layers:
    """Two samples of two bytes, read as four bands: Pillow has no mode for them."""
    image.tile = [_with_raw_mode(tile, "RGBA") for tile in image.tile]
    samples = np.ascontiguousarray(np.asarray(image)).view(">u2").astype(np.uint16)
    return _Layers(samples[..., :1], samples[..., 1])


def _opaque_but(is_transparent: NDArray[np.bool_]) -> Pixels:
    return np.where(is_transparent, 0, 65535).astype(np.uint16)


def _raw_modes(image: ImageFile) -> set[str]:
    """How the samples lie in the file; empty once it is loaded."""
    return {_raw_mode(tile) for tile in image.tile}


def _raw_mode(tile: Any) -> str:
    first = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return first if isinstance(first, str) else ""


def _with_raw_mode(tile: Any, raw_mode: str) -> Any:
    args = (raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode
    return tile._replace(args=args)


def _deep_raw(image: ImageFile) -> re.Match[str] | None:
    return next(filter(None, map(_DEEP_RAW.fullmatch, sorted(_raw_modes(image)))), None)


def _other_order(raw: re.Match[str]) -> str:
    native = "L" if sys.byteorder == "little" else "B"
    order = native if raw["order"] == "N" else raw["order"]
    return f"{raw['bands']};16{'B' if order == 'L' else 'L'}"


# ---- transparency -------------------------------------------------------------------------------


def _on_white(layers: _Layers) -> Pixels:
    """The picture on white paper. Raises NotShowable for one that cannot be seen there."""
    if layers.alpha is None:
        return layers.colour
    colour, alpha = layers.colour, layers.alpha[..., None]
    white = np.uint32(np.iinfo(colour.dtype).max)
    seen = colour * alpha.astype(np.uint32) + white * (white - alpha)
    shown: Pixels = ((seen + white // 2) // white).astype(colour.dtype)
    if (shown == white).all() and not (_is_flat(colour) and _is_flat(alpha)):
        raise NotShowable(
            expected="a picture that shows on white, which transparent parts become",
            seen="one that is white or transparent all over",
            way_out="put it on a background that it stands out from",
        )
    return shown


def _is_flat(samples: Pixels) -> bool:
    return bool((samples == samples[:1, :1]).all())
