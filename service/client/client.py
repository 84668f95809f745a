"""The Python SDK: the REST interface as methods, with frozen values of the contract as answers.

It retries what is safe to retry: every POST carries an Idempotency-Key, so a request whose answer
was lost on the way has its effect once. Errors:

    ClientError
      ApiError       the service refused; carries its problem details
      Unreachable    no answer after all retries
      NotJson        what is to be sent has a value that JSON does not have
      Corrupt        downloaded bytes do not have the hash that the manifest promises
      WaitTimeout    the job did not get there in time
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from roadless.service.contract.checkpoint.manifest import CheckpointFile, CheckpointKind, Manifest
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.requests import Extend, JobPatch
from roadless.service.contract.resources import (
    Checkpoint,
    CurvePoint,
    EvalCurve,
    Job,
    JobEvent,
    MetricBuckets,
    MetricSummary,
    Page,
    Problem,
    ProblemError,
)
from roadless.service.contract.states import TERMINAL, Phase
from roadless.service.contract.theory.analysis import Norms, Theory
from roadless.service.contract.theory.plan import Plan, PlanRequest

DEFAULT_URL = "http://127.0.0.1:8700"
TIMEOUT_SECONDS = 30.0
#: Seconds before each retry.
PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)
LONGEST_PAUSE_SECONDS = 5.0
#: After this long without an answer there is no further try: a service may take what is sent and
#: stay silent for the whole timeout each time.
PATIENCE_SECONDS = 20.0
_JSON_TYPE = {"Content-Type": "application/json"}

Resource = TypeVar("Resource", bound=BaseModel)
OnProgress = Callable[[int], None]


class ClientError(Exception):
    """Root of what this module raises."""


class ApiError(ClientError):
    """The service refused. ``errors`` says where in the request body, and what was expected."""

    def __init__(
        self, status: int, title: str, *, detail: str, errors: tuple[ProblemError, ...] = ()
    ) -> None:
        super().__init__(f"{status} {title}: {detail}")
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = errors


class Unreachable(ClientError):
    """No answer after all retries."""


class NotJson(ClientError):
    """What is to be sent has a value that JSON does not have, such as a date or an infinity."""


class Corrupt(ClientError):
    """Downloaded bytes do not have the hash that the manifest promises."""


class WaitTimeout(ClientError):
    """The job did not get there in time."""


def home() -> Path:
    """The data folder: ``ROADLESS_HOME`` or ``~/.roadless``."""
    return Path(os.environ.get("ROADLESS_HOME", "~/.roadless")).expanduser()


def find_token() -> str:
    """The user's token: ``ROADLESS_TOKEN``, or the file ``user.token`` in the data folder.

    Raises:
        ClientError: neither is there.
    """
    if token := os.environ.get("ROADLESS_TOKEN"):
        return token
    path = home() / "user.token"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ClientError(
            f"expected a token in ROADLESS_TOKEN or in {path}, saw none ({error.strerror})"
        ) from error


class Client:
    """A connection to one service. Use it as a context manager, or call :meth:`close`."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = _http_url(url or os.environ.get("ROADLESS_URL") or DEFAULT_URL)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {_sendable(token or find_token())}"},
            timeout=TIMEOUT_SECONDS,
            transport=transport,
        )
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self._http.close()

    def submit(
        self, spec: JobSpec | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Job:
        """Create a job. A mapping is sent as it is, so that the service says what is wrong in it.

        Args:
            spec: see ``service/contract/job/spec.py``.
            idempotency_key: the same key never makes a second job; None: a new one.
        """
        body = spec.model_dump(mode="json") if isinstance(spec, JobSpec) else dict(spec)
        return self._post(Job, "/v1/jobs", body=body, key=idempotency_key)

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._get(Job, f"/v1/jobs/{job_id}")

    def jobs(self, *, phase: Phase | None = None) -> Iterator[Job]:
        """All jobs of the project, newest first; pages are fetched as they are needed."""
        return self._pages(Page[Job], "/v1/jobs", phase=phase)

    def pause(self, job_id: str, *, checkpoint: Literal["save", "latest"] = "save") -> Job:
        """Ask the job to release its resources and wait.

        Args:
            job_id: the job.
            checkpoint: "save": evaluate and save first; "latest": leave immediately, and resume
                later from the newest training state.
        """
        return self._post(Job, f"/v1/jobs/{job_id}/pause", body={"checkpoint": checkpoint})

    def resume(self, job_id: str) -> Job:
        """Resume a paused or stopped job from its newest training state."""
        return self._post(Job, f"/v1/jobs/{job_id}/resume")

    def extend(self, job_id: str, asked: Extend | None = None) -> Job:
        """Add to the job's budget; a finished job continues where it ended.

        Args:
            job_id: the job.
            asked: how much is added, and for a schedule with a horizon how its rates continue;
                None: the job becomes open-ended.
        """
        body = asked.model_dump(mode="json", exclude_none=True) if asked else None
        return self._post(Job, f"/v1/jobs/{job_id}/extend", body=body)

    def retry(self, job_id: str) -> Job:
        """Try a failed job again from its newest training state."""
        return self._post(Job, f"/v1/jobs/{job_id}/retry")

    def patch(self, job: Job, changes: JobPatch) -> Job:
        """Change name, labels, priority or budget; only the fields that are set are sent.

        Raises ApiError with status 412 when the job has changed since ``job`` was read.
        """
        headers = {"If-Match": f'"{job.version}"'}
        body = changes.model_dump(mode="json", exclude_unset=True)
        answer = self._send("PATCH", f"/v1/jobs/{job.id}", json=body, headers=headers)
        return Job.model_validate_json(answer.content)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its curves, events and checkpoints."""
        self._send("DELETE", f"/v1/jobs/{job_id}")

    def stop(self, job_id: str) -> Job:
        """Request a graceful end: a last evaluation, a finished model and the training state."""
        return self._post(Job, f"/v1/jobs/{job_id}/stop")

    def cancel(self, job_id: str) -> Job:
        """End the job now; what was saved so far stays."""
        return self._post(Job, f"/v1/jobs/{job_id}/cancel")

    def evaluate(self, job_id: str) -> Job:
        """Request an evaluation and a kept checkpoint now."""
        return self._post(Job, f"/v1/jobs/{job_id}/evaluate")

    def events(self, job_id: str, *, after: str | None = None) -> Iterator[JobEvent]:
        """The job's history after the event with id ``after``, oldest first."""
        return self._pages(Page[JobEvent], f"/v1/jobs/{job_id}/events", after=after)

    def metrics(self, job_id: str) -> list[MetricSummary]:
        """Every series of the job with its number of points, last and smallest value."""
        return self._get(Page[MetricSummary], f"/v1/jobs/{job_id}/metrics").data

    def metric(
        self,
        job_id: str,
        name: str,
        *,
        x: str = "step",
        x_min: float | None = None,
        x_max: float | None = None,
        buckets: int = 500,
    ) -> MetricBuckets:
        """One series in at most ``buckets`` (1 to 2000) buckets.

        Args:
            job_id: the job.
            name: dotted, for instance ``train.loss``.
            x: step, samples, tokens, wall_seconds or gpu_seconds.
            x_min: leave out points before it.
            x_max: leave out points after it.
            buckets: how many at most.
        """
        return self._get(
            MetricBuckets,
            f"/v1/jobs/{job_id}/metrics/{name}",
            x=x,
            x_min=x_min,
            x_max=x_max,
            buckets=buckets,
        )

    def eval_curve(
        self, job_id: str, *, since: int | None = None, bound: bool = False
    ) -> list[CurvePoint]:
        """Evaluations at the averaged point after step ``since``, by step.

        ``bound``: with the convex bound of each, where there is one.
        """
        curve: list[CurvePoint] = []
        path, wanted = f"/v1/jobs/{job_id}/eval-curve", bound or None
        while part := self._get(EvalCurve, path, since=since, bound=wanted).data:
            curve += part
            since = part[-1].step
        return curve

    def theory(
        self,
        job_id: str,
        *,
        distance: float | None = None,
        steps: int | None = None,
        norms: Norms = "logged",
    ) -> Theory:
        """The convex bound beside the eval curve, other schedules, and how to continue.

        Args:
            job_id: the job.
            distance: from start to optimum, > 0; None: as the losses say.
            steps: how far an extension goes; None: twice as far as the job.
            norms: each step's own gradient norm, or an even one.
        """
        wanted = {"distance": distance, "steps": steps, "norms": norms}
        return self._get(Theory, f"/v1/jobs/{job_id}/theory", **wanted)

    def plan(self, request: PlanRequest | Mapping[str, Any]) -> Plan:
        """The best base rates of schedules over a horizon, and how to make a run longer.

        ``request``: see ``service/contract/theory/plan.py``; a mapping is sent as it is.
        """
        if isinstance(request, PlanRequest):
            request = request.model_dump(mode="json")
        return self._post(Plan, "/v1/plan", body=dict(request))

    def checkpoints(
        self, job_id: str, *, kind: CheckpointKind | None = None, best: int | None = None
    ) -> Iterator[Checkpoint]:
        """The job's checkpoints, newest step first, without the specification.

        Args:
            job_id: the job.
            kind: only models, or only training states.
            best: only this many models (1 to 200) with the lowest loss, best first.
        """
        path = f"/v1/jobs/{job_id}/checkpoints"
        return self._pages(Page[Checkpoint], path, kind=kind, best=best)

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """One checkpoint with its files and the specification of its job."""
        return self._get(Checkpoint, f"/v1/checkpoints/{checkpoint_id}")

    def pin(self, checkpoint_id: str) -> Checkpoint:
        """Keep a checkpoint, whatever retention says, until it is unpinned."""
        return self._post(Checkpoint, f"/v1/checkpoints/{checkpoint_id}/pin")

    def unpin(self, checkpoint_id: str) -> Checkpoint:
        """Leave a checkpoint to retention, which next checks it within the hour."""
        return self._post(Checkpoint, f"/v1/checkpoints/{checkpoint_id}/unpin")

    def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Delete a checkpoint with its files; refused for one that is pinned or needed."""
        self._send("DELETE", f"/v1/checkpoints/{checkpoint_id}")

    def wait(
        self,
        job_id: str,
        until: Collection[Phase] = TERMINAL,
        *,
        timeout: float | None = None,
        poll_seconds: float = 0.5,
    ) -> Job:
        """Return the job once its phase is one of ``until``, or terminal.

        Args:
            job_id: the job.
            until: phases to wait for.
            timeout: seconds; None: as long as it takes.
            poll_seconds: between two looks.

        Raises:
            WaitTimeout: the time is up.
        """
        give_up_at = None if timeout is None else time.monotonic() + timeout
        while (job := self.job(job_id)).phase not in until and job.phase not in TERMINAL:
            if give_up_at is not None and time.monotonic() >= give_up_at:
                raise WaitTimeout(
                    f"expected {' or '.join(sorted(until))} within {timeout} s, saw {job.phase}"
                )
            self._sleep(poll_seconds)
        return job

    def download(
        self, checkpoint_id: str, folder: Path, *, on_progress: OnProgress | None = None
    ) -> Manifest:
        """Fetch a checkpoint's files and ``manifest.json`` into ``folder``, which is made.

        ``on_progress`` is called with how many bytes of all files are there.
        """
        checkpoint = self.checkpoint(checkpoint_id)
        folder.mkdir(parents=True, exist_ok=True)
        done = 0
        for file in checkpoint.files:
            report = None if on_progress is None else _shifted(on_progress, done)
            self.download_file(checkpoint_id, file, folder / file.name, on_progress=report)
            done += file.size
        manifest = _manifest(checkpoint)
        (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n")
        return manifest

    def download_file(
        self,
        checkpoint_id: str,
        file: CheckpointFile,
        target: Path,
        *,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """Fetch one file of a checkpoint to ``target``, which appears complete or not at all.

        An interrupted earlier download resumes from ``target`` + ``.part``.

        Args:
            checkpoint_id: the checkpoint.
            file: from the manifest: name, size and hash.
            target: where to.
            on_progress: called with how many bytes of the file are there.

        Raises:
            Corrupt: size or hash differ from the manifest's; the bytes are thrown away.
        """
        part = target.with_name(target.name + ".part")
        report = on_progress or _ignore
        for pause in (*PAUSES, None):
            try:
                self._fetch_rest(checkpoint_id, file, part, report)
                break
            except httpx.TransportError as error:
                if pause is None:
                    raise self._unreachable(error) from error
                self._sleep(pause)
        _check(part, file)
        part.replace(target)
        return target

    def _fetch_rest(
        self, checkpoint_id: str, file: CheckpointFile, part: Path, report: OnProgress
    ) -> None:
        have = part.stat().st_size if part.exists() else 0
        if have >= file.size > 0:
            return
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": f'"{file.sha256}"'}
        url = f"/v1/checkpoints/{checkpoint_id}/files/{file.name}"
        with self._http.stream("GET", url, headers=headers) as response:
            if response.is_error:
                response.read()
                raise _api_error(response)
            resumes = response.status_code == httpx.codes.PARTIAL_CONTENT
            with part.open("ab" if resumes else "wb") as out:
                for chunk in response.iter_bytes():
                    out.write(chunk)
                    report(out.tell())

    def _get(self, kind: type[Resource], path: str, /, **params: Any) -> Resource:
        given = {name: value for name, value in params.items() if value is not None}
        return kind.model_validate_json(self._send("GET", path, params=given).content)

    def _post(
        self,
        kind: type[Resource],
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Resource:
        headers = {"Idempotency-Key": key or secrets.token_urlsafe(18)}
        answer = self._send("POST", path, json=body, headers=headers)
        return kind.model_validate_json(answer.content)

    def _pages(
        self, page: type[Page[Resource]], path: str, /, *, after: str | None = None, **params: Any
    ) -> Iterator[Resource]:
        while True:
            answer = self._get(page, path, after=after, limit=200, **params)
            yield from answer.data
            if not answer.has_more:
                return
            after = answer.last_id

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request that may be repeated, with the retries and errors of every method here.

        Args:
            method: the HTTP method.
            path: below the service's URL.
            **options: of ``httpx.Client.request``.

        Raises NotJson for a body, ``json``, that JSON cannot say.
        """
        return self._send(method, path, **options)

    def _send(
        self, method: str, path: str, *, json: Mapping[str, Any] | None = None, **options: Any
    ) -> httpx.Response:
        """Send until it is answered by something other than 503, or the retries are used up."""
        if json is not None:
            options["content"] = _as_json(json)
            options["headers"] = {**options.get("headers", {}), **_JSON_TYPE}
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        for pause in (*PAUSES, None):
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if pause is None or time.monotonic() > give_up_at:
                    raise self._unreachable(error) from error
            else:
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or pause is None:
                    return _checked(response)
                pause = _pause_asked(response, pause)
            self._sleep(pause)
        raise AssertionError("the last round returns or raises")

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"no answer from {self.url}: {error or type(error).__name__}")


def _http_url(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ClientError(f"expected an http:// or https:// URL of the service, saw {url!r}")
    return url


def _sendable(token: str) -> str:
    """The token; anything else, such as a file with several lines, would never be accepted."""
    if not token or not all("!" <= character <= "~" for character in token):
        raise ClientError(
            "expected a token of ASCII characters without spaces, saw something else; see "
            "ROADLESS_TOKEN, or user.token in the data folder"
        )
    return token


def _as_json(body: Mapping[str, Any]) -> bytes:
    """The body of a request; raises NotJson for a value that JSON, or UTF-8, cannot say."""
    try:
        text = json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise NotJson(f"expected values that JSON has, saw: {error}") from error


def _pause_asked(response: httpx.Response, pause: float) -> float:
    asked = response.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_PAUSE_SECONDS) if asked.isdigit() else pause


def _checked(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise _api_error(response)
    return response


def _api_error(response: httpx.Response) -> ApiError:
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:  # a proxy's answer, or no service of ours
        detail = response.text[:500]
        return ApiError(response.status_code, response.reason_phrase, detail=detail)
    return ApiError(
        problem.status, problem.title, detail=problem.detail, errors=tuple(problem.errors)
    )


def _manifest(checkpoint: Checkpoint) -> Manifest:
    return Manifest(
        checkpoint_id=checkpoint.id,
        job_id=checkpoint.job_id,
        attempt_id=checkpoint.attempt_id,
        kind=checkpoint.kind,
        step=checkpoint.step,
        samples=checkpoint.samples,
        spec=checkpoint.spec.model_dump(mode="json") if checkpoint.spec else {},
        evaluation=checkpoint.evaluation,
        files=tuple(checkpoint.files),
    )


def _check(part: Path, file: CheckpointFile) -> None:
    with part.open("rb") as content:
        seen = hashlib.file_digest(content, "sha256").hexdigest()
    if seen != file.sha256:
        size = part.stat().st_size
        part.unlink()
        raise Corrupt(
            f"expected {file.size} bytes with sha256 {file.sha256} as {file.name}, "
            f"saw {size} bytes with {seen}"
        )


def _shifted(report: OnProgress, done: int) -> OnProgress:
    def shifted(num_bytes: int) -> None:
        report(done + num_bytes)

    return shifted


def _ignore(num_bytes: int) -> None:
    """Ignore progress."""
