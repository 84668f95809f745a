"""One of everything that a path can name: a job whose rank trains, checkpoints, files, a wheel."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from played import Rank, Service, eval_event, step_event
from wheel_maker import make_wheel

from roadless.service.contract.ids import new_id

CONTENT = b"a,b,label\n" + b"1,2,0\n2,1,1\n" * 20
TRIES = 20


@dataclass(frozen=True)
class Everything:
    """What there is, by the names that paths have for it."""

    service: Service
    rank: Rank
    known: dict[str, str]

    @classmethod
    def made(cls, http: TestClient, *, home: Path, folder: Path) -> "Everything":
        """Make all of it. ``folder``: for a wheel."""
        service = Service(http, home)
        dataset_id, wheel = _dataset(service), make_wheel(folder)
        wheel_id = _put(service, f"/v1/wheels/{wheel.name}", wheel.read_bytes()).json()["id"]
        rank = _training(service, dataset_id=dataset_id, wheel_id=wheel_id)
        service.http.put(
            "/v1/secrets/HF_TOKEN", json={"value": "hf_012345"}, headers=service.user
        ).raise_for_status()
        known = {
            "job_id": rank.assignment["job_id"],
            "attempt_id": rank.assignment["attempt_id"],
            "checkpoint_id": rank.save(1, content=CONTENT),
            "runner_id": service._runner_id,
            "dataset_id": dataset_id,
            "wheel_id": wheel_id,
            "file_name": wheel.name,
        }
        return cls(service, rank, known)

    def name_in(self, path: str) -> str:
        """What ``{name}`` may be in this path."""
        for part, name in (("/datasets/", "a.csv"), ("/metrics/", "train.loss")):
            if part in path:
                return name
        return "HF_TOKEN" if "/secrets/" in path else "model.safetensors"

    @property
    def is_whole(self) -> bool:
        """Whether all of it is still there, and the rank still trains."""
        kinds = {"jobs": "job_id", "checkpoints": "checkpoint_id", "datasets": "dataset_id"}
        return self.rank.http.get(self.rank.url, headers=self.rank.headers).is_success and all(
            self.service.get(f"/{kind}/{self.known[name]}").is_success
            for kind, name in {**kinds, "wheels": "wheel_id"}.items()
        )

    def headers(self, caller: str) -> dict[str, str]:
        """Who asks: ``user``, ``runner``, ``attempt`` or nobody."""
        told = {
            "user": self.service.user,
            "runner": self.service.runner,
            "attempt": self.rank.headers,
        }
        return told.get(caller, {})


def _put(service: Service, path: str, content: bytes) -> Any:
    headers = {**service.user, "X-Content-SHA256": hashlib.sha256(content).hexdigest()}
    answer = service.http.put(path, content=content, headers=headers)
    answer.raise_for_status()
    return answer


def _dataset(service: Service) -> str:
    body = {"name": new_id("x"), "format": "csv"}
    dataset_id = str(service.post("/datasets", json=body).json()["id"])
    _put(service, f"/v1/datasets/{dataset_id}/files/a.csv?offset=0", CONTENT)
    service.post(f"/datasets/{dataset_id}/seal").raise_for_status()
    return dataset_id


def _training(service: Service, *, dataset_id: str, wheel_id: str) -> Rank:
    job_id = service.submit(
        {
            "model": {"kind": "entry_point", "factory": "our_models:small", "wheel": wheel_id},
            "data": {"kind": "dataset", "dataset_id": dataset_id, "target": "label"},
            "task": "classification",
            "optimizer": {"name": "adamw_schedulefree"},
        }
    )
    rank = Rank(service.http, _claimed(service, job_id))
    rank.report(step_event(1), eval_event(1)).raise_for_status()
    return rank


def _claimed(service: Service, job_id: str) -> dict[str, Any]:
    """The assignment of this job; there may be others that wait."""
    for _ in range(TRIES):
        started = service.sync(node={"cpus": 10**6, "free_cpus": 10**6})["start"]
        for one in started:
            if one["job_id"] == job_id:
                return dict(one)
    raise AssertionError(f"expected the runner to get {job_id}, saw others {TRIES} times")
