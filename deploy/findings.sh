#!/usr/bin/env bash
# Run every script in findings/, or those whose names are given, each with a folder of its own for
# pip and for temporary files; say which behaviours still are as described, and fail if one is not.
# Use: deploy/findings.sh [NAME ...]
set -uo pipefail
cd "$(dirname "$0")/.."
# A script that takes longer has failed: installing torch is most of the time.
readonly LIMIT=1200

if (($#)); then
    scripts=()
    for name in "$@"; do scripts+=("findings/${name%.sh}.sh"); done
else
    scripts=(findings/*.sh)
fi

changed=()
for script in "${scripts[@]}"; do
    echo "== ${script}"
    timeout "$LIMIT" bash "$script" || changed+=("$script (exit code $?)")
done
if ((${#changed[@]})); then
    printf 'no longer as described: %s\n' "${changed[@]}" >&2
    exit 1
fi
echo "${#scripts[@]} findings, all still as described"
