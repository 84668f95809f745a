#!/usr/bin/env bash
# Pillow 13.0.0: a TIFF whose PhotometricInterpretation is 0 (white is zero: scans, radiographs) is inverted on reading where
# its samples have 8 bits, and is left a negative, without a word or a tag that says so, where they have 16.
# Seen: the first of two pixels, stored as 0 and so white: 255 of 255 in 8 bits; 0 of 65535 in 16 bits.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==13.0.0
cd "$folder"
venv/bin/python - <<'PY'
import io
import struct
import sys

from PIL import Image

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSET, SAMPLES, ROWS, LENGTH = 256, 257, 258, 259, 262, 273, 277, 278, 279


def first_pixel(bits, samples):
    data_at = 8 + 2 + 9 * 12 + 4
    tags = {WIDTH: 2, HEIGHT: 1, BITS: bits, COMPRESSION: 1, PHOTOMETRIC: 0, OFFSET: data_at, SAMPLES: 1, ROWS: 1, LENGTH: len(samples)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + samples
    return Image.open(io.BytesIO(content)).getpixel((0, 0))


in_8, in_16 = first_pixel(8, bytes([0, 255])), first_pixel(16, struct.pack("<HH", 0, 65535))
print("white, stored as 0: in 8 bits", in_8, "in 16 bits", in_16)
sys.exit((in_8, in_16) != (255, 0))
PY
