"""JSON of both forms: an array gives the rows that its objects would give line by line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roadless.worker.data.formats import json_rows, jsonl_rows, line_rows
from roadless.worker.data.formats.columns import numbers
from roadless.worker.data.records.files import only
from roadless.worker.errors import DataInvalid

values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested = st.recursive(values, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


def everything(present: Sequence[str], where: str, *, aside: Any = ()) -> Sequence[str]:
    return list(present)


def rows(path: Path, column: str = "v") -> list[Any]:
    chunks = json_rows.read(path, file="rows.json", choose=only(column))
    return [value for chunk in chunks for value in chunk.columns[column]]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(nested, min_size=1), st.sampled_from([None, 2]), st.booleans(), st.booleans())
def test_both_forms_give_the_same_rows(tmp_path, drawn, indent, is_array, has_mark):
    records = [{"v": value, "w": 1} for value in drawn]
    text = "\n".join(map(json.dumps, records))
    if is_array:
        text = f" \n{json.dumps(records, indent=indent, ensure_ascii=False)}\n"
    content = text.encode("utf-8", "surrogatepass")
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" * has_mark + content)
    assert rows(path) == drawn


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"v": 1}, {"v": 2} {"v": 3}]', "row 2: expected , or ] behind it, saw '{\"v\": 3}]'"),
        ('[{"v": 1}, {"v": 2}', "row 2: expected , or ] behind it, saw ''"),
        ('[{"v": 1}, {"v": ', "row 2: expected a JSON object, saw"),
        ('[{"v": 1},]', "row 2: expected a JSON object, saw"),
        ('[{"v": 1}, [2]]', "row 2: expected a JSON object, saw [2]"),
        ('["v"]', "row 1: expected a JSON object, saw 'v'"),
        ('[{"v": 1}] [', "rows.json: expected nothing behind the array, saw '['"),
        ('[{"v": 1}, {"v": 2, "v": 3}]', "row 2, column 'v': expected each name of an object once"),
        ('[{"v": 1}, {"w": 2}]', "row 2: expected a column 'v', saw the columns 'w'"),
        (b'[{"v": "\xff"}]', "rows.json: expected UTF-8, saw"),
    ],
)
def test_an_array_that_is_none_says_where(tmp_path, text, problem):
    path = tmp_path / "rows.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataInvalid) as caught:
        rows(path)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ('[{"v": 1}]', "saw [{'v': 1}]"),
        ("{", "saw: Expecting property name"),
        ('{"v": 1},', "saw: Extra data"),
        ("{'v': 1}", "saw: Expecting property name"),
    ],
)
def test_a_line_that_is_no_object_is_named_with_a_way_out(tmp_path, line, seen):
    (tmp_path / "rows.jsonl").write_text(f'{{"v": 1}}\n{line}\n')
    with pytest.raises(DataInvalid) as caught:
        list(jsonl_rows.read(tmp_path / "rows.jsonl", file="rows.jsonl", choose=everything))
    assert f"rows.jsonl, row 2: expected a JSON object, {seen}" in str(caught.value)
    assert str(caught.value).endswith("; write one object a line")


@pytest.mark.parametrize("is_array", [False, True])
@pytest.mark.parametrize("value", ["-" + "7" * 5000, f"[1, {'7' * 5000}]"])
def test_an_integer_of_thousands_of_digits_is_refused_by_its_column_if_it_is_read(
    tmp_path, value, is_array
):
    lines = ['{"v": 1, "w": 1}', f'{{"v": {value}, "w": 2}}']
    (tmp_path / "rows.json").write_text(f"[{', '.join(lines)}]" if is_array else "\n".join(lines))
    (chunk,) = json_rows.read(tmp_path / "rows.json", file="rows.json", choose=everything)
    assert numbers(chunk, "w").tolist() == [1, 2]
    with pytest.raises(DataInvalid, match=r"rows.json, row 2, column 'v': expected "):
        numbers(chunk, "v")


@pytest.mark.parametrize("text", ["[]", " [ ] ", ""])
def test_nothing_has_no_rows(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    assert rows(tmp_path / "rows.json") == []


def test_an_array_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("roadless.worker.data.formats.json_rows.MAX_ARRAY_BYTES", 9)
    (tmp_path / "rows.json").write_text('[{"v": 1}]')
    with pytest.raises(DataInvalid, match=r"at most 9 bytes, .* write one object a line"):
        rows(tmp_path / "rows.json")


# ---- lines --------------------------------------------------------------------------------------


def lines(path: Path) -> list[str]:
    chunks = line_rows.read(path, file="rows.txt", choose=only(line_rows.COLUMN))
    return [line for chunk in chunks for line in chunk.columns[line_rows.COLUMN]]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.sampled_from("ab \n\r\x0b\x0c\x1c\x85\u2028é")), st.booleans())
def test_lines_end_where_they_do_for_python(tmp_path, text, has_mark):
    path = tmp_path / "rows.txt"
    path.write_bytes(b"\xef\xbb\xbf" * (has_mark and bool(text)) + text.encode())
    with path.open(encoding="utf-8-sig") as content:
        assert lines(path) == [line.removesuffix("\n") for line in content]


def test_a_line_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "rows.txt").write_bytes(b"a\rb\nc \xff")
    with pytest.raises(DataInvalid, match=r"rows\.txt, row 3: expected UTF-8, saw byte 0xff"):
        lines(tmp_path / "rows.txt")


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("roadless.worker.data.formats.lines.MAX_RECORD_BYTES", 5)
    (tmp_path / "rows.txt").write_bytes(b"a\n" + b"b" * 6)
    with pytest.raises(DataInvalid, match="row 2: expected at most 5 bytes"):
        lines(tmp_path / "rows.txt")


def test_lines_that_end_with_carriage_returns_are_not_cut_where_a_block_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("roadless.worker.data.formats.lines.MAX_RECORD_BYTES", 5)
    (tmp_path / "rows.txt").write_bytes(b"a\nab\rcdef\r")
    with pytest.raises(DataInvalid, match="row 2: expected at most 5 bytes"):
        lines(tmp_path / "rows.txt")
