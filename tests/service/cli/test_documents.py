"""Files of users: JSON as JSON, YAML with the values of JSON, and one line for everything else."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.cli.documents import DocumentError, load, parse

SPEC = "name: a\noptimizer:\n  lr: {}\n"


def refusal(text):
    """What is said of a text that is refused: one line."""
    with pytest.raises(DocumentError) as refused:
        parse(text, source="job.yaml")
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    assert "job.yaml" in said
    return said


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("2026-12-01", "saw timestamp 2026-12-01"),
        ("2026-12-01T10:00:00Z", "saw timestamp 2026-12-01T10:00:00Z"),
        ("2026-02-30", "saw timestamp 2026-02-30"),
        (".inf", "expected a finite number, saw .inf"),
        ("-.INF", "expected a finite number, saw -.INF"),
        (".nan", "expected a finite number, saw .nan"),
        ("!!set {a, b}", "saw set"),
        ("!!omap [a: 1]", "saw omap"),
        ("!!pairs [a: 1]", "saw pairs"),
        ("!!binary aGVsbG8=", "saw binary"),
        ("!!python/object/apply:os.getcwd []", "saw python/object/apply:os.getcwd"),
        ("!!python/tuple [1, 2]", "saw python/tuple"),
        ("!custom text", "saw !custom text"),
        ("!!int many", "saw int many"),
        ("!!float much", "saw float much"),
        ("!!bool maybe", "saw bool maybe"),
        ("=", "saw value ="),
        ('"\\ud83d"', "half of a pair of surrogates"),
        ("{1: a}", "expected text as a key, saw int 1"),
        ("{yes: a}", "expected text as a key, saw bool yes"),
        ("{null: a}", "expected text as a key, saw null null"),
        ("{2026-12-01: a}", "expected text as a key, saw timestamp 2026-12-01"),
        ("{[a]: b}", "expected text as a key, saw seq"),
        ("{a: 1, a: 2}", "expected each key once, saw 'a' again"),
        ("[a, 'b", "found unexpected end of stream"),
    ],
)
def test_what_json_does_not_have_is_named_with_its_line(value, seen):
    said = refusal(SPEC.format(value))
    assert seen in said
    line = 4 if "end of stream" in seen else 3
    assert f"job.yaml, line {line}, column " in said


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a: &a [*a]", "Circular reference"),
        ("a: *b", "undefined alias"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \x07", "special characters are not allowed"),
        ('{"lr": NaN}', "expected a finite number, saw NaN"),
        ('{"lr": -Infinity}', "expected a finite number, saw -Infinity"),
        ('{"lr": 1e999}', "expected a finite number as 'lr'"),
        ('{"betas": [0.9, 1e999]}', "expected values that JSON has"),
        ('{"a": 1, "a": 2}', "expected each key once, saw 'a' again"),
        ('{"name": "\\ud83d"}', "half of a pair of surrogates"),
        ("[" * 10_000, "job.yaml"),
    ],
)
def test_so_is_what_has_no_line(text, seen):
    assert seen in refusal(text)


def test_a_date_is_taken_once_it_is_quoted():
    assert parse('name: "2026-12-01"', source="job.yaml") == {"name": "2026-12-01"}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.booleans(), st.sampled_from([None, 2, "\t"]))
def test_json_is_read_as_json_is(value, ascii_only, indent):
    """Tabs, and emoji as two escapes, are JSON; YAML reads neither."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert parse(text, source="job.json") == value


@given(JSON)
def test_yaml_of_the_same_value_is_the_same(value):
    assert parse(yaml.safe_dump(value), source="job.yaml") == value


def test_emoji_in_yaml_may_be_two_escapes_too():
    assert parse('{name: "\\ud83d\\ude00", }', source="job.yaml") == {"name": "\U0001f600"}


def test_merged_mappings_are_as_yaml_says():
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}"
    assert parse(text, source="job.yaml")["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "expected a mapping in {}, saw nothing"),
        (b"- a", "expected a mapping in {}, saw list"),
        (b"\xff\xfea", "expected YAML or JSON in {}, saw bytes that are not UTF-8 at 0"),
        (None, "expected a readable file {}: No such file or directory"),
    ],
)
def test_a_file_that_is_no_mapping_says_what_it_is(tmp_path, content, seen):
    file = tmp_path / "job.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DocumentError) as refused:
        load(file)
    assert str(refused.value) == seen.format(file)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    file = tmp_path / "job.json"
    file.write_bytes(b'\xef\xbb\xbf{"name": "a"}')
    assert load(file) == {"name": "a"}
