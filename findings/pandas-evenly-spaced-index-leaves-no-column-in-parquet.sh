#!/usr/bin/env bash
# pandas 3.1.1 with pyarrow 26.0.1: set_index of a column turns it into a RangeIndex where its values happen to be evenly
# spaced, and to_parquet then stores no column for it, only pandas' own metadata. So which columns a file has depends on
# the values: of two parts of one table one has `id` and the other, to every reader but pandas, has not.
# Seen: ids 9, 8, 7, 5 are a column, ids 9, 8, 7, 6 are none; pandas reads both back whole (the control).
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pandas==3.1.1 pyarrow==26.0.1
cd "$folder"
venv/bin/python - <<'PY'
import sys

import pandas as pd
import pyarrow.parquet as pq


def stored(ids):
    frame = pd.DataFrame({"id": ids, "a": [1.0, 2.0, 3.0, 4.0]}).set_index("id")
    frame.to_parquet("part.parquet")
    assert pd.read_parquet("part.parquet").index.tolist() == ids
    return pq.read_table("part.parquet").schema.names


uneven, even = stored([9, 8, 7, 5]), stored([9, 8, 7, 6])
print("uneven:", uneven, "even:", even)
sys.exit(0 if uneven == ["a", "id"] and even == ["a"] else 1)
PY
