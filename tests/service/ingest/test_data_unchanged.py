"""The next attempt is told which data the state that it resumes from was trained on."""

from typing import Any

import pytest
from played import Service, step_event


def started(fingerprint: str | None) -> dict[str, Any]:
    provenance = {} if fingerprint is None else {"data_fingerprint": fingerprint}
    return {"kind": "started", "resumed_step": 0, "world_size": 2, "provenance": provenance}


@pytest.mark.parametrize("fingerprint", ["abc", None])
def test_the_fingerprint_is_that_of_the_attempt_which_saved_the_state(
    service: Service, digits_spec: dict[str, Any], fingerprint: str | None
) -> None:
    service.submit(digits_spec)
    first = service.claim()
    assert first.brief()["data_fingerprint"] is None
    first.report(started(fingerprint), step_event(1))
    first.save(1, kind="resume")
    first.ended()
    service.sync(released=[first.assignment["attempt_id"]])
    second = service.claim()
    assert second.brief()["data_fingerprint"] == fingerprint
    second.report(started("of another, which saves nothing"), step_event(2))
    second.ended()
    service.sync(released=[second.assignment["attempt_id"]])
    assert service.claim().brief()["data_fingerprint"] == fingerprint


def test_so_are_those_of_the_evaluation_sets_that_it_had(
    service: Service, digits_spec: dict[str, Any]
) -> None:
    known = {"data_fingerprint": "a", "data_fingerprint.shifted": "b", "data_fingerprint.c": "d"}
    service.submit(digits_spec)
    first = service.claim()
    assert first.brief()["set_fingerprints"] == {}
    first.report({**started(None), "provenance": {**known, "torch": "2"}}, step_event(1))
    first.save(1, kind="resume")
    first.ended()
    service.sync(released=[first.assignment["attempt_id"]])
    brief = service.claim().brief()
    assert brief["set_fingerprints"] == {"shifted": "b", "c": "d"}
    assert brief["data_fingerprint"] == "a"
