"""The client of the internal endpoints: one error for every way a call can end."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_attempt_server import serving

from roadless.service.contract.job.data import DigitsData
from roadless.service.contract.job.models import MlpPreset
from roadless.service.contract.job.optimizers import AdamWScheduleFreeSpec
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.reports.cluster import (
    AttemptBrief,
    AttemptEnded,
    Registered,
    RegisterRunner,
    Sync,
    SyncReply,
)
from roadless.service.contract.reports.events import Notice, Report, ReportReply
from roadless.service.contract.states import Desired, Reason
from roadless.worker.api import (
    AttemptApi,
    Away,
    EventsMissing,
    Fenced,
    NameTaken,
    Refused,
    Replaced,
    RunnerApi,
)
from roadless.worker.retry import call_with_retry

CHECKPOINT = "ckpt_1"
BRIEF = AttemptBrief(
    attempt_id="att_1",
    job_id="job_1",
    fence=1,
    spec=JobSpec(
        model=MlpPreset(kind="preset", name="mlp"),
        data=DigitsData(kind="builtin", name="digits"),
        task="classification",
        optimizer=AdamWScheduleFreeSpec(name="adamw_schedulefree"),
    ),
)
ENDED = AttemptEnded(reason=Reason.RANK_DIED, message="gone")
PROBLEM = '{{"type": "urn:roadless:error:{kind}", "title": "No", "detail": "why not"}}'


@dataclass
class Peer:
    """One scripted answer, and the request that got it."""

    url: str = ""
    status: int = 200
    content: bytes = b""
    problem_type: str = "application/problem+json"
    cut_after: int | None = None
    told: list[dict[str, str]] = field(default_factory=list)
    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    request: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            peer.request = f"{self.command} {self.path}"
            peer.headers = {name.lower(): value for name, value in self.headers.items()}
            peer.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            peer.bodies.append((self.command, peer.body))
            self.send_response(peer.status)
            for header, value in (peer.told.pop(0) if peer.told else {}).items():
                self.send_header(header, value)
            if peer.status >= 400:
                self.send_header("Content-Type", peer.problem_type)
            self.send_header("Content-Length", str(len(peer.content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(peer.content[: peer.cut_after])

        do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815  the names that http.server asks for

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    peer.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield peer
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(peer: Peer) -> Iterator[AttemptApi]:
    with AttemptApi(peer.url, attempt_id="att_1", token="secret") as api:
        yield api


def test_runner_registers_with_its_token(peer: Peer) -> None:
    registered = Registered(runner_id="run_1", lease_seconds=30)
    peer.content = registered.model_dump_json().encode()
    assert RunnerApi(peer.url, token="secret").register("a", cluster="c", session="s") == (
        registered
    )
    sent = RegisterRunner(name="a", cluster="c", session="s")
    assert RegisterRunner.model_validate_json(peer.body) == sent
    assert peer.request == "POST /internal/v1/runners"
    assert peer.headers["authorization"] == "Bearer secret"
    assert peer.headers["content-type"] == "application/json"


def test_sync_is_sent_to_the_runners_own_path(peer: Peer) -> None:
    reply = SyncReply(stop=["att_1"])
    peer.content = reply.model_dump_json().encode()
    seen = Sync(nodes=[], alive=["att_1"])
    assert RunnerApi(peer.url, token="secret").sync("run_1", seen=seen) == reply
    assert peer.request == "POST /internal/v1/runners/run_1/sync"
    assert Sync.model_validate_json(peer.body) == seen


def test_unknown_runner_token_is_refused_and_not_fenced(peer: Peer) -> None:
    peer.status, peer.content = 401, PROBLEM.format(kind="unauthenticated").encode()
    with pytest.raises(Refused) as raised:
        RunnerApi(peer.url, token="secret").register("a", cluster="c", session="s")
    assert (raised.value.status, raised.value.detail) == (401, "why not")


def test_a_runner_hears_that_its_name_or_its_place_is_taken(peer: Peer) -> None:
    api = RunnerApi(peer.url, token="secret")
    peer.status, peer.content = 409, PROBLEM.format(kind="runner_name_taken").encode()
    with pytest.raises(NameTaken, match="why not"):
        api.register("a", cluster="c", session="s")
    peer.content = PROBLEM.format(kind="runner_replaced").encode()
    with pytest.raises(Replaced, match="why not"):
        api.sync("run_1", seen=Sync(nodes=[], session="s"))


def test_brief_is_fetched(peer: Peer, api: AttemptApi) -> None:
    peer.content = BRIEF.model_dump_json().encode()
    assert api.brief() == BRIEF
    assert peer.request == "GET /internal/v1/attempts/att_1"


def test_report_is_answered_with_the_desired_state(peer: Peer, api: AttemptApi) -> None:
    reply = ReportReply(ack_seq=7, desired=Desired.STOP)
    peer.content = reply.model_dump_json().encode()
    events = [Notice(seq=seq, code="n", message="ü") for seq in (4, 5)]
    assert api.report(1, [event.model_dump_json().encode() for event in events]) == reply
    assert peer.request == "POST /internal/v1/attempts/att_1/report"
    assert Report.model_validate_json(peer.body) == Report(rank=1, events=events)


def test_without_events_a_report_is_a_heartbeat(peer: Peer, api: AttemptApi) -> None:
    peer.content = ReportReply(ack_seq=0, desired=Desired.RUN).model_dump_json().encode()
    api.report(2)
    assert Report.model_validate_json(peer.body) == Report(rank=2)


def test_ending_is_posted(peer: Peer, api: AttemptApi) -> None:
    peer.status = 204
    api.ended(ENDED)
    assert peer.request == "POST /internal/v1/attempts/att_1/ended"
    assert AttemptEnded.model_validate_json(peer.body) == ENDED


def test_file_is_uploaded_whole_with_its_hash(peer: Peer, api: AttemptApi, tmp_path: Path) -> None:
    content, path = b"\x00\n\xff" * 100_000, tmp_path / "x.safetensors"
    path.write_bytes(content)
    peer.status = 204
    api.upload(path, checkpoint_id=CHECKPOINT, name="x.safetensors", sha256="ab12")
    assert peer.request == "PUT /internal/v1/attempts/att_1/checkpoints/ckpt_1/files/x.safetensors"
    assert peer.body == content
    assert peer.headers["x-content-sha256"] == "ab12"
    assert peer.headers["content-length"] == str(len(content))


# ---- in parts ----------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of two parts and a half."""
    monkeypatch.setattr("roadless.worker.api.PART_BYTES", 4)
    path = tmp_path / "large"
    path.write_bytes(b"0123456789")
    return path


def arrived(num_bytes: int, *, is_stored: bool = False) -> dict[str, str]:
    return {"Upload-Offset": str(num_bytes), "Upload-Complete": "?1" if is_stored else "?0"}


def upload(api: AttemptApi, path: Path) -> None:
    api.upload(path, checkpoint_id=CHECKPOINT, name="large", sha256="ab12")


def test_large_file_goes_in_parts(peer: Peer, api: AttemptApi, large: Path) -> None:
    peer.status = 204
    peer.told = [arrived(0), arrived(4), arrived(8), arrived(10, is_stored=True)]
    upload(api, large)
    assert peer.bodies == [("HEAD", b""), ("PUT", b"0123"), ("PUT", b"4567"), ("PUT", b"89")]
    assert peer.request.endswith("/checkpoints/ckpt_1/files/large")
    assert peer.headers["x-content-sha256"] == "ab12"
    assert (peer.headers["upload-offset"], peer.headers["upload-length"]) == ("8", "10")


def test_file_of_exactly_one_part_goes_whole(peer: Peer, api: AttemptApi, tmp_path: Path) -> None:
    peer.status, path = 204, tmp_path / "small"
    path.write_bytes(b"0123")
    upload(api, path)
    assert peer.bodies == [("PUT", b"0123")]
    assert "upload-offset" not in peer.headers


@pytest.mark.parametrize(("start", "sent"), [(5, [b"5678", b"9"]), (10, [b""])])
def test_large_file_goes_on_where_it_was(
    peer: Peer, api: AttemptApi, large: Path, start: int, sent: list[bytes]
) -> None:
    peer.status = 204
    peer.told = [arrived(start), *[arrived(9)] * (len(sent) - 1), arrived(10, is_stored=True)]
    upload(api, large)
    assert peer.bodies == [("HEAD", b""), *(("PUT", part) for part in sent)]


def test_large_file_that_is_stored_is_not_sent(peer: Peer, api: AttemptApi, large: Path) -> None:
    peer.status, peer.told = 204, [arrived(10, is_stored=True)]
    upload(api, large)
    assert peer.bodies == [("HEAD", b"")]


@pytest.mark.parametrize("seen", [{}, {"Upload-Offset": "x", "Upload-Complete": "?0"}])
def test_answer_that_does_not_say_how_much_arrived_is_away(
    peer: Peer, api: AttemptApi, large: Path, seen: dict[str, str]
) -> None:
    peer.told = [seen]
    with pytest.raises(Away, match="expected how much has arrived"):
        upload(api, large)


def test_service_that_takes_no_byte_is_away(peer: Peer, api: AttemptApi, large: Path) -> None:
    """Else a rank would send the same part for ever."""
    peer.status, peer.told = 204, [arrived(4), arrived(4)]
    with pytest.raises(Away, match="more than 4 bytes, saw no more"):
        upload(api, large)


@pytest.mark.parametrize(("status", "error"), [(409, Fenced), (401, Fenced), (503, Away)])
def test_first_look_has_the_same_words(
    peer: Peer, api: AttemptApi, large: Path, status: int, error: type[Exception]
) -> None:
    peer.status = status
    with pytest.raises(error):
        upload(api, large)


def test_stand_in_of_the_service_takes_parts_too(large: Path) -> None:
    sha256 = hashlib.sha256(large.read_bytes()).hexdigest()
    with (
        serving(BRIEF) as server,
        AttemptApi(server.url, attempt_id="att_1", token="secret") as api,
    ):
        server.parts[CHECKPOINT, "large"] = b"01234"
        for _ in range(2):
            api.upload(large, checkpoint_id=CHECKPOINT, name="large", sha256=sha256)
        assert server.service.files == {(CHECKPOINT, "large"): b"0123456789"}
        assert server.service.uploads == [(CHECKPOINT, "large")]


# ---- down --------------------------------------------------------------------------------------


def test_file_is_downloaded_whole(peer: Peer, api: AttemptApi, tmp_path: Path) -> None:
    peer.content = b"\x00\n\xff" * 100_000
    api.download(tmp_path / "x", checkpoint_id=CHECKPOINT, name="x.safetensors")
    assert peer.request == "GET /internal/v1/attempts/att_1/checkpoints/ckpt_1/files/x.safetensors"
    assert (tmp_path / "x").read_bytes() == peer.content


def test_download_that_breaks_off_is_away(peer: Peer, api: AttemptApi, tmp_path: Path) -> None:
    peer.content, peer.cut_after = b"x" * 100_000, 50_000
    peer.headers = {}
    with pytest.raises(Away):
        api.download(tmp_path / "x", checkpoint_id=CHECKPOINT, name="x.safetensors")


def test_refused_download_writes_no_file(peer: Peer, api: AttemptApi, tmp_path: Path) -> None:
    peer.status, peer.content = 404, PROBLEM.format(kind="not_found").encode()
    with pytest.raises(Refused, match="404: why not"):
        api.download(tmp_path / "x", checkpoint_id=CHECKPOINT, name="x.safetensors")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (401, "unauthenticated", Fenced),
        (409, "fenced", Fenced),
        (409, "conflict", Refused),
        (404, "not_found", Refused),
        (413, "too_large", Refused),
        (422, "invalid", Refused),
        (429, "too_many", Away),
        (500, "internal", Away),
        (502, "", Away),
        (503, "unavailable", Away),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda api, path: api.ended(ENDED),
        lambda api, path: api.upload(path, checkpoint_id="c", name="n", sha256="s"),
        lambda api, path: api.download(path, checkpoint_id="c", name="n"),
    ],
    ids=["post", "upload", "download"],
)
def test_every_refusal_has_one_word(
    peer: Peer,
    api: AttemptApi,
    tmp_path: Path,
    call: Callable[[AttemptApi, Path], None],
    status: int,
    kind: str,
    error: type[Exception],
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    peer.status, peer.content = status, PROBLEM.format(kind=kind).encode()
    with pytest.raises(error):
        call(api, tmp_path / "file")


@pytest.mark.parametrize(
    ("status", "error"), [(401, Away), (403, Away), (404, Away), (413, Refused)]
)
def test_something_in_between_does_not_speak_for_the_service(
    peer: Peer, api: AttemptApi, status: int, error: type[Exception]
) -> None:
    """Some proxies answer 404 while what is behind them restarts; less at a time may pass a 413."""
    peer.status, peer.problem_type = status, "text/html"
    peer.content = b"<html>the proxy says no</html>"
    with pytest.raises(error, match=f"{status}.*<html>the proxy says no"):
        api.ended(ENDED)


def test_what_the_service_lacks_is_known_from_its_answer(peer: Peer, api: AttemptApi) -> None:
    peer.status = 409
    peer.content = b'{"type": "urn:x:events_missing", "detail": "saw [9]", "applied_seq": 4}'
    with pytest.raises(EventsMissing, match="409: saw") as raised:
        api.report(0, [b"{}"])
    assert raised.value.applied_seq == 4


def test_nobody_listening_is_away() -> None:
    with (
        AttemptApi("http://127.0.0.1:9", attempt_id="att_1", token="secret") as api,
        pytest.raises(Away, match="ConnectError"),
    ):
        api.ended(ENDED)


def test_retrying_ends_with_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roadless.worker.retry.FIRST_SECONDS", 0.001)
    outcomes: list[Exception] = [Away("1"), Away("2"), Fenced("3"), Away("4")]

    def call() -> None:
        raise outcomes.pop(0)

    with pytest.raises(Fenced):
        call_with_retry(call, seconds=10)
    assert len(outcomes) == 1


def test_retrying_gives_up_after_its_time() -> None:
    def call() -> None:
        raise Away("for good")

    with pytest.raises(Away, match="for good"):
        call_with_retry(call, seconds=0.1)
