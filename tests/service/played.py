"""A runner and ranks that are played by the test, and the app as they and users see it."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from roadless.service.contract.ids import new_id
from roadless.service.contract.reports.cluster import Assignment

NODE = {"node_id": "node-1", "cpus": 4, "gpus": 0, "free_cpus": 4, "free_gpus": 0}


@dataclass
class Rank:
    """The lead rank of one attempt, as the service hears it."""

    http: TestClient
    assignment: dict[str, Any]
    last_seq: int = 0

    @property
    def url(self) -> str:
        return f"/internal/v1/attempts/{self.assignment['attempt_id']}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.assignment['token']}"}

    def brief(self) -> dict[str, Any]:
        return self.http.get(self.url, headers=self.headers).json()

    def report(self, *events: dict[str, Any]) -> Any:
        """Number the events and send them; the answer is the response."""
        numbered = []
        for event in events:
            self.last_seq += 1
            numbered.append({**event, "seq": self.last_seq})
        return self.send(numbered)

    def send(self, events: list[dict[str, Any]]) -> Any:
        body = {"rank": 0, "events": events}
        return self.http.post(f"{self.url}/report", json=body, headers=self.headers)

    def ended(self, reason: str = "rank_died") -> Any:
        body = {"reason": reason, "message": "rank 0 exited with -9"}
        return self.http.post(f"{self.url}/ended", json=body, headers=self.headers)

    def upload(self, checkpoint_id: str, content: bytes, name: str = "model.safetensors") -> Any:
        sha256 = hashlib.sha256(content).hexdigest()
        url = f"{self.url}/checkpoints/{checkpoint_id}/files/{name}"
        headers = {**self.headers, "X-Content-SHA256": sha256}
        return self.http.put(url, content=content, headers=headers)

    def save(
        self, step: int, *, kind: str = "eval", loss: float = 1.0, content: bytes = b"x"
    ) -> str:
        """Upload and announce a checkpoint of one file; return its id."""
        checkpoint_id = new_id("ckpt")
        assert self.upload(checkpoint_id, content).status_code == 204
        answer = self.report(self.saved(checkpoint_id, step, kind=kind, loss=loss, content=content))
        assert answer.status_code == 200, answer.text
        return checkpoint_id

    def saved(
        self, checkpoint_id: str, step: int, *, kind: str, loss: float, content: bytes
    ) -> dict[str, Any]:
        receipt = {
            "loss": loss,
            "num_examples": 1,
            "batch_size": 1,
            "threads": 1,
            "torch_version": "2",
            "data_fingerprint": "0",
        }
        file = {
            "name": "model.safetensors",
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        manifest = {
            "checkpoint_id": checkpoint_id,
            "job_id": self.assignment["job_id"],
            "attempt_id": self.assignment["attempt_id"],
            "kind": kind,
            "step": step,
            "samples": step,
            "spec": self.brief()["spec"],
            "evaluation": receipt if kind == "eval" else None,
            "files": [file],
        }
        return {"kind": "checkpoint", "manifest": manifest}


def step_event(step: int, loss: float = 1.0) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": step,
        "samples": 64 * step,
        "tokens": 0,
        "wall_seconds": step / 10,
        "gpu_seconds": 0,
        "values": {"train.loss": loss},
    }


def state_event(assignment: Assignment, step: int) -> dict[str, Any]:
    """A training state, as the lead rank announces it."""
    manifest = {
        "checkpoint_id": new_id("ckpt"),
        "job_id": assignment.job_id,
        "attempt_id": assignment.attempt_id,
        "kind": "resume",
        "step": step,
        "samples": step,
        "files": [{"name": "a", "size": 1, "sha256": "0" * 64}],
    }
    return {"kind": "checkpoint", "manifest": manifest}


def eval_event(step: int, loss: float = 1.0) -> dict[str, Any]:
    return {
        "kind": "eval",
        "step": step,
        "samples": 64 * step,
        "tokens": 0,
        "wall_seconds": step / 10,
        "gpu_seconds": 0,
        "loss": loss,
        "metrics": {"eval.accuracy": 0.5},
    }


class Service:
    """The app as users and runners see it."""

    def __init__(self, http: TestClient, home: Path) -> None:
        self.http = http
        self.user = {"Authorization": f"Bearer {(home / 'user.token').read_text().strip()}"}
        self.runner = {"Authorization": f"Bearer {(home / 'runner.token').read_text().strip()}"}
        self._runner_id = ""

    def get(self, path: str, **options: Any) -> Any:
        return self.http.get(f"/v1{path}", headers=self.user, **options)

    def post(self, path: str, **options: Any) -> Any:
        headers = {**self.user, **options.pop("headers", {})}
        return self.http.post(f"/v1{path}", headers=headers, **options)

    def submit(self, spec: dict[str, Any]) -> str:
        answer = self.post("/jobs", json=spec)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def job(self, job_id: str) -> dict[str, Any]:
        return self.get(f"/jobs/{job_id}").json()

    def phase(self, job_id: str) -> str:
        return self.job(job_id)["phase"]

    def sync(self, *, alive: Any = (), released: Any = (), node: Any = None) -> dict[str, Any]:
        if not self._runner_id:
            url, body = "/internal/v1/runners", {"name": "here"}
            answer = self.http.post(url, json=body, headers=self.runner)
            self._runner_id = answer.json()["runner_id"]
        body = {
            "nodes": [NODE | (node or {})],
            "alive": list(alive),
            "released": list(released),
            "wait_seconds": 0,
        }
        url = f"/internal/v1/runners/{self._runner_id}/sync"
        answer = self.http.post(url, json=body, headers=self.runner)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def claim(self, **view: Any) -> Rank:
        """Have the runner take the one job that waits, once the service lets go of its row."""
        for _ in range(50):
            if found := self.sync(**view)["start"]:
                break
            time.sleep(0.02)
        (assignment,) = found
        return Rank(self.http, assignment)

    def running(self, spec: dict[str, Any], steps: int = 1) -> tuple[str, Rank]:
        """A job whose attempt has said ``steps`` steps."""
        job_id = self.submit(spec)
        rank = self.claim()
        self.sync(alive=[rank.assignment["attempt_id"]], node={"free_cpus": 2})
        rank.report(*(step_event(step) for step in range(1, steps + 1)))
        return job_id, rank
