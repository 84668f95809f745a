#!/bin/sh
# Write constraints.txt anew: what all extras resolve to today, in an empty environment.
# TORCH_INDEX: a further package index, for instance https://download.pytorch.org/whl/cpu
set -eu
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/src" # where pyproject.toml looks for packages: none are needed here
cp pyproject.toml README.md "$work"

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
    "${work}[service,worker,data,transformers,export,dev,bench,studies,lower-bound]"

# A local version such as 2.13.0+cpu would forbid the CUDA build; torch itself names the exact
# CUDA packages of its build.
{
    echo "# Every package that Roadless installs, in one tested set. Made by deploy/pin.sh;"
    echo "# to take up newer versions, run that and the tests. Use: pip install -c constraints.txt"
    "$work/venv/bin/pip" freeze --all --exclude pip --exclude roadless |
        sed 's/+[^ ]*$//' | grep -Ev '^(nvidia|cuda|triton)' | LC_ALL=C sort -f
} > "$work/constraints.txt"
mv "$work/constraints.txt" constraints.txt

# What the dashboard takes from npm, likewise: package.json names exact versions, the lock file hashes.
PATH=$work/venv/bin:$PATH npm install --prefix service/dashboard --package-lock-only \
    --ignore-scripts --save-exact --loglevel=error uplot@latest
PATH=$work/venv/bin:$PATH npm install --prefix service/dashboard --package-lock-only \
    --ignore-scripts --save-exact --save-dev --loglevel=error @biomejs/biome@latest
