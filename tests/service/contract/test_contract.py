"""The wire: what users write is strict, what machines say is lenient, and nothing is lost."""

import json
import math
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from roadless.service.contract import resources
from roadless.service.contract.checkpoint.manifest import CheckpointFile, Manifest
from roadless.service.contract.ids import CHECKPOINT_ID_PATTERN, new_id
from roadless.service.contract.job import models
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.reports import events
from roadless.service.contract.reports.cluster import AttemptBrief, Sync
from roadless.service.contract.states import (
    CLAIMABLE,
    REOPENING,
    RETRYABLE,
    TERMINAL,
    TRANSITIONS,
    Phase,
    Reason,
)

EVENT = TypeAdapter(events.Event)
FILE = {"name": "a", "size": 1, "sha256": "0" * 64}
MANIFEST = {
    "checkpoint_id": "ckpt_x",
    "job_id": "job_x",
    "attempt_id": "att_x",
    "kind": "eval",
    "step": 1,
    "samples": 1,
    "files": [FILE],
}
POSITION = {"step": 1, "samples": 2, "tokens": 0, "wall_seconds": 0.5, "gpu_seconds": 0}


# ---- specifications ------------------------------------------------------------------------------


def test_the_example_of_the_interface_is_valid_and_comes_back_whole(digits_spec):
    parsed = JobSpec.model_validate(digits_spec)
    assert JobSpec.model_validate_json(parsed.model_dump_json()) == parsed
    told = parsed.model_dump(mode="json")
    for part, value in digits_spec.items():
        assert told[part] == value or told[part].items() >= value.items()


def test_only_model_data_task_and_optimizer_are_needed(digits_spec):
    needed = {part: digits_spec[part] for part in ("model", "data", "task", "optimizer")}
    parsed = JobSpec.model_validate(needed)
    assert (parsed.budget, parsed.priority, parsed.project) == (None, 0, "default")
    for part in needed:
        with pytest.raises(ValidationError, match=part):
            JobSpec.model_validate({key: needed[key] for key in needed if key != part})


def test_the_language_model_of_the_interface_is_valid(digits_spec):
    parsed = JobSpec.model_validate(
        digits_spec
        | {
            "model": {"kind": "preset", "name": "gpt"},
            "data": {"kind": "builtin", "name": "python_stdlib_bytes"},
            "task": "causal_lm",
            "budget": None,
        }
    )
    assert parsed.budget is None


def test_an_unknown_field_is_refused_wherever_it_is(digits_spec):
    written_out = JobSpec.model_validate(digits_spec).model_dump_json()
    objects = [name for name, value in json.loads(written_out).items() if isinstance(value, dict)]
    assert len(objects) == 10
    for name in [None, *objects]:
        spoilt = json.loads(written_out)
        (spoilt if name is None else spoilt[name])["surprise"] = {"x": 1}
        with pytest.raises(ValidationError, match="surprise"):
            JobSpec.model_validate(spoilt)


@pytest.mark.parametrize("word", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["lr", "weight_decay", "r", "weight_lr_power", "eps"])
def test_no_number_of_a_specification_is_infinite(digits_spec, field, word):
    digits_spec["optimizer"] = {**digits_spec["optimizer"], field: word}
    with pytest.raises(ValidationError, match="finite"):
        JobSpec.model_validate(digits_spec)


def test_a_specification_cannot_be_changed(digits_spec):
    parsed = JobSpec.model_validate(digits_spec)
    with pytest.raises(ValidationError, match="frozen"):
        parsed.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        parsed.optimizer.lr = 1.0


@given(st.integers(1, 4096), st.integers(1, 64))
def test_ranks_share_the_batch_evenly_or_not_at_all(batch_size, num_workers):
    described = {
        "model": {"kind": "preset", "name": "mlp"},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "sgd_schedulefree"},
        "training": {"batch_size": batch_size},
        "parallelism": {"num_workers": num_workers},
    }
    if batch_size % num_workers:
        with pytest.raises(ValidationError, match="num_workers to divide"):
            JobSpec.model_validate(described)
    else:
        JobSpec.model_validate(described)


@pytest.mark.parametrize(("width", "heads"), [(96, 5), (10, 4), (8, 8)])
def test_heads_divide_the_width(width, heads):
    with pytest.raises(ValidationError, match="multiple of 2"):
        models.GptPreset(kind="preset", name="gpt", width=width, heads=heads)


# ---- events ------------------------------------------------------------------------------------


SAID = [
    {"kind": "started", "world_size": 2, "provenance": {"torch": "2"}},
    {"kind": "step", **POSITION, "values": {"train.loss": 1.5}},
    {"kind": "eval", **POSITION, "loss": 1.5, "metrics": {"eval.accuracy": 0.5}},
    {"kind": "checkpoint", "manifest": MANIFEST, "evaluations_served": 1},
    {"kind": "notice", "code": "a", "message": "b"},
    {"kind": "finished", "reason": "budget_reached", "step": 1},
    {"kind": "failed", "reason": "non_finite_loss", "message": "nan"},
]


@pytest.mark.parametrize("said", SAID, ids=lambda said: said["kind"])
def test_every_event_comes_back_as_it_was_said(said):
    event = EVENT.validate_python({**said, "seq": 7})
    again = EVENT.validate_json(EVENT.dump_json(event))
    assert (again, again.seq, again.kind) == (event, 7, said["kind"])


@pytest.mark.parametrize("said", SAID, ids=lambda said: said["kind"])
def test_an_event_of_a_newer_peer_is_read_without_what_is_new(said):
    assert EVENT.validate_python({**said, "new": 1}) == EVENT.validate_python(said)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_number_survives_the_wire_bit_for_bit(value):
    said = events.StepMetrics(**POSITION, values={"train.loss": value})
    text = said.model_dump_json()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    heard = events.StepMetrics.model_validate_json(text).values["train.loss"]
    if math.isnan(value):
        assert math.isnan(heard)
    else:
        assert struct.pack("<d", heard) == struct.pack("<d", value)


def test_a_report_has_a_bound():
    notice = {"kind": "notice", "code": "a", "message": "b"}
    events.Report(rank=0, events=[notice] * events.MAX_EVENTS_PER_REPORT)
    with pytest.raises(ValidationError, match="at most 2000"):
        events.Report(rank=0, events=[notice] * (events.MAX_EVENTS_PER_REPORT + 1))


@pytest.mark.parametrize("name", ["", "Loss", "a b", "1a", "a/b", "a" * 101, "é", "a\n"])
def test_a_metric_has_a_plain_name(name):
    with pytest.raises(ValidationError):
        events.StepMetrics(**POSITION, values={name: 1.0})


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "a/b", "a\\b", "a\x00", "a\n", "a b", "ä", "a" * 129]
)
def test_a_file_has_a_plain_name(name):
    with pytest.raises(ValidationError):
        CheckpointFile(**{**FILE, "name": name})


def test_a_manifest_names_at_least_one_file_and_sums_them_up():
    with pytest.raises(ValidationError, match="at least 1"):
        Manifest(**{**MANIFEST, "files": []})
    files = [{**FILE, "size": 2}, {**FILE, "name": "b", "size": 3}]
    assert Manifest(**{**MANIFEST, "files": files}).total_bytes == 5


def test_a_sync_waits_half_a_minute_at_most():
    with pytest.raises(ValidationError, match="wait_seconds"):
        Sync(nodes=[], wait_seconds=31)


def test_a_brief_carries_the_specification_whole(digits_spec):
    brief = AttemptBrief(attempt_id="a", job_id="j", fence=1, spec=digits_spec, resume=MANIFEST)
    assert AttemptBrief.model_validate_json(brief.model_dump_json()) == brief


# ---- answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [math.nan, math.inf])
def test_an_answer_spells_what_is_not_finite_as_null(word):
    summary = resources.MetricSummary(name="a", count=1, last=word, min=None)
    assert json.loads(summary.model_dump_json())["last"] is None


# ---- ids and states ------------------------------------------------------------------------------


def test_ids_differ_fit_their_pattern_and_sort_by_age():
    ids = [new_id("ckpt") for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(re.fullmatch(CHECKPOINT_ID_PATTERN, one) for one in ids)
    times = [one[5:15] for one in ids]
    assert times == sorted(times)


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**48 - 1))
def test_a_later_id_is_a_larger_text(first, second):
    assert (id_born_at(first) < id_born_at(second)) == (first < second) or first == second


def id_born_at(milliseconds):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time_ns", lambda: milliseconds * 1_000_000)
        return new_id("job")


def test_a_phase_is_terminal_or_has_a_way_on():
    moves = {key: after for key, after in TRANSITIONS.items() if key[1] not in REOPENING}
    leaving = {before for (before, _), after in moves.items() if after != before}
    assert leaving == set(Phase) - TERMINAL
    assert not TERMINAL & CLAIMABLE


def test_what_a_user_must_mend_is_never_tried_again():
    theirs = {reason for reason in Reason if reason.startswith("data_")}
    assert not RETRYABLE & (theirs | {Reason.NON_FINITE_LOSS, Reason.RETRIES_EXHAUSTED})
