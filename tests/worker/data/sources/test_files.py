"""Which files a job may read: below the roots, by path or pattern, and nothing else."""

import os
from pathlib import Path

import pytest
from data_cases import Node
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.contract.ids import new_id
from roadless.service.contract.states import Reason
from roadless.service.contract.uploads.datasets import DatasetContent, DatasetFile
from roadless.worker.data.sources import local_files, uploaded
from roadless.worker.data.sources.patterns import before_magic, matcher
from roadless.worker.errors import JobFailed

CONTENT = bytes(range(200))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node.at(tmp_path)
    node.write("corpus.txt", CONTENT)
    return node


def load(node: Node, path: str | Path | list[str], **fields):
    path = path if isinstance(path, list) else str(path)
    spec = {"format": "bytes", "path": path, **fields}
    return node.build(spec, task="causal_lm", context=4)


def fault(node: Node, path: str | Path | list[str], **fields) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        load(node, path, **fields)
    return caught.value


def test_a_file_below_a_root_is_read(node):
    data = load(node, node.root / "corpus.txt")
    assert data.eval_batch(0, 1).inputs.tolist() == [[190, 191, 192, 193]]


def test_a_specification_of_before_other_formats_is_read_as_it_was_meant(node):
    data = node.build({"name": "bytes", "path": str(node.root / "corpus.txt")}, task="causal_lm")
    assert data.eval_batch(0, 1).inputs.tolist()[0][:2] == [190, 191]


def test_files_of_a_pattern_come_by_name_and_those_of_a_list_as_listed(node):
    for name in ("b/2.bin", "b/1.bin", "b/c/3.bin"):
        node.write(name, name.encode() * 20)
    names = {
        f"{node.root}/b/*.bin": ["b/1.bin", "b/2.bin"],
        f"{node.root}/b/**/*.bin": ["b/1.bin", "b/2.bin", "b/c/3.bin"],
        f"{node.root}/b/[!1].bin": ["b/2.bin"],
    }
    for pattern, expected in names.items():
        found = local_files.find(pattern, sources=node.sources)
        assert [Path(file.name).relative_to(node.root).as_posix() for file in found] == expected
    data = load(node, [f"{node.root}/b/2.bin", f"{node.root}/b/1.bin"])
    assert bytes(data.eval_batch(0, 1).inputs[0].tolist()) in b"b/1.bin" * 20


@pytest.mark.parametrize("other", ["b/*.bin", "b/1.bin", "b/../b/1.bin", "link.bin", "b/[1].bin"])
def test_a_file_that_is_named_twice_is_refused(node, other):
    """Its samples would count twice, and those held out be trained on."""
    first = node.write("b/1.bin", bytes(range(100)))
    (node.root / "link.bin").symlink_to(first)
    with pytest.raises(JobFailed) as caught:
        load(node, [first, f"{node.root}/{other}"])
    assert caught.value.reason is Reason.DATA_INVALID
    assert "expected each file once, saw " in str(caught.value)
    assert str(caught.value).endswith(f" again after {first}; name it once")


def test_an_uploaded_file_that_two_patterns_name_is_refused():
    names = ("a.csv", "b.csv")
    files = [DatasetFile(name=name, size=1, sha256="0" * 64, parts=()) for name in names]
    content = DatasetContent(dataset_id=new_id("ds"), format="csv", files=tuple(files))
    found = uploaded.find("*.csv", content=content, uploads=uploaded.NoUploads())
    assert [file.name for file in found] == ["a.csv", "b.csv"]
    with pytest.raises(JobFailed, match=r"each file once, saw b.csv again after b.csv") as caught:
        uploaded.find(["b.csv", "*.csv"], content=content, uploads=uploaded.NoUploads())
    assert caught.value.reason is Reason.DATA_INVALID


def test_files_of_their_own_can_be_held_out(node):
    held_out = node.write("held-out.bin", bytes(range(50, 70)))
    data = load(node, node.root / "corpus.txt", eval={"path": held_out})
    assert data.eval_batch(0, 1).inputs.tolist() == [[50, 51, 52, 53]]
    assert (data.num_train, data.num_eval) == (200 // 4 - 1, 19 // 4)


def test_a_link_that_stays_below_the_root_is_followed(node):
    (node.root / "link").symlink_to("corpus.txt")
    assert load(node, node.root / "link").num_eval == 2


def test_a_root_that_is_a_link_opens_what_it_points_to(node, tmp_path):
    (tmp_path / "alias").symlink_to(node.root)
    node = node.allowing(roots=(str(tmp_path / "alias"),))
    assert load(node, node.root / "corpus.txt").num_train > 0


@pytest.mark.parametrize("name", ["absent.txt", "corpus.txt/below", "*.csv"])
def test_a_file_that_is_not_there_is_data_not_found(node, name):
    assert fault(node, f"{node.root}/{name}").reason is Reason.DATA_NOT_FOUND


def test_a_way_out_of_the_root_is_forbidden_and_the_variable_named(node, tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT)
    (node.root / "link").symlink_to(tmp_path / "secret")
    (node.root / "folder").symlink_to(tmp_path)
    for path in (
        tmp_path / "secret",
        node.root / "link",
        node.root / "lin*",
        f"{node.root}/folder/se*",
        f"{node.root}/../secret",
        f"{node.root}/../*",
        "/absent/file",
        "/absent/*",
        "*",
        tmp_path / "database",
        "corpus.txt",
    ):
        found = fault(node, path)
        assert "ROADLESS_DATA_ROOTS" in str(found)
        assert found.reason is Reason.DATA_FORBIDDEN


def test_without_roots_everything_is_forbidden(node):
    found = fault(node.allowing(roots=()), node.root / "corpus.txt")
    assert found.reason is Reason.DATA_FORBIDDEN
    assert "lists no folder" in str(found)


def test_what_is_no_regular_file_is_data_unreadable(node):
    os.mkfifo(node.root / "pipe")
    for path in (node.root, node.root / "pipe"):
        assert fault(node, path).reason is Reason.DATA_UNREADABLE
    assert str(fault(node, node.root)).endswith(f"name the files in it: {node.root}/*")


def test_a_file_that_vanishes_once_it_was_found_is_data_unreadable(node):
    (file,) = local_files.find(str(node.root / "corpus.txt"), sources=node.sources)
    path = file.fetch(node.root, print)
    path.unlink()
    assert path == node.root / "corpus.txt"
    found = fault(node, path)
    assert found.reason is Reason.DATA_NOT_FOUND


def test_too_many_files_are_refused(node, monkeypatch):
    for module in ("local_files", "locations"):
        monkeypatch.setattr(f"roadless.worker.data.sources.{module}.MAX_FILES", 2)
    for number in range(3):
        node.write(f"many/{number}", b"x")
    for path in (f"{node.root}/many/*", [f"{node.root}/many/{number}" for number in range(3)]):
        assert "at most 2 files" in str(fault(node, path))


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_file_too_short_for_a_sample_is_data_invalid(node, content):
    found = fault(node, node.write("short.txt", content))
    assert found.reason is Reason.DATA_INVALID
    assert "short.txt" in str(found)


def test_a_file_that_changes_is_read_anew(node):
    path = node.write("growing.txt", CONTENT)
    first = load(node, path).description.fingerprint
    node.write("growing.txt", CONTENT[::-1])
    assert load(node, path).description.fingerprint != first


def test_the_same_file_in_another_format_is_another_entry(node):
    path = node.write("rows", "x,y\n1,0\n2,1\n3,0\n")
    assert node.build({"format": "csv", "path": path, "target": "y"}).num_train == 2
    with pytest.raises(JobFailed, match="expected a JSON object"):
        node.build({"format": "jsonl", "path": path, "target": "y"})
    with pytest.raises(JobFailed, match="expected a column 'y', saw the columns 'x,y'"):
        node.build({"format": "csv", "path": path, "target": "y", "delimiter": ";"})


letters = st.text("ab/", min_size=1, max_size=6)


@given(letters, letters)
def test_a_pattern_without_magic_matches_itself_alone(pattern, path):
    assert matcher(pattern)(path) == (pattern == path)


@given(st.lists(st.sampled_from(["a", "/", "*", "**/", "?", "[ab]", "[!a]"]), max_size=5), letters)
def test_matches_lie_in_the_folder_before_the_magic(parts, path):
    pattern = "".join(parts)
    if matcher(pattern)(path):
        assert path.startswith(before_magic(pattern))
