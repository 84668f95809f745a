#!/usr/bin/env bash
# datasets 5.2.0: each file's columns are typed on their own and then cast to the types of the first file. A text column
# whose values in a later file all look like numbers or times is read as such there and cast back: "007" becomes "7", and
# the T between date and time becomes a blank. Which files a split has, and their order, decides what its texts are.
# Seen: CSV files [abc, 007] and [007, 008] give abc, 007, 7, 8; JSON lines "2021-01-01T10:00:00" in a second file comes
# out as "2021-01-01 10:00:00". The control, all rows in one file, is left as it is.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 venv/bin/python - <<'PY'
import pathlib
import sys

import datasets

datasets.disable_progress_bars()


def texts(name, form, *files):
    folder = pathlib.Path(name)
    folder.mkdir()
    for i, content in enumerate(files):
        (folder / f"train-{i}.{form}").write_text(content)
    return datasets.load_dataset(str(folder), split="train", cache_dir="cache")["text"][:]


numbers = texts("numbers", "csv", "text\nabc\n007\n", "text\n007\n008\n")
times = texts("times", "jsonl", '{"text": "a"}\n', '{"text": "2021-01-01T10:00:00"}\n')
control = texts("control", "csv", "text\nabc\n007\n007\n008\n")
print("two CSV files:", numbers, "JSON lines:", times, "one CSV file:", control)
is_so = numbers == ["abc", "007", "7", "8"] and times == ["a", "2021-01-01 10:00:00"]
sys.exit(not (is_so and control == ["abc", "007", "007", "008"]))
PY
