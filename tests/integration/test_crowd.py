"""A crowd at the service's door while jobs train: others are answered, and no curve shows it."""

import asyncio
import resource
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx
import pytest
from stack import Stack, curve_of, wait_for_end, wait_for_step

from roadless.service.contract.states import Phase
from roadless.service.http.connections import raise_file_limit

#: Promised are 1 s and 5 s on a machine of its own; compare with what is printed. Here other tests
#: use the processors, too.
HEALTHZ_SECONDS, REPORT_SECONDS = 10, 20
NUM_SILENT, NUM_SLOW, NUM_POSTS = 1100, 500, 500
JSON = {"Content-Type": "application/json"}


def spec_of(seed, **changes):
    return {
        "name": f"job {seed}",
        "model": {"kind": "entry_point", "factory": "paced_models:paced"},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
        "training": {"batch_size": 64, "seed": seed},
        "budget": {"max_steps": 250},
        "evaluation": {"every_steps": 50},
        "checkpoints": {"state_every_steps": 50},
        **changes,
    }


#: Jobs of a burst, which wait for more processors than there are.
WAITING = spec_of(0, parallelism={"num_workers": 64})


@pytest.fixture
def stack(ray_head, tmp_path) -> Iterator[Stack]:
    """One of its own, for the jobs that the burst leaves behind, with the usual limit of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    running = Stack(tmp_path / "crowded", ray_head)
    raise_file_limit()  # of this process, which is the crowd
    yield running
    running.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def trained(client, meanwhile=lambda: None):
    """The curves of two jobs that train at once."""
    jobs = [client.submit(spec_of(seed)).id for seed in (1, 2)]
    for job_id in jobs:
        wait_for_step(client, job_id, 5)
    meanwhile()
    assert {wait_for_end(client, job_id).phase for job_id in jobs} == {Phase.SUCCEEDED}
    return [curve_of(client, job_id) for job_id in jobs]


def test_a_crowd_shuts_nobody_out_and_no_curve_shows_it(stack, capsys):
    with stack.client() as client:
        undisturbed = trained(client)
        figures = Figures()
        with crowd(stack, figures), watched(stack, figures):
            disturbed = trained(client, lambda: figures.note_posts(burst(stack)))
    with capsys.disabled():
        print(f"\n{figures.said()}")
    assert disturbed == undisturbed
    assert figures.posts == {201: NUM_POSTS, 413: 3, 422: 3}
    assert max(figures.healthz) < HEALTHZ_SECONDS
    assert max(figures.report_ages) < REPORT_SECONDS


@dataclass
class Figures:
    """What was seen while the crowd was there; all durations in seconds."""

    healthz: list[float] = field(default_factory=list)
    report_ages: list[float] = field(default_factory=list)
    posts: Counter[int] = field(default_factory=Counter)
    posts_took: float = 0.0
    num_let_go: int = 0

    def note_posts(self, answers: list[httpx.Response]) -> None:
        self.posts.update(answer.status_code for answer in answers)
        self.posts_took = max(answer.elapsed.total_seconds() for answer in answers)
        assert max(len(answer.content) for answer in answers) < 100_000

    def said(self) -> str:
        return (
            f"crowd: {NUM_SILENT} silent, {NUM_SLOW} slow, {self.num_let_go} let go; "
            f"{dict(self.posts)} posts within {self.posts_took:.1f} s; healthz of "
            f"{len(self.healthz)} newcomers at worst {max(self.healthz):.2f} s; oldest report "
            f"{max(self.report_ages):.2f} s"
        )


# ---- the crowd -----------------------------------------------------------------------------------


@contextmanager
def crowd(stack: Stack, figures: Figures) -> Iterator[None]:
    """Strangers who say nothing, or a byte now and then, and come again when they are let go."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST /v1/jobs HTTP/1.1\r\nHost: ")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.5)

    async def all_of_them() -> None:
        await asyncio.gather(
            *(_again_and_again(stack.url, silent, figures) for _ in range(NUM_SILENT)),
            *(_again_and_again(stack.url, slow, figures) for _ in range(NUM_SLOW)),
        )

    with running(all_of_them()):
        yield


async def _again_and_again(
    url: str,
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    figures: Figures,
) -> None:
    where = urlsplit(url)
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            try:
                await talk(reader, writer)
            finally:
                writer.close()
        figures.num_let_go += 1
        await asyncio.sleep(1)


def burst(stack: Stack) -> list[httpx.Response]:
    """500 posts at once, and bodies of wrong keys: as large as is read, and larger."""
    token = (stack.home / "user.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", **JSON}
    large, larger = wrong_keys(2 * 10**6), wrong_keys(7_700_000)

    async def send() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=stack.url, headers=headers, limits=limits, timeout=120
        ) as http:
            wrong = [http.post("/v1/jobs", content=body) for body in [large, larger] * 3]
            right = [_accepted(http) for _ in range(NUM_POSTS)]
            return await asyncio.gather(*wrong, *right)

    return asyncio.run(send())


async def _accepted(http: httpx.AsyncClient) -> httpx.Response:
    """The answer to a post, tried again with its key as our client would while others write."""
    key = {"Idempotency-Key": str(uuid.uuid4())}
    while (answer := await http.post("/v1/jobs", json=WAITING, headers=key)).status_code == 503:
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    return answer


def wrong_keys(num_bytes: int) -> bytes:
    """An object of unknown keys, a little shorter than that."""
    return b"{" + b",".join(b'"k%06d":0' % i for i in range(num_bytes // 12)) + b"}"


# ---- those who are not to notice -----------------------------------------------------------------


@contextmanager
def watched(stack: Stack, figures: Figures) -> Iterator[None]:
    """Newcomers ask for /healthz, and a look at the database tells how old the reports are."""

    async def newcomers() -> None:
        while True:
            async with httpx.AsyncClient(timeout=60, verify=False) as http:
                began = time.monotonic()
                assert (await http.get(f"{stack.url}/healthz")).status_code == 200
            figures.healthz.append(time.monotonic() - began)
            await asyncio.sleep(0.1)

    async def reports() -> None:
        with closing(sqlite3.connect(f"file:{stack.home}/roadless.db?mode=ro", uri=True)) as db:
            while True:
                figures.report_ages += report_ages(db)
                await asyncio.sleep(0.1)

    with running(newcomers(), reports()):
        yield


def report_ages(db: sqlite3.Connection) -> list[float]:
    """For how long each job that trains was not heard of."""
    rows = db.execute("SELECT last_heard_at FROM jobs WHERE phase = 'RUNNING'").fetchall()
    heard = [datetime.fromisoformat(at) for (at,) in rows if at]
    now = datetime.now(UTC)
    return [(now - (at if at.tzinfo else at.replace(tzinfo=UTC))).total_seconds() for at in heard]


@contextmanager
def running(*endless: Coroutine[None, None, None]) -> Iterator[None]:
    """The coroutines in a thread, until the block ends; their errors end the test."""
    loop, enough = asyncio.new_event_loop(), asyncio.Event()

    async def until_enough() -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in endless]
            await enough.wait()
            for task in tasks:
                task.cancel()

    with ThreadPoolExecutor(1) as pool, closing(loop):
        ended = pool.submit(loop.run_until_complete, until_enough())
        try:
            yield
        finally:
            loop.call_soon_threadsafe(enough.set)
            ended.result()
