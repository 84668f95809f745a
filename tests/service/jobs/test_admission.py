"""What new jobs may not ask for, and stored ones may have: they stay readable, and can go on."""

import pytest
from sqlalchemy import update

from roadless.service.contract.ids import new_id
from roadless.service.contract.job.spec import JobSpec
from roadless.service.db.tables import JobRow

WSD = {"optimizer": {"name": "adamw"}, "schedule": {"name": "wsd", "warmup_steps": 2}}
#: Warmup and cooldown had 2 + 1 of 3 steps while shares were cut; rounded they have 2 + 2.
ROUNDED = {**WSD, "schedule": {**WSD["schedule"], "cooldown_len": 0.5}, "budget": {"max_steps": 3}}
#: Changes of a specification that were allowed once, and where a new one is refused.
ONCE_ALLOWED = [
    ({"budget": {"max_steps": 2**60 + 1}}, "/budget/max_steps"),
    ({"budget": {"max_samples": 10**30}}, "/budget/max_samples"),
    ({"budget": {"max_seconds": 1e300}}, "/budget/max_seconds"),
    ({**WSD, "budget": {"max_steps": 10**30}}, "/budget/max_steps"),
    (ROUNDED, "/schedule"),
]
MLP = {"kind": "preset", "name": "mlp"}
SEVEN = "expected warmup and cooldown within the 6 steps, saw 7 steps"
CSV = {"kind": "files", "format": "csv", "path": "/data/a"}


@pytest.fixture
def database_url(tmp_path):
    """Specifications are text in every kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


def stored(service, digits_spec, change):
    """The id of a job whose specification an earlier release has stored."""
    job_id = service.submit(digits_spec)
    spec = {**service.job(job_id)["spec"], **change}
    with service.http.app.state.db.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(spec=spec))
    return job_id


def fault_of(answer):
    assert answer.status_code == 422, answer.text
    (fault,) = answer.json()["errors"]
    return fault["pointer"], fault["message"]


@pytest.mark.parametrize(("change", "pointer"), ONCE_ALLOWED)
def test_a_new_job_is_refused(service, digits_spec, change, pointer):
    answer = service.post("/jobs", json={**digits_spec, **change})
    found, message = fault_of(answer)
    assert found == pointer
    assert "expected" in message
    assert "saw" in message
    assert service.get("/jobs").json()["data"] == []


@pytest.mark.parametrize(("change", "pointer"), ONCE_ALLOWED)
def test_a_stored_one_can_be_listed_claimed_paused_and_stopped(
    service, digits_spec, change, pointer
):
    job_id = stored(service, digits_spec, change)
    (listed,) = service.get("/jobs").json()["data"]
    assert JobSpec.model_validate(listed["spec"]).budget is not None
    for action in ("pause", "resume", "cancel"):
        assert service.post(f"/jobs/{job_id}/{action}").status_code == 202, pointer


def test_columns_are_distinct_in_new_jobs_only(service, digits_spec):
    data = {"data": {**CSV, "target": "y", "columns": ["a", "y"]}, "model": MLP}
    pointer, message = fault_of(service.post("/jobs", json={**digits_spec, **data}))
    assert (pointer, "saw 'y' as both" in message) == ("/data", True)
    job_id = stored(service, digits_spec, data)
    assert service.job(job_id)["spec"]["data"]["columns"] == ["a", "y"]


IMPOSSIBLE = [
    {**CSV, "target": "y", "path": "https://files.example:0/a.csv"},
    {**CSV, "target": "y", "path": ["/data/a", "https://files.example/*.csv"]},
    {**CSV, "target": "y", "eval": {"path": "s3://bucket"}},
    {"kind": "files", "format": "text", "path": "/data/a", "tokenizer": "x" * 256},
    {"kind": "huggingface", "path": "./" + "x" * 256, "text": "t"},
    {"kind": "dataset", "dataset_id": new_id("ds"), "text": "t", "files": "s3://bucket/a"},
]


@pytest.mark.parametrize("data", IMPOSSIBLE, ids=lambda data: str(data)[-40:])
def test_data_that_no_node_can_read_is_refused_in_new_jobs_only(service, digits_spec, data):
    is_text = "target" not in data
    fields = {
        "model": {"kind": "preset", "name": "gpt"} if is_text else MLP,
        "task": "causal_lm" if is_text else "classification",
    }
    pointer, message = fault_of(service.post("/jobs", json={**digits_spec, **fields, "data": data}))
    assert pointer == "/data"
    assert message.startswith("expected ")
    job_id = stored(service, digits_spec, {**fields, "data": data})
    assert service.job(job_id)["spec"]["data"]["kind"] == data["kind"]


def test_data_of_a_further_set_is_asked_the_same(service, digits_spec):
    one = {"name": "other", "data": {**CSV, "target": "y", "path": "http://h:99999/a.csv"}}
    spec = {**digits_spec, "evaluation": {"every_steps": 5, "sets": [one]}}
    pointer, message = fault_of(service.post("/jobs", json=spec))
    assert pointer == "/evaluation/sets/0/data"
    assert "expected a port from 1 to 65535" in message


def test_a_patch_asks_of_the_new_budget_what_a_new_job_is_asked(service, digits_spec):
    job_id = stored(service, digits_spec, {"budget": {"max_steps": 2**61}})
    url, headers = f"/v1/jobs/{job_id}", {**service.user, "If-Match": "*"}

    def patch(**fields):
        return service.http.patch(url, json=fields, headers=headers)

    assert patch(name="other").status_code == 200, "which leaves the budget alone"
    answer = patch(budget={"max_steps": 2**60 + 1})
    assert fault_of(answer)[0] == "/budget/max_steps"
    assert patch(budget={"max_steps": 2**60}).status_code == 200


def test_an_extension_has_whole_steps_too(service, digits_spec):
    """Warmup 2 and a cooldown over 0.76 of 6 steps: 2 + 4 cut, 2 + 5 rounded."""
    digits_spec = {**digits_spec, **WSD, "budget": {"max_steps": 4}}
    job_id = service.submit(digits_spec)
    plan = {"kind": "cooldown", "cooldown_len": 0.76}
    answer = service.post(f"/jobs/{job_id}/extend", json={"steps": 2, "plan": plan})
    assert fault_of(answer) == ("/plan", SEVEN)
    plan["cooldown_len"] = 0.6
    answer = service.post(f"/jobs/{job_id}/extend", json={"steps": 2, "plan": plan})
    assert answer.status_code == 202
