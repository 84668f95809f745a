"""Every field of a specification, alone beside the least that a job needs: one answer, and kept.

A rule over two fields must also hold when one of them is left out: what a default breaks would be
accepted, and its own copy refused when it is read again.
"""

import pytest
from hypothesis import HealthCheck, example, given, settings
from pydantic import ValidationError
from spec_changes import FIELDS, changes, with_change

from roadless.service.contract.job.spec import JobSpec


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes())
@example((1, ("data", "bearer"), "A_TOKEN"))
@example((0, ("budget",), {"max_gpu_seconds": 1.0}))
@example((0, ("schedule",), {"name": "wsd"}))
def test_what_is_accepted_is_read_again_as_it_was(change):
    try:
        spec = JobSpec.model_validate(with_change(change))
    except ValidationError:
        return
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_every_field_is_tried():
    """No field of the specification is so deep that the strategies never reach it."""
    assert {path[0] for fields in FIELDS for path in fields} == {
        name for name in JobSpec.model_fields if name not in ("task",)
    }


def test_a_bearer_without_secrets_is_refused():
    with pytest.raises(ValidationError, match=r"expected A_TOKEN, which data\.bearer names"):
        JobSpec.model_validate(with_change((1, ("data", "bearer"), "A_TOKEN")))
