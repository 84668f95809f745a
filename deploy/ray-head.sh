#!/usr/bin/env bash
# A Ray head with the runner beside it; the arguments go to `ray start --head`.
#
# The runner is a Ray driver, and a driver needs a Ray node on its own machine. A runner that dies
# is started again, and training does not notice. A head that dies ends the container.
set -u

runner=
stop() {
    trap '' TERM INT
    # The runner first: it finishes what it is starting, and needs the head for that.
    for pid in $runner $head; do
        kill "$pid" && wait "$pid"
    done 2>/dev/null
    exit "$1"
}

ray start --head --block "$@" &
head=$!
trap 'stop 0' TERM INT

until ray health-check >/dev/null 2>&1; do
    kill -0 "$head" 2>/dev/null || stop 1
    sleep 0.5
done
while kill -0 "$head" 2>/dev/null; do
    python -m roadless.worker.runner &
    runner=$!
    wait -n "$head" "$runner"
    sleep 1
done
stop 1
