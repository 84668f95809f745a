"""The figures of record 0014: 64 MiB into a bucket and out of it, and 1 GiB from rank to service.

.venv/bin/python docs/decisions/s3_round_trip.py
"""

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import httpx
import uvicorn

from roadless.service.contract.ids import new_id
from roadless.service.main import create_app
from roadless.service.settings import Settings
from roadless.service.storage.s3_blobs import S3Blobs
from roadless.service.storage.s3_bucket import Bucket
from roadless.worker.api import AttemptApi

BLOB_BYTES = 64 << 20
FILE_BYTES = 1 << 30
REPEATS = 5
KEY = "default/job/ckpt/hash/name"
SPEC = {
    "model": {"kind": "preset", "name": "mlp"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "sgd_schedulefree"},
}
NODE = {"node_id": "n", "cpus": 1, "gpus": 0, "free_cpus": 1, "free_gpus": 0}


def say(line: str) -> None:
    """One line of the record."""
    sys.stdout.write(f"{line}\n")


def best_of(act: Callable[[], None]) -> float:
    """The least of several wall times in seconds."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return min(times)


@contextmanager
def s3_server() -> Iterator[str]:
    """A server of the S3 protocol in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def measure_bucket(folder: Path) -> None:
    """Put and get of one blob."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    content, source = os.urandom(BLOB_BYTES), folder / "source"
    with s3_server() as url:
        bucket = Bucket("measured", "", url, "us-east-1", is_path_style=True)
        boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(
            Bucket=bucket.name
        )
        blobs = S3Blobs(bucket)

        def put() -> None:
            source.write_bytes(content)
            blobs.put(KEY, source)

        def get(start: int, stop: int) -> None:
            assert sum(map(len, blobs.read(KEY, start, stop))) == stop - start

        say(f"64 MiB into the bucket: {best_of(put):.2f} s")
        say(f"64 MiB out of it: {best_of(lambda: get(0, BLOB_BYTES)):.2f} s")
        middle = best_of(lambda: get(24 << 20, 40 << 20))
        say(f"its 16 MiB in the middle: {middle:.2f} s")


@contextmanager
def service(home: Path) -> Iterator[str]:
    """The service on a free port; SQLite and blobs below ``home``."""
    app = create_app(Settings(home=home, DATABASE_URL=None))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    (listening,) = server.servers[0].sockets
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def attempt_of(url: str, home: Path) -> AttemptApi:
    """The client of a rank whose job has just been claimed."""
    user, runner = ((home / f"{name}.token").read_text().strip() for name in ("user", "runner"))
    with httpx.Client(base_url=url) as http:
        http.post("/v1/jobs", json=SPEC, headers={"Authorization": f"Bearer {user}"})
        http.headers["Authorization"] = f"Bearer {runner}"
        runner_id = http.post("/internal/v1/runners", json={"name": "a"}).json()["runner_id"]
        body = {"nodes": [NODE], "alive": [], "released": [], "wait_seconds": 0}
        reply = http.post(f"/internal/v1/runners/{runner_id}/sync", json=body).json()
    (assignment,) = reply["start"]
    return AttemptApi(url, attempt_id=assignment["attempt_id"], token=assignment["token"])


def measure_upload(folder: Path) -> None:
    """One large file from a rank to the service on one machine."""
    home, path = folder / "home", folder / "large"
    block = os.urandom(1 << 20)
    path.write_bytes(block * (FILE_BYTES >> 20))
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    began = time.perf_counter()
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    hashing = time.perf_counter() - began
    with service(home) as url, attempt_of(url, home) as api:
        began = time.perf_counter()
        api.upload(path, checkpoint_id=new_id("ckpt"), name="large", sha256=sha256)
        took = time.perf_counter() - began
    say(f"1 GiB from rank to service in parts: {took:.1f} s; hashing it once: {hashing:.1f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        measure_bucket(Path(name))
        measure_upload(Path(name))
