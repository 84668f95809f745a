#!/usr/bin/env bash
# Pillow 13.0.0: the one transparent colour that a PNG may name (chunk tRNS) is given in the depth of its samples. Of 2-bit
# grey Pillow scales the samples to 8 bits and compares them with the colour unscaled; of 16-bit RGB it keeps the high
# bytes of the samples and compares them with the low bytes of the colour. What should be transparent stays opaque.
# Seen: alpha of two pixels, the second (2-bit) or first (16-bit) transparent by the file: 8-bit grey 255 and 0, right; the
# same picture in 2 bits 255 and 255; 16-bit RGB 255 and 255.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==13.0.0
cd "$folder"
venv/bin/python -W ignore - <<'PY'
import io
import struct
import sys
import zlib

from PIL import Image

GREY, RGB = 0, 2


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def alphas(depth, kind, row, transparent):
    head = struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0)
    parts = ((b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    return list(Image.open(io.BytesIO(content)).convert("RGBA").getdata(3))


in_8_bits = alphas(8, GREY, bytes([0, 2]), struct.pack(">H", 2))
in_2_bits = alphas(2, GREY, bytes([0b00_10_00_00]), struct.pack(">H", 2))
of_16_bits = alphas(16, RGB, struct.pack(">6H", 1, 2, 3, 9, 9, 9), struct.pack(">3H", 1, 2, 3))
print("8-bit grey", in_8_bits, "2-bit grey", in_2_bits, "16-bit RGB", of_16_bits)
sys.exit((in_8_bits, in_2_bits, of_16_bits) != ([255, 0], [255, 255], [255, 255]))
PY
