"""What a process writes and says has no secret in it, in whatever form a library puts it there."""

import base64
import faulthandler
import html
import io
import json
import logging
import re
import subprocess
import sys
import traceback
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roadless.service.contract.reports.events import Failed, Finished, Notice, Started, StepMetrics
from roadless.service.contract.states import Reason
from roadless.worker.secrets import HIDDEN, RedactedStream, Redactor

VALUE = 'wJalr/K7+"MD ENG=&bPx'

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
values = st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=20).filter(
    lambda value: len("".join(value.split())) >= 4
)
#: Few characters, among them the one that hides: values overlap, and what is left makes new ones.
awkward = st.text("a*b", min_size=4, max_size=8)


@given(st.lists(values, min_size=1, max_size=4), st.lists(texts, min_size=1, max_size=6))
def test_a_redacted_text_holds_no_value(secrets, between):
    text = "".join(part for pair in zip(between, secrets * 6, strict=False) for part in pair)
    redacted = Redactor(secrets).redact(text + "".join(secrets))
    assert not [value for value in secrets if value in redacted]


@example(["a***"], "aaa***")
@example(["****"], "*" * 20)
@example(["b***", "aa**"], "aa**aa**b***")
@given(st.lists(awkward, min_size=1, max_size=4), st.text("a*b", max_size=60))
def test_no_value_is_made_by_hiding_others(secrets, text):
    redacted = Redactor(secrets).redact(text)
    assert not [value for value in secrets if value in redacted]


@given(st.lists(values, max_size=4), texts)
def test_a_text_without_a_value_stays_as_it_is(secrets, text):
    redactor = Redactor(secrets)
    if redactor.redact(text) != text:
        assert HIDDEN in redactor.redact(text)
    assert Redactor().redact(text) == text


@given(values, texts, texts)
def test_base64_of_a_text_with_a_value_in_it_does_not_tell_the_value(value, before, after):
    """As in the header of basic authentication: its middle is hidden at any offset."""
    content = (before + value + after).encode()
    start = len(before.encode())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        redacted = Redactor([value]).redact(encode(content).decode())
        # Characters that hold bits of the value alone.
        first, last = -(-8 * start // 6), 8 * (start + len(value.encode())) // 6
        assert encode(content).decode()[first:last] not in redacted


@pytest.mark.parametrize(
    "written",
    [
        VALUE,
        quote(VALUE, safe=""),
        quote(VALUE),
        quote_plus(VALUE),
        urlencode({"key": VALUE}),
        re.sub("%..", lambda code: code[0].lower(), quote(VALUE, safe="")),
        json.dumps({"key": VALUE}),
        repr({"key": VALUE}),
        repr(VALUE.encode()),
        html.escape(VALUE),
        base64.b64encode(f"user:{VALUE}".encode()).decode(),
        base64.urlsafe_b64encode(VALUE.encode()).decode(),
    ],
)
def test_every_form_of_a_value_is_hidden(written):
    redacted = Redactor([VALUE]).redact(f"GET https://host/?key={written}&x=1 failed")
    for part in ("wJalr", "bPx", base64.b64encode(b"wJalr").decode()[:6]):
        assert part not in redacted
    assert redacted.startswith("GET https://host/?key=")
    assert redacted.endswith("&x=1 failed")


@pytest.mark.parametrize(
    "escape",
    [
        repr,
        json.dumps,
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: repr(text.encode()),
        html.escape,
        quote,
        quote_plus,
        lambda text: quote(text, safe=""),
    ],
)
def test_a_value_that_has_to_be_escaped_is_hidden_as_a_whole(escape):
    written = escape("ab\\cd\tef'gh\"ij&kl<mn öp/qr+st")
    redacted = Redactor(["ab\\cd\tef'gh\"ij&kl<mn öp/qr+st"]).redact(f"saw {written}.")
    assert redacted.strip("'\"b.") in ("saw ***", "saw '***", 'saw "***', "saw b'***", 'saw b"***')


def test_the_lines_of_a_long_value_are_hidden_one_by_one():
    """A traceback or a log may show them one a line, indented."""
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END PRIVATE KEY-----\n"
    redacted = Redactor([key]).redact("\n".join(f"    {line}" for line in key.splitlines()))
    assert "MIIEv" not in redacted
    assert "kqhki" not in redacted


def test_the_texts_of_a_value_that_is_json_are_hidden_too():
    """A library that has read it shows its private key, and not the JSON around it."""
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END PRIVATE KEY-----\n"
    account = json.dumps({"type": "service_account", "private_key": key, "n": 1, "x": {"y": 2}})
    redactor = Redactor([account])
    for text in (account, key, repr(key), "\n".join(f"  {line}" for line in key.splitlines())):
        assert "MIIEv" not in redactor.redact(f"cannot read {text}")
    assert redactor.redact("a service_account is needed") == "a service_account is needed"


def test_a_value_that_is_almost_json_is_hidden_like_any_other():
    for value in ("[" * 20_000, '{"a": 1', "null", "[1, 2]"):
        assert Redactor([value]).redact(f"it is {value}.") == "it is ***."


def test_what_was_learnt_before_stays_hidden():
    redactor = Redactor(["first-value"])
    redactor.learn(["second-value"])
    assert redactor.redact("first-value, second-value") == "***, ***"


def test_of_two_values_that_begin_alike_the_longer_leaves_no_rest():
    assert Redactor(["secret", "secret-and-more"]).redact("a secret-and-more") == f"a {HIDDEN}"


# ---- events -------------------------------------------------------------------------------------


def test_free_texts_of_events_are_redacted_and_nothing_else_changes():
    redactor = Redactor([VALUE])
    said = f"no access with {VALUE}"
    failed = Failed(reason=Reason.DATA_UNREADABLE, message=said)
    assert redactor.redact_event(failed).message == f"no access with {HIDDEN}"
    assert redactor.redact_event(failed).reason is Reason.DATA_UNREADABLE
    assert redactor.redact_event(Notice(code="a.b", message=said)).message.endswith(HIDDEN)
    started = Started(resumed_step=0, world_size=1, provenance={"device": said, "seed": "0"})
    assert redactor.redact_event(started).provenance["device"].endswith(HIDDEN)
    finished = Finished(reason=Reason.BUDGET_REACHED, step=1)
    assert redactor.redact_event(finished) is finished


def test_steps_pass_untouched():
    step = StepMetrics(step=1, samples=1, tokens=0, wall_seconds=0, gpu_seconds=0, values={})
    assert Redactor([VALUE]).redact_event(step) is step


# ---- streams ------------------------------------------------------------------------------------


class Unauthorised(Exception):
    """As a library raises it, with the whole request in its text."""


def test_prints_logs_and_traces_are_redacted():
    target = io.StringIO()
    stream = RedactedStream(target, Redactor([VALUE]))
    handler = logging.StreamHandler(stream)
    logger = logging.Logger("library")
    logger.addHandler(handler)
    print("token is", VALUE, file=stream)
    stream.writelines([f"{VALUE}\n", "plain\n"])
    logger.warning("asked with %s", {"Authorization": VALUE})
    try:
        raise Unauthorised(f"401 for https://user:{quote(VALUE, safe='')}@host/")
    except Unauthorised:
        logger.exception("reading failed")
        traceback.print_exc(file=stream)
    written = target.getvalue()
    assert written.count(HIDDEN) == 5
    assert "wJalr" not in written
    assert "plain\n" in written
    assert "401 for https://user:***@host/" in written


def test_a_redacted_stream_is_the_stream_in_all_else(tmp_path):
    """Dumps of stacks want a file descriptor."""
    with (tmp_path / "log").open("w") as file:
        stream = RedactedStream(file, Redactor())
        assert stream.fileno() == file.fileno()
        faulthandler.dump_traceback(stream)
    assert "test_a_redacted_stream" in (tmp_path / "log").read_text()


PROGRAM = """
import logging, sys, warnings
from roadless.worker.secrets import REDACTOR, redact_streams
redact_streams()
logging.basicConfig(level=logging.INFO)
REDACTOR.learn(["a-secret-value"])
logging.info("%s", "a-secret-value")
warnings.warn("a-secret-value")
print("a-secret-value")
raise RuntimeError("a-secret-value")
"""


def test_a_process_whose_streams_are_redacted_writes_no_value_whatever_writes():
    """What was set up before the value was known, too; and the last trace of an exception."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == f"{HIDDEN}\n"
    lines = [line for line in done.stderr.splitlines() if HIDDEN in line]
    assert lines[0] == f"INFO:root:{HIDDEN}"
    assert lines[1].endswith(f"UserWarning: {HIDDEN}")
    assert lines[-1] == f"RuntimeError: {HIDDEN}"
    assert "a-secret-value" not in done.stderr


@pytest.mark.parametrize("buffering", [0, 1, -1])
def test_a_log_without_room_keeps_nobody_from_going_on(buffering):
    """Written through, by lines, or by blocks; at the end all of it is flushed."""
    raw = open("/dev/full", "wb", buffering=0)  # noqa: SIM115  closed before what buffers it
    target = io.TextIOWrapper(
        io.BufferedWriter(raw), write_through=buffering == 0, line_buffering=buffering == 1
    )
    stream = RedactedStream(target, Redactor())
    print("a line", file=stream)
    print("a line", file=stream, flush=True)
    stream.writelines(["more\n"])
    stream.flush()
    raw.close()
