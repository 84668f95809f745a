"""Image files written byte by byte from known samples, by nothing that also reads them."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

Samples = NDArray[Any]

#: PNG's colour types.
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
ORIENTATION = 274
_SHORT, _LONG = 3, 4
_TIFF_SIZES = {_SHORT: ("H", 2), _LONG: ("I", 4)}


def png(samples: Samples, *, depth: int, colour: int, **chunks: bytes) -> bytes:
    """A PNG of ``samples``, (height, width) or (height, width, bands), of ``depth`` bits each.

    ``chunks``: further ones by name, ahead of the pixels.
    """
    height, width = samples.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + _packed(row, depth, ">") for row in samples)
    every = [("IHDR", head), *chunks.items(), ("IDAT", zlib.compress(rows)), ("IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name.encode(), data) for name, data in every)


def exif(orientation: int) -> bytes:
    """What a PNG's eXIf chunk holds, and a JPEG's EXIF segment after its name."""
    entry = struct.pack("<HHI", ORIENTATION, _SHORT, 1) + struct.pack("<HH", orientation, 0)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


def tiff(
    samples: Samples, *, depth: int, photometric: int, order: str = "<", **tags: int | Sequence[int]
) -> bytes:
    """An uncompressed TIFF. ``order``: ``<`` or ``>``; ``tags``: by ``t`` and their number."""
    height, width = samples.shape[:2]
    bands = samples.shape[2] if samples.ndim > 2 else 1
    data = b"".join(_packed(row, depth, order) for row in samples)
    fields: dict[int, tuple[int, Sequence[int]]] = {
        256: (_SHORT, [width]),
        257: (_SHORT, [height]),
        258: (_SHORT, [depth] * bands),
        259: (_SHORT, [1]),
        262: (_SHORT, [photometric]),
        273: (_LONG, [0]),
        277: (_SHORT, [bands]),
        278: (_SHORT, [height]),
        279: (_LONG, [len(data)]),
    }
    for name, value in tags.items():
        fields[int(name[1:])] = (_SHORT, [value] if isinstance(value, int) else value)
    return _tiff_file(fields, data, order)


def _tiff_file(fields: Mapping[int, tuple[int, Sequence[int]]], data: bytes, order: str) -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    begin = 8 + 2 + 12 * len(fields) + 4
    long_ones = sum(len(_values(one, order)) for one in fields.values() if _is_long(one, order))
    entries, beside = b"", b""
    for tag, (kind, values) in sorted(fields.items()):
        content = _values((kind, [begin + long_ones] if tag == 273 else values), order)
        entries += struct.pack(order + "HHI", tag, kind, len(values))
        if len(content) > 4:
            entries += struct.pack(order + "I", begin + len(beside))
            beside += content
        else:
            entries += content.ljust(4, b"\0")
    head = struct.pack(order + "IH", 8, len(fields))
    return mark + head + entries + struct.pack(order + "I", 0) + beside + data


def _values(field: tuple[int, Sequence[int]], order: str) -> bytes:
    kind, values = field
    return struct.pack(order + _TIFF_SIZES[kind][0] * len(values), *values)


def _is_long(field: tuple[int, Sequence[int]], order: str) -> bool:
    return len(_values(field, order)) > 4


def _packed(row: Samples, depth: int, order: str) -> bytes:
    if depth % 8 == 0:
        return row.astype(f"{order}u{depth // 8}").tobytes()
    bits = "".join(format(int(sample), f"0{depth}b") for sample in row.ravel())
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
