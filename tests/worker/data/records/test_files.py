"""Records of files: compressed ones, and columns that folders name."""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
from data_cases import Node, all_rows, csv_text, jsonl_text, write_table
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.contract.states import Reason
from roadless.worker.data.records.folders import folder_columns, varying
from roadless.worker.errors import JobFailed


def build(node: Node, path: str | list[str], **fields: Any):
    paths = [path] if isinstance(path, str) else path
    format = paths[0].rpartition("/")[2].split(".")[1]
    paths = [f"{node.root}/{one}" for one in paths]
    return node.build({"format": format, "path": paths, "target": "y", **fields})


def fault(node: Node, path: str | list[str], **fields: Any) -> str:
    with pytest.raises(JobFailed) as caught:
        build(node, path, **fields)
    assert caught.value.reason is Reason.DATA_INVALID
    return str(caught.value)


# ---- compressed ---------------------------------------------------------------------------------


def zstd(content: bytes) -> bytes:
    written = pa.BufferOutputStream()
    with pa.CompressedOutputStream(written, "zstd") as stream:
        stream.write(content)
    return bytes(written.getvalue().to_pybytes())


PACKED = {"gz": gzip.compress, "zst": zstd, "xz": lzma.compress, "bz2": bz2.compress}
ROWS = {"a": [float(row) for row in range(5000)], "y": [row % 3 for row in range(5000)]}


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_a_compressed_file_has_the_rows_of_the_plain_one(node, format, ending):
    plain = {"csv": csv_text, "jsonl": jsonl_text}[format](ROWS).encode()
    half = plain.index(b"\n", len(plain) // 2) + 1
    pack = PACKED[ending]
    node.write(f"plain.{format}", plain)
    node.write(f"whole.{format}.{ending}", pack(plain))
    node.write(f"joined.{format}.{ending}", pack(plain[:half]) + pack(plain[half:]))
    node.write(f"renamed.{format}", pack(plain))
    names = [f"plain.{format}", f"whole.{format}.{ending}", f"joined.{format}.{ending}"]
    fingerprints = [
        build(node, name).description.fingerprint for name in (*names, f"renamed.{format}")
    ]
    assert len(set(fingerprints)) == 1


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_text_is_the_text(node, ending):
    text = "".join(f"line {row} é\n" for row in range(3000)).encode()
    node.write("a.txt", text)
    node.write("b.txt", PACKED[ending](text))
    plain, packed = (
        node.build({"format": "text", "path": f"{node.root}/{name}.txt"}, task="causal_lm")
        for name in "ab"
    )
    assert plain.description == packed.description


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def cut_at_its_end(content: bytes) -> bytes:
    return content[:-1]


def damaged(content: bytes) -> bytes:
    return content[:40] + bytes(8) + content[48:]


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("spoil", [cut, cut_at_its_end, damaged])
def test_a_compressed_file_that_is_cut_or_damaged_is_refused(
    node, ending, spoil: Callable[[bytes], bytes]
):
    if (ending, spoil) == ("zst", damaged):
        pytest.skip("zstd has a checksum only if its writer adds one")
    node.write(f"a.csv.{ending}", spoil(PACKED[ending](csv_text(ROWS).encode())))
    assert f"a.csv.{ending}: expected whole and undamaged" in fault(node, f"a.csv.{ending}")


def test_what_stands_before_the_content_of_a_parallel_zstd_is_skipped(node):
    before = b"\x50\x2a\x4d\x18\x04\x00\x00\x00size"
    packed = zstd(csv_text(ROWS).encode())
    for name, content in (("a.csv.zst", packed), ("b.csv.zst", before + packed)):
        node.write(name, content)
    one, other = (build(node, name).description for name in ("a.csv.zst", "b.csv.zst"))
    assert one.fingerprint == other.fingerprint


def in_zip(content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("rows.csv", content)
    return archive.getvalue()


def in_tar(content: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as members:
        about = tarfile.TarInfo("rows.csv")
        about.size = len(content)
        members.addfile(about, io.BytesIO(content))
    return archive.getvalue()


OTHERWISE_PACKED = [
    (in_zip, "a zip archive"),
    (in_tar, "a tar archive"),
    (lambda plain: gzip.compress(in_tar(plain)), "a tar archive"),
    (lambda plain: zstd(in_zip(plain)), "a zip archive"),
    (lambda plain: gzip.compress(gzip.compress(plain)), "gzip content in compressed content"),
    (lambda plain: pa.compress(plain, codec="lz4", asbytes=True), "lz4 content"),
    (lambda plain: lzma.compress(plain, lzma.FORMAT_ALONE), "lzma content of the old form"),
]


@pytest.mark.parametrize(("pack", "seen"), OTHERWISE_PACKED)
@pytest.mark.parametrize("format", ["csv", "jsonl", "text"])
def test_what_is_packed_otherwise_is_refused_by_name(node, format, pack, seen):
    """A tar archive of texts would be read as a text with names of files in it."""
    path = node.write("rows", pack(csv_text(ROWS).encode()))
    spec = {"format": format, "path": path, **({} if format == "text" else {"target": "y"})}
    with pytest.raises(JobFailed) as caught:
        node.build(spec, task="causal_lm" if format == "text" else "classification")
    assert caught.value.reason is Reason.DATA_INVALID
    assert f"saw {seen}; unpack it" in str(caught.value)


def test_a_line_has_a_largest_size_even_if_it_is_packed_small(node, monkeypatch):
    monkeypatch.setattr("roadless.worker.data.formats.lines.MAX_RECORD_BYTES", 1000)
    node.write("a.csv", gzip.compress(b"a,y\n" + b"1" * 5000))
    assert "a.csv, line 2: expected at most 1000 bytes, saw more" in fault(node, "a.csv")


# ---- columns of folders -------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["csv", "jsonl", "npz", "parquet"])
def test_a_folder_can_name_the_target_or_a_feature(node, format):
    for label in (0, 1):
        for month in ("01", "12"):
            folder = f"y={label}/month={month}"
            (node.root / folder).mkdir(parents=True)
            write_table(node, f"{folder}/part.{format}", {"a": [float(label), float(label)]})
    paths = [f"y={y}/month={month}/part.{format}" for y in (0, 1) for month in ("01", "12")]
    inputs, targets = all_rows(build(node, paths))
    assert sorted(zip(targets, inputs, strict=True)) == [
        *[(0, [0.0, 1.0])] * 2,
        *[(0, [0.0, 12.0])] * 2,
        *[(1, [1.0, 1.0])] * 2,
        *[(1, [1.0, 12.0])] * 2,
    ]
    inputs, _ = all_rows(build(node, paths, columns=["month", "a"]))
    assert {row[0] for row in inputs} == {1.0, 12.0}
    inputs, _ = all_rows(build(node, paths, columns=["a"]))
    assert {len(row) for row in inputs} == {1}


def test_the_columns_of_folders_are_those_that_pyarrow_finds(node):
    for label in (0, 1):
        (node.root / f"set/y={label}/size=7").mkdir(parents=True)
        write_table(node, f"set/y={label}/size=7/p.parquet", {"a": [1.5, 2.5]})
    found = pyarrow.dataset.dataset(node.root / "set", partitioning="hive").to_table()
    names = [f"set/y={label}/size=7/p.parquet" for label in (0, 1)]
    inputs, targets = all_rows(build(node, names, columns=["a", "size"]))
    expected = zip(*(found[name].to_pylist() for name in ("a", "size", "y")), strict=True)
    read = ((*row, label) for row, label in zip(inputs, targets, strict=True))
    assert sorted(read) == sorted(expected)


def test_a_folder_that_all_files_share_is_a_column_only_if_it_is_named(node):
    for part in ("1", "2"):
        node.write(f"run=abc/size=3/{part}.csv", "a,y\n1,0\n2,1\n")
    paths = ["run=abc/size=3/1.csv", "run=abc/size=3/2.csv"]
    assert build(node, paths).description.input_shape == (1,)
    assert all_rows(build(node, paths, columns=["size"]))[0] == [[3.0]] * 4
    said = fault(node, paths, columns=["a", "run"])
    assert "run=abc/size=3/1.csv, row 1, column 'run': expected a number, saw 'abc'" in said


def test_a_folder_of_another_key_or_without_a_value_is_refused(node):
    for folder in ("y=0", "y=1", "y=__HIVE_DEFAULT_PARTITION__", "z=1"):
        node.write(f"{folder}/a.csv", "a\n1\n2\n")
    assert "expected a column 'y', saw the columns 'a', 'z'" in fault(
        node, ["y=0/a.csv", "z=1/a.csv"]
    )
    said = fault(node, ["y=0/a.csv", "y=__HIVE_DEFAULT_PARTITION__/a.csv"])
    assert "row 1, column 'y': expected a class number, saw None" in said


def test_a_column_of_the_file_is_not_that_of_its_folder(node):
    node.write("y=1/a.csv", "a,y\n1,0\n2,1\n3,0\n")
    assert sorted(all_rows(build(node, "y=1/a.csv"))[1]) == [0, 0, 1]


keys = st.text("abc %=é", min_size=1, max_size=4).filter(lambda key: "=" not in key)


@given(st.lists(st.tuples(keys, keys), max_size=3, unique_by=lambda pair: pair[0]))
def test_keys_and_values_of_folders_are_unquoted(pairs):
    folders = [f"{quote(key)}={quote(value)}" for key, value in pairs]
    for name in ("/".join(["/data", *folders, "x=1.csv"]), "/".join(["s3://b", *folders, "f.csv"])):
        assert folder_columns(name) == dict(pairs)
    assert varying([f"/{'/'.join([*folders, 'a.csv'])}"] * 2) == set()


# ---- npz ----------------------------------------------------------------------------------------


def test_members_that_are_no_arrays_are_refused_unless_the_arrays_are_named(node):
    np.savez(node.root / "a.npz", x=np.arange(4.0), y=np.arange(4) % 2)
    with zipfile.ZipFile(node.root / "a.npz", "a") as archive:
        archive.writestr("about.txt", "hello")
    assert "'about.txt': expected a numpy array, saw a member of another" in fault(node, "a.npz")
    assert len(all_rows(build(node, "a.npz", columns=["x"]))[0]) == 4


def test_an_array_that_is_there_twice_is_refused(node):
    np.savez(node.root / "a.npz", x=np.arange(4.0), y=np.arange(4) % 2)
    again = io.BytesIO()
    np.save(again, np.zeros(4))
    with (
        zipfile.ZipFile(node.root / "a.npz", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("x.npy", again.getvalue())
    assert "expected a distinct name for each array, saw 'x', 'y', 'x'" in fault(node, "a.npz")


@pytest.mark.parametrize("order", ["C", "F"])
def test_texts_of_numpy_are_names_of_classes_and_no_numbers(node, order):
    names = np.array(["no", "yes", "maybe"] * 4)
    numbers = np.array(["1", "2_0"] * 6).reshape(6, 2, order=order).repeat(2, axis=0)
    np.savez(node.root / "a.npz", x=np.arange(12.0), y=names)
    data = build(node, "a.npz")
    inputs, targets = all_rows(data)
    assert data.description.class_names == ("maybe", "no", "yes")
    assert [names[int(row[0])] for row in inputs] == [
        data.description.class_names[label] for label in targets
    ]
    np.savez(node.root / "b.npz", x=np.asarray(numbers, order=order), y=names)
    assert "b.npz, row 1, column 'x': expected a number, saw ['1', " in fault(node, "b.npz")


@pytest.mark.parametrize(
    ("about", "problem"),
    [
        (np.array(3), "expected an array of rows, saw a single number; name the arrays to use"),
        (np.arange(3), "the same number of rows, saw {'x': 4, 'about': 3, 'y': 4}; name those to"),
        (np.array([b"a"] * 4), "expected numbers or texts (numpy.str_), saw dtype |S1; convert"),
        (np.array(["2024-05-01"] * 4, "M8[D]"), "saw dtype datetime64[D]; convert the array, or"),
    ],
)
def test_arrays_that_are_no_features_are_refused_unless_others_are_named(node, about, problem):
    np.savez(node.root / "a.npz", x=np.arange(4.0), y=np.arange(4) % 2, about=about)
    assert problem in fault(node, "a.npz")
    assert len(all_rows(build(node, "a.npz", columns=["x"]))[0]) == 4


@pytest.mark.parametrize("place", [0, 40, 60, 200, 2000, -20])
def test_a_damaged_archive_is_refused(node, place):
    random = np.random.default_rng(0).random(999)
    np.savez_compressed(node.root / "a.npz", x=random, y=[0, 1, 0] * 333)
    content = bytearray((node.root / "a.npz").read_bytes())
    place %= len(content)
    content[place : place + 20] = bytes(20)
    node.write("a.npz", bytes(content))
    assert re.search(
        r"a\.npz(, '[xy]')?: expected an? (npz archive|numpy array)", fault(node, "a.npz")
    )


def test_an_array_in_fortran_order_is_held_in_memory_up_to_a_bound(node, monkeypatch):
    monkeypatch.setattr("roadless.worker.data.formats.npz_rows.MAX_FORTRAN_BYTES", 99)
    np.savez(node.root / "a.npz", x=np.asfortranarray(np.ones((7, 2))), y=np.arange(7) % 2)
    said = fault(node, "a.npz")
    assert "'x': expected at most 99 bytes in Fortran order" in said
    assert said.endswith("saw 112; store numpy.ascontiguousarray of it")
