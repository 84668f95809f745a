#!/usr/bin/env bash
# pyarrow 26.0.1 with numpy: FixedShapeTensorArray.from_numpy_ndarray of a view whose axes go round in a circle (images
# with channels last, turned to channels first) writes the inverse of the permutation that the format defines, and
# to_numpy_ndarray reads other numbers back, or refuses with "strides must not involve buffer over run". Two axes that are
# swapped, and a contiguous copy, come back right. Who keeps images as tensors in Parquet trains on scrambled ones.
# Seen: of 2 tensors of 3 x 3 x 3 most numbers differ after the round trip; of 2 x 4 x 3 the reading is refused.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pyarrow==26.0.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PY'
import sys

import numpy as np
import pyarrow as pa


def comes_back(array):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
    try:
        return np.array_equal(tensors.to_numpy_ndarray(), array)
    except pa.ArrowInvalid as error:
        return str(error)


cube = np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3)
images = np.arange(48, dtype=np.float32).reshape(2, 4, 3, 2)
turned = comes_back(cube.transpose(0, 3, 1, 2)), comes_back(images.transpose(0, 3, 1, 2))
controls = comes_back(cube.transpose(0, 2, 1, 3)), comes_back(np.ascontiguousarray(cube.transpose(0, 3, 1, 2)))
print("turned:", turned, "controls:", controls)
sys.exit(0 if turned == (False, "strides must not involve buffer over run") and controls == (True, True) else 1)
PY
