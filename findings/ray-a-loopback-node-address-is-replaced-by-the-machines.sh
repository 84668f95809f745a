#!/usr/bin/env bash
# ray 2.60.0, Linux: a single node that is given 127.0.0.1 as its address (_node_ip_address) takes the machine's instead,
# without a word. The value is kept only with a switch that is named for other systems,
# RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0. Whoever starts a private cluster on a laptop and asks for loopback does not get it.
# Seen: by default the node's address is not loopback; the control, the same call with the switch, has 127.0.0.1.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ray==2.60.0
cat >"$folder/address.py" <<'PY'
import sys

import ray

ray.init(
    num_cpus=1,
    include_dashboard=False,
    log_to_driver=False,
    _node_ip_address="127.0.0.1",
    _temp_dir=sys.argv[1],
)
(node,) = ray.nodes()
ray.shutdown()
print("the node's address is 127.0.0.1:", node["NodeManagerAddress"] == "127.0.0.1")
PY
cd "$folder"
export RAY_USAGE_STATS_ENABLED=0
by_default=$(venv/bin/python address.py "$folder/a" 2>/dev/null)
with_switch=$(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 venv/bin/python address.py "$folder/b" 2>/dev/null)
echo "by default, ${by_default}; with the switch, ${with_switch}"
[[ $by_default == *False && $with_switch == *True ]]
