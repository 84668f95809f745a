"""Figures of record 0014: reading an object store, preparing each format, and serving batches.

Run ``.venv/bin/python docs/decisions/data_files.py``; needs the ``dev`` extra.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import httpx
import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from moto.server import ThreadedMotoServer
from obstore.fsspec import register
from obstore.store import S3Store
from pydantic import TypeAdapter

from roadless.service.contract.job.data import DataSpec
from roadless.service.contract.job.models import ModelSpec
from roadless.worker.data.base import DataSet
from roadless.worker.data.build import build_data
from roadless.worker.data.prefetch import Prefetch
from roadless.worker.data.sampler import global_indices
from roadless.worker.rank_launch import DataSources

ROWS, COLUMNS = 100_000, 20


def timed(call: Callable[[], object]) -> float:
    """Seconds that the call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def object_store() -> None:
    """64 MiB from a local server of the S3 protocol, in blocks to a file."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }
    httpx.put(f"{endpoint}/bucket")
    store = S3Store("bucket", client_options={"allow_http": True})
    obstore.put(store, "large", bytes(64 * 2**20))
    register("s3")
    files = fsspec.filesystem("s3", client_options={"allow_http": True})

    def direct() -> None:
        with tempfile.TemporaryFile() as target:
            for block in obstore.get(store, "large").stream(min_chunk_size=8 * 2**20):
                target.write(block)

    def through_fsspec() -> None:
        with tempfile.TemporaryFile() as target, files.open("bucket/large") as source:
            while block := source.read(8 * 2**20):
                target.write(block)

    for name, call in (("obstore", direct), ("obstore through fsspec", through_fsspec)):
        seconds = min(timed(call) for _ in range(3))
        print(f"64 MiB by {name}: {seconds:.2f} s")  # noqa: T201  the answer
    server.stop()


def formats(folder: Path) -> None:
    """A table of 100,000 rows of 20 numbers, a text, and bytes: prepared once, then found again."""
    values = np.random.default_rng(0).random((ROWS, COLUMNS)).astype(np.float32)
    labels = np.arange(ROWS) % 10
    names = [f"c{number}" for number in range(COLUMNS)]
    table = {**dict(zip(names, values.T, strict=True)), "y": labels}
    pq.write_table(pa.table(table), folder / "a.parquet")
    np.savez(folder / "a.npz", x=values, y=labels)
    with (folder / "a.csv").open("w") as csv, (folder / "a.jsonl").open("w") as jsonl:
        csv.write(",".join([*names, "y"]) + "\n")
        for row, label in zip(values.tolist(), labels.tolist(), strict=True):
            csv.write(",".join(map(repr, row)) + f",{label}\n")
            jsonl.write(json.dumps({**dict(zip(names, row, strict=True)), "y": label}) + "\n")
    text = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    (folder / "a.text").write_bytes(text * 8)
    (folder / "a.bytes").write_bytes(text * 8)
    for format in ("parquet", "npz", "csv", "jsonl", "text", "bytes"):
        size = (folder / f"a.{format}").stat().st_size
        first, again = (timed(lambda f=format: build(folder, f)) for _ in range(2))
        print(  # noqa: T201  the answer
            f"{format}: {size / 2**20:.0f} MiB prepared in {first:.2f} s, "
            f"found again in {again * 1000:.0f} ms"
        )


def build(folder: Path, format: str, *, context: int = 256) -> DataSet:
    """The prepared data set of one of the files."""
    is_text = format in ("text", "bytes")
    spec = {"kind": "files", "format": format, "path": str(folder / f"a.{format}")}
    model = {"kind": "preset", "name": "gpt" if is_text else "mlp"}
    return build_data(
        TypeAdapter(DataSpec).validate_python(spec if is_text else {**spec, "target": "y"}),
        model=TypeAdapter(ModelSpec).validate_python(
            {**model, "context": context} if is_text else model
        ),
        task="causal_lm" if is_text else "classification",
        sources=DataSources(roots=(str(folder),), cache=str(folder / "cache")),
    )


def batches(folder: Path) -> None:
    """How long a batch takes, and what is left of it when it is made ahead of a 5 ms step."""
    for format, context in (("parquet", 0), ("text", 256), ("text", 1024)):
        data = build(folder, format, context=context or 2)

        def make(step: int, data: DataSet = data) -> object:
            indices = global_indices(step, batch_size=64, num_train=data.num_train, seed=0)
            return data.train_batch(indices)

        make(0)
        direct = min(timed(lambda: [make(step) for step in range(50)]) for _ in range(3)) / 50
        print(  # noqa: T201  the answer
            f"{format} {context or ''}: a batch of 64 in {direct * 1e6:.0f} us; asked for when "
            f"made ahead: median {median_wait(make) * 1e6:.0f} us"
        )


def median_wait(make: Callable[[int], object]) -> float:
    """How long a step of 5 ms waits for a batch that is made ahead."""
    prefetch, waits = Prefetch(make), []
    for step in range(100):
        start = time.perf_counter()
        prefetch(step)
        waits.append(time.perf_counter() - start)
        time.sleep(0.005)
    prefetch.close()
    return float(np.median(waits))


if __name__ == "__main__":
    object_store()
    with tempfile.TemporaryDirectory() as name:
        formats(Path(name))
        batches(Path(name))
