"""A Ray node in the foreground: joins a cluster with a given address, and ends on SIGTERM.

Arguments: the cluster's address, its token file, this node's address, and its number of cores.
"""

import signal
import sys
import tempfile
from pathlib import Path

from roadless.worker.runner.ray_cluster import Head


def main() -> None:
    address, token_file, node_ip, cpus = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    node = Head(token_file=Path(token_file), folder=Path(tempfile.mkdtemp(prefix="roadless-")))
    sizes = [f"--num-cpus={cpus}", "--num-gpus=0"]
    node.start_node([f"--address={address}", f"--node-ip-address={node_ip}", *sizes])
    print("node is up", flush=True)
    signal.sigwait({signal.SIGTERM})
    node.stop()


if __name__ == "__main__":
    main()
