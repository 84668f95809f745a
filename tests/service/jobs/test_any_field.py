"""Whatever field a specification has beside the least: an answer that says so, never a 500."""

import json

from hypothesis import HealthCheck, example, given, settings
from spec_changes import changes, with_change


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes())
@example((1, ("data", "bearer"), "A_TOKEN"))
@example((1, ("data", "eval"), {"path": "https://[::1/a.csv"}))
@example((2, ("data", "separator"), "\ud800"))
@example((3, ("data", "revision"), "a\0b"))
@example((0, ("labels",), {"a\0": "b"}))
@example((0, ("budget",), {"max_seconds": 1e308}))
def test_a_job_with_any_one_field_is_taken_or_refused(service, change):
    body = json.dumps(with_change(change))  # ASCII, in which a lone surrogate can be sent
    headers = {**service.user, "Content-Type": "application/json"}
    answer = service.http.post("/v1/jobs", content=body, headers=headers)
    assert answer.status_code in (201, 404, 409, 422), answer.text
    if answer.status_code == 201:
        assert service.job(answer.json()["id"])["spec"] == answer.json()["spec"]
