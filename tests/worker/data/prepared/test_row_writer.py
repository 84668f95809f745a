"""Which columns make a sample: by name, never by place, and none that nobody meant."""

import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import Node, all_rows, csv_text, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roadless.service.contract.states import Reason
from roadless.worker.data.base import UNCOUNTED
from roadless.worker.errors import JobFailed


def build(node: Node, name: str | list[str], *, task: Any = "classification", **fields: Any):
    names = [name] if isinstance(name, str) else name
    spec = {"format": names[0].rpartition(".")[2], "path": [f"{node.root}/{one}" for one in names]}
    return node.build({**spec, "target": "y", **fields}, task=task)


def fault(node: Node, name: str | list[str], **fields: Any) -> str:
    with pytest.raises(JobFailed) as caught:
        build(node, name, **fields)
    assert caught.value.reason is Reason.DATA_INVALID
    return str(caught.value)


def write_lines(node: Node, name: str, rows: list[dict[str, Any]]) -> None:
    node.write(name, "".join(f"{json.dumps(row)}\n" for row in rows))


# ---- the same columns in every row and file -----------------------------------------------------


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.permutations(["a", "b", "c", "y"]), min_size=1, max_size=4),
    st.sampled_from(["csv", "jsonl", "npz", "parquet"]),
)
def test_columns_in_another_order_are_the_same_columns(node, orders, format):
    rows = {"a": [1.0, 2.0], "b": [10.0, 20.0], "c": [100.0, 200.0], "y": [0, 1]}
    names = [f"{number}.{format}" for number in range(len(orders))]
    for name, order in zip(names, orders, strict=True):
        write_table(node, name, {column: rows[column] for column in order})
    inputs, targets = all_rows(build(node, names, eval={"path": f"{node.root}/{names[-1]}"}))
    first = [column for column in orders[0] if column != "y"]
    expected = [[rows[column][row] for column in first] for row in range(2)]
    assert inputs == expected * (len(orders) + 1)
    assert targets == [0, 1] * (len(orders) + 1)


FULL, LACKING = {"a": 1, "b": 2, "y": 0}, {"a": 1, "y": 1}


@pytest.mark.parametrize("place", range(3))
def test_a_row_that_lacks_a_column_is_named_wherever_it_is(node, place):
    rows = [FULL] * 3
    rows[place] = LACKING
    write_lines(node, "rows.jsonl", rows)
    said = fault(node, "rows.jsonl")
    if place:
        assert f"row {place + 1}: expected a column 'b', saw the columns 'a', 'y'" in said
    else:
        assert "rows.jsonl, row 2: expected the columns 'a' of the first file and its first" in said
        assert "saw 'b' beside them; name those to use in `columns`" in said


def test_rows_of_a_later_file_may_not_have_more_columns_either(node):
    write_lines(node, "1.jsonl", [LACKING] * 2)
    write_lines(node, "2.jsonl", [LACKING, FULL])
    assert "2.jsonl, row 2: expected the columns 'a'" in fault(node, ["1.jsonl", "2.jsonl"])
    assert "2.jsonl, row 2: expected" in fault(
        node, "1.jsonl", eval={"path": f"{node.root}/2.jsonl"}
    )


def test_columns_that_are_named_may_stand_among_others_that_come_and_go(node):
    write_lines(node, "rows.jsonl", [LACKING, FULL, {**LACKING, "c": None}, FULL])
    data = build(node, "rows.jsonl", columns=["a"])
    assert all_rows(data)[0] == [[1.0]] * 4


@pytest.mark.parametrize(
    ("header", "way_out"),
    [
        ("a;y", "; name the `delimiter` of the file, ';'"),
        ("a\ty", "; name the `delimiter` of the file, '\\t'"),
        ("a, y", "; name it as ' y'"),
        ("a,Y", "; name it as 'Y'"),
        ("a,z", "saw the columns 'a', 'z'"),
    ],
)
def test_a_column_that_is_there_in_another_guise_is_shown(node, header, way_out):
    node.write("rows.csv", f"{header}\n")
    said = fault(node, "rows.csv")
    assert "rows.csv: expected a column 'y', saw the columns " in said
    assert said.endswith(way_out)


@pytest.mark.parametrize("span", ["Y", "Q", "D"])
@pytest.mark.parametrize("column", ["a", "y"])
def test_spans_of_time_of_pandas_are_not_read_as_the_integers_they_are_stored_as(
    node, column, span
):
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0], "y": [0, 1, 0]})
    table[column] = pd.period_range("2020", periods=3, freq=span)
    table.to_parquet(node.root / "rows.parquet")
    said = fault(node, "rows.parquet")
    assert f"row 1, column {column!r}: expected numbers or texts, saw periods of time" in said
    if column == "a":
        assert len(all_rows(build(node, "rows.parquet", columns=["b"]))[0]) == 3


def test_a_name_that_an_object_has_twice_is_refused(node):
    node.write("rows.jsonl", '{"a": 1, "y": 0}\n{"a": 1, "y": 0, "a": 2}\n')
    expected = "rows.jsonl, row 2, column 'a': expected each name of an object once"
    assert expected in fault(node, "rows.jsonl")


def test_a_name_that_two_columns_have_is_refused_where_it_is_asked_for(node):
    columns = [pa.array([1, 2]), pa.array([3, 4]), pa.array([5, 6]), pa.array([0, 1])]
    pq.write_table(pa.table(columns, names=["a", "a", "b", "y"]), node.root / "rows.parquet")
    assert "rows.parquet: expected one column 'a', saw 2" in fault(node, "rows.parquet")
    assert sorted(all_rows(build(node, "rows.parquet", columns=["b"]))[0]) == [[5], [6]]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "npz"])
def test_two_columns_that_make_up_for_each_others_length_are_refused(node, format):
    for number, (long, short) in enumerate([("v", "w"), ("w", "v")]):
        rows = {long: [[1.0, 2.0, 3.0]] * 4, short: [[4.0, 5.0]] * 4, "y": [0, 1, 0, 1]}
        write_table(node, f"{number}.{format}", dict(sorted(rows.items())))
    said = fault(node, [f"0.{format}", f"1.{format}"])
    assert f"1.{format}, row 1, column 'v': expected float32 of shape (3,) like the first" in said


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_lists_of_nothing_are_refused(node, format):
    write_table(node, f"rows.{format}", {"a": [[], []], "y": [0, 1]})
    assert "row 1, column 'a': expected at least one number, saw" in fault(node, f"rows.{format}")


# ---- columns that nobody meant ------------------------------------------------------------------

FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "y": [0, 0, 1, 1]})


def of_frame(frame: pd.DataFrame, format: str) -> bytes:
    content = io.BytesIO()
    frame.to_csv(content) if format == "csv" else frame.to_parquet(content)
    return content.getvalue()


def read_again(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(of_frame(frame, "csv")))


INDEXED = {
    "csv": (of_frame(FRAME, "csv"), ""),
    "csv of csv": (of_frame(read_again(FRAME).set_index("a"), "csv"), "Unnamed: 0"),
    "csv of csv of csv": (
        read_again(read_again(FRAME)).to_csv(index=False).encode(),
        "Unnamed: 0.1",
    ),
    "csv with two": (of_frame(FRAME.set_index([[1, 2, 3, 4], [5, 6, 7, 8]]), "csv"), ""),
    "parquet": (of_frame(FRAME.iloc[[2, 0, 1, 3]], "parquet"), "__index_level_0__"),
    "parquet with a name": (
        of_frame(FRAME.rename_axis("row").iloc[[2, 0, 1, 3]], "parquet"),
        "row",
    ),
    "parquet of parquet": (
        of_frame(FRAME.iloc[[2, 0, 1, 3]].reset_index(names="__index_level_0__"), "parquet"),
        "__index_level_0__",
    ),
}


@pytest.mark.parametrize("kind", INDEXED)
def test_an_index_is_no_feature_and_the_history_says_so(node, kind):
    content, index = INDEXED[kind]
    name = f"rows.{kind.split()[0]}"
    node.write(name, content)
    spec = {"format": kind.split()[0], "path": f"{node.root}/{name}", "target": "y"}
    told: list[str] = []
    data = node.build(spec, say=told.append)
    assert sorted(all_rows(data)[0]) == [[1.0], [2.0], [3.0], [4.0]]
    (said,) = told
    assert repr(index) in said
    assert "are no features, since they look like an index" in said
    if index:
        data = build(node, name, columns=[index, "a"])
        assert data.description.input_shape == (2,)


def told_of(node: Node, names: list[str], **fields: Any) -> str:
    told: list[str] = []
    spec = {"format": "csv", "path": [f"{node.root}/{name}" for name in names], "target": "y"}
    node.build({**spec, **fields}, say=told.append)
    return "".join(told)


@pytest.mark.parametrize("start", [0, 1])
def test_a_column_that_counts_the_rows_is_told_as_an_index_whatever_its_name(node, start):
    count = list(range(start, start + 5000))
    rows = {"number": count, "a": [0.5, 1.5] * 2500, "y": [0] * 2500 + [1] * 2500}
    write_table(node, "all.csv", rows)
    for name, part in (("1", slice(0, 2000)), ("2", slice(2000, None))):
        write_table(node, f"{name}.csv", {key: values[part] for key, values in rows.items()})
        write_table(node, f"own-{name}.csv", {**rows, "a": [float(name), 2.5] * 2500})
    for names in (["all.csv"], ["1.csv", "2.csv"], ["own-1.csv", "own-2.csv"]):
        assert "'number' counts the rows, as an index does" in told_of(node, names)
    assert told_of(node, ["2.csv"]) == ""
    assert told_of(node, ["2.csv", "1.csv"]) == ""
    assert told_of(node, ["all.csv"], columns=["number", "a"]) == ""


def test_an_index_without_a_name_needs_one_to_be_trained_on(node):
    node.write("rows.csv", pd.DataFrame({"a": [1.5, 2.5], "y": [0, 1]}).to_csv())
    told: list[str] = []
    spec = {"format": "csv", "path": f"{node.root}/rows.csv", "target": "y"}
    node.build(spec, say=told.append)
    assert "to train on it, after you gave it a name in the file" in "".join(told)


def test_without_an_index_nothing_is_said(node):
    node.write("rows.csv", csv_text(FRAME.to_dict("list")))
    told: list[str] = []
    spec = {"format": "csv", "path": f"{node.root}/rows.csv", "target": "y"}
    node.build(spec, say=told.append)
    assert told == []


def test_a_column_without_a_name_elsewhere_is_refused_unless_columns_are_named(node):
    node.write("rows.csv", "a,,y,\n1,2,0,\n3,4,1,\n5,6,0,\n")
    said = fault(node, "rows.csv")
    assert "expected a name for each column, saw 'a', '', 'y', ''; name those" in said
    assert sorted(all_rows(build(node, "rows.csv", columns=["a"]))[0]) == [[1], [3], [5]]


# ---- truth values -------------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", [("True", "False"), ("true", "false"), ("TRUE", "FALSE")])
def test_truth_values_in_csv_are_1_and_0_as_in_every_other_format(node, spelled):
    values = [True, False, True, True]
    write_table(node, "rows.csv", {"a": [spelled[not value] for value in values], "y": [0, 1] * 2})
    write_table(node, "rows.jsonl", {"a": values, "y": [0, 1] * 2})
    write_table(node, "rows.parquet", {"a": values, "y": [0, 1] * 2})
    formats = ("csv", "jsonl", "parquet")
    one, *others = (build(node, f"rows.{format}").description for format in formats)
    assert others == [one, one]


@pytest.mark.parametrize("bad", ["", "1", "2.5", "yes", "nan", "t"])
def test_truth_values_and_others_are_not_mixed(node, bad):
    for rows in ([["True"] * 3 + [bad], 4], [["True"] * 4096 + [bad] * 4, 4097]):
        values, row = rows
        write_table(node, "rows.csv", {"a": values, "y": [i % 2 for i in range(len(values))]})
        said = fault(node, "rows.csv")
        assert f"row {row}, column 'a': expected true or false like the row" in said
        assert f"saw {bad!r}" in said
    write_table(node, "rows.csv", {"a": [1] * 4096 + ["True"] * 4, "y": [0, 1] * 2050})
    assert "row 4097, column 'a': expected a number like the rows before, saw 'True'" in fault(
        node, "rows.csv"
    )


# ---- what float32 makes equal -------------------------------------------------------------------

FAR = 1e9 + np.arange(40.0)
NEAR_ZERO = np.arange(1.0, 41.0) * 1e-60


@pytest.mark.parametrize("format", ["csv", "jsonl", "npz", "parquet"])
@pytest.mark.parametrize("values", [FAR, NEAR_ZERO, 2**24 + 1 + np.arange(40)])
def test_values_that_float32_makes_equal_are_refused_or_standardised(node, format, values):
    rows = {"a": values.tolist(), "y": [row % 2 for row in range(40)]}
    write_table(node, f"rows.{format}", rows)
    said = fault(node, f"rows.{format}")
    assert "rows 1 to 40, column 'a': expected numbers that float32 tells apart, saw" in said
    assert "set `standardise`, which subtracts the mean before it rounds" in said
    data = build(node, f"rows.{format}", standardise=True)
    trained = data.train_batch(np.arange(data.num_train)).inputs[:, 0].double().numpy()
    steps = np.diff(np.sort(trained))
    assert np.allclose(steps / steps.min(), np.round(steps / steps.min()), atol=1e-3)
    assert (abs(trained.mean()), trained.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1))


def test_targets_that_float32_makes_equal_are_refused_even_if_standardised(node):
    write_table(node, "rows.csv", {"a": list(range(40)), "y": FAR.tolist()})
    for standardise in (False, True):
        said = fault(node, "rows.csv", task="regression", standardise=standardise)
        assert "column 'y': expected numbers that float32 tells apart" in said
        assert said.endswith("subtract a constant from it")


@pytest.mark.parametrize(
    "values",
    [
        [0.1] * 9,  # a constant
        [0.3, 0.1 + 0.2] * 9,  # a constant with rounding errors
        [1e9, 1e9 + 64] * 9,  # float32 holds both
        [0.0, 2.0**-149] * 9,  # its smallest
        [1000.0 + 0.1 * i for i in range(9)],  # ordinary readings
        [1.5e9 + 86400 * i for i in range(1000)],  # days, in seconds
    ],
)
def test_values_that_float32_keeps_are_trained_on(node, values):
    write_table(node, "rows.jsonl", {"a": values, "y": [row % 2 for row in range(len(values))]})
    inputs, _ = all_rows(build(node, "rows.jsonl"))
    assert sorted(row[0] for row in inputs) == sorted(np.float32(values).tolist())


# ---- rows that do not count ---------------------------------------------------------------------


@pytest.mark.parametrize("format", ["csv", "jsonl", "npz", "parquet"])
def test_a_row_whose_label_does_not_count_stays_and_is_marked(node, format):
    labels = [row % 3 if row % 4 else UNCOUNTED for row in range(40)]
    write_table(node, f"rows.{format}", {"a": list(range(40)), "y": labels})
    data = build(node, f"rows.{format}", eval={"fraction": 0.5})
    inputs, targets = all_rows(data)
    assert {int(row[0]): label for row, label in zip(inputs, targets, strict=True)} == dict(
        enumerate(labels)
    )
    assert data.description.num_classes == 3
    assert data.train_batch(np.arange(4)).has_uncounted
    plain = build(node, f"rows.{format}", target="a", columns=["y"], num_classes=40)
    assert not plain.train_batch(np.arange(4)).has_uncounted


@pytest.mark.parametrize(
    ("train", "held_out", "purpose"), [(-100, 1, "train on"), (1, -100, "hold")]
)
def test_a_split_without_any_label_that_counts_is_refused(node, train, held_out, purpose):
    for name, label in (("train", train), ("held-out", held_out)):
        write_table(node, f"{name}.csv", {"a": [1.0, 2.0], "y": [label, label]})
    said = fault(node, "train.csv", eval={"path": f"{node.root}/held-out.csv"})
    assert f"with a class to {purpose}" in said
    assert said.endswith("saw -100 in all of them")


# ---- classes with names -------------------------------------------------------------------------

words = st.text("abcC Ä-_", min_size=1, max_size=3).filter(
    lambda name: name.strip() == name  # spellings of one name are tested below
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(words, min_size=4, max_size=20), st.sampled_from(["csv", "jsonl", "parquet"]))
def test_named_classes_are_numbered_in_the_order_of_their_names(node, names, format):
    distinct = sorted(set(names))
    write_table(node, f"rows.{format}", {"a": list(range(len(names))), "y": names})
    if len(distinct) < 2:
        assert "expected at least two classes" in fault(node, f"rows.{format}")
        return
    told: list[str] = []
    spec = {"format": format, "path": f"{node.root}/rows.{format}", "target": "y"}
    data = node.build(spec, say=told.append)
    inputs, targets = all_rows(data)
    read = {int(row[0]): distinct[label] for row, label in zip(inputs, targets, strict=True)}
    assert read == dict(enumerate(names))
    assert data.description.class_names == data.description.shape.class_names == tuple(distinct)
    assert f"the classes 0, 1, ... are {distinct[0]!r}, {distinct[1]!r}" in "".join(told)


def test_the_numbers_of_named_classes_depend_on_no_order_of_rows_or_files(node):
    names = ["no", "yes", "maybe", "no"]
    for folder, order in (("one", names), ("two", names[::-1])):
        (node.root / folder).mkdir()
        for number, name in enumerate(order):
            write_table(node, f"{folder}/{number}.csv", {"a": [0.5], "y": [name]})
    one, two = (
        build(node, [f"{folder}/{number}.csv" for number in range(4)]) for folder in ("one", "two")
    )
    assert one.description.class_names == two.description.class_names == ("maybe", "no", "yes")
    assert sorted(all_rows(one)[1]) == sorted(all_rows(two)[1]) == [0, 1, 1, 2]


def test_other_names_are_other_data(node):
    for name, classes in (("en", ["no", "yes"]), ("de", ["ja", "nein"])):
        write_table(node, f"{name}.csv", {"a": [1, 2, 3, 4], "y": classes * 2})
    en, de = (build(node, f"{name}.csv").description for name in ("en", "de"))
    assert en.fingerprint != de.fingerprint


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("bad", ["", "NA", "nan", "null", "?", "3", "1.0", " "])
def test_a_missing_name_or_a_number_is_no_class_of_its_own(node, format, bad):
    names = ["no", "yes"] * 3
    names[4] = bad
    write_table(node, f"rows.{format}", {"a": list(range(6)), "y": names})
    said = fault(node, f"rows.{format}")
    assert "row 5, column 'y': expected the name of a class, like the first row, saw" in said
    assert repr(bad) in said


@pytest.mark.parametrize("format", ["csv", "jsonl", "npz", "parquet"])
@pytest.mark.parametrize(
    ("one", "other"),
    [("cat", "cat "), ("cat", "\u00a0cat"), ("Café", "Cafe\u0301"), ("True", "TRUE")],
)
def test_two_spellings_of_one_class_are_refused(node, format, one, other):
    """They would be two classes that look alike in every list."""
    write_table(node, f"rows.{format}", {"a": [1, 2, 3, 4], "y": [one, "dog", other, one]})
    said = fault(node, f"rows.{format}")
    assert f"row 3, column 'y': expected one spelling of a class, {one!r} as in a row" in said
    assert f"saw {other!a}; write it the same way in all rows" in said


def test_letters_of_either_case_are_classes_of_their_own(node):
    write_table(node, "rows.csv", {"a": [1, 2, 3, 4], "y": ["a", "A", "b", "B"]})
    assert build(node, "rows.csv").description.class_names == ("A", "B", "a", "b")


@pytest.mark.parametrize("label", [1_000_000, 2_000_000_000])
def test_a_label_that_is_rather_an_id_is_refused_before_a_model_has_as_many_classes(node, label):
    write_table(node, "rows.csv", {"a": [1, 2, 3], "y": [0, 1, label]})
    assert f"row 3, column 'y': expected a class below 1000000, saw {label}" in fault(
        node, "rows.csv"
    )


@pytest.mark.parametrize("format", ["jsonl", "npz", "parquet"])
@pytest.mark.parametrize(("row", "shape"), [([1], "(1,)"), ([0, 1, 0], "(3,)")])
def test_labels_in_lists_are_refused_with_their_shape(node, format, row, shape):
    write_table(node, f"rows.{format}", {"a": [1.0, 2.0], "y": [row, row]})
    said = fault(node, f"rows.{format}")
    assert f"row 1, column 'y': expected one class number a row, saw numbers of shape {shape}" in (
        said
    )
    assert said.endswith("take the argmax of one-hot rows, or the number out of a list of one")


@pytest.mark.parametrize(("first", "second"), [("1", 0), (1, "0")])
def test_labels_as_numbers_and_as_texts_in_one_file_are_refused_where_they_change(
    node, first, second
):
    write_lines(node, "rows.jsonl", [{"a": 1, "y": first}] * 3 + [{"a": 2, "y": second}])
    said = fault(node, "rows.jsonl")
    form = "text" if isinstance(first, str) else "number"
    assert f"row 4, column 'y': expected a class number stored as a {form} like the first" in said
    assert said.endswith(f"saw {second!r}; store all of them in one form")


@pytest.mark.parametrize("later", ["a later chunk", "a later file"])
def test_truth_values_are_no_class_numbers_where_the_first_rows_have_numbers(node, later):
    numbers, truths = ["0", "1"] * 2048, ["True", "False"]
    write_table(node, "1.csv", {"a": [0.5] * 4096, "y": numbers})
    write_table(node, "2.csv", {"a": [0.5] * 2, "y": truths})
    write_table(node, "all.csv", {"a": [0.5] * 4098, "y": numbers + truths})
    said = fault(node, ["all.csv"] if later == "a later chunk" else ["1.csv", "2.csv"])
    place = "all.csv, row 4097" if later == "a later chunk" else "2.csv, row 1"
    assert f"{place}, column 'y': expected a class number, saw 'True'" in said


@pytest.mark.parametrize("name", ["inf", "-Infinity", "+inf"])
def test_an_infinity_is_no_name_of_a_class(node, name):
    write_table(node, "rows.csv", {"a": [1, 2], "y": [name, "b"]})
    assert f"row 1, column 'y': expected a class number, saw {name!r}" in fault(node, "rows.csv")


def test_more_names_than_classes_are_refused_with_the_first_row_too_many(node, monkeypatch):
    write_table(node, "rows.csv", {"a": list(range(6)), "y": ["b", "a", "b", "c", "a", "d"]})
    said = fault(node, "rows.csv", num_classes=2)
    assert "row 4, column 'y': expected a class below num_classes = 2, saw 'c'" in said
    monkeypatch.setattr("roadless.worker.data.prepared.row_labels.MAX_CLASS_NAMES", 3)
    assert "row 6, column 'y': expected at most 3 names of classes" in fault(node, "rows.csv")
