"""What makes a file no wheel that a node may install."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.utils import canonicalize_name
from wheel_maker import PACKAGE, make_wheel

from roadless.service.errors import Invalid
from roadless.service.wheels import inspection
from roadless.service.wheels.inspection import WheelFacts, facts_of_name, inspect

INFO = "our_models-1.0.dist-info"


def refused(path: Path) -> str:
    with pytest.raises(Invalid) as caught:
        inspect(path, file_name=path.name)
    assert "expected" in caught.value.detail
    assert "saw" in caught.value.detail
    return caught.value.detail


def with_member(path: Path, name: str, content: bytes = b"", **facts: Any) -> Path:
    """The wheel with one more file, described as the facts say."""
    member = zipfile.ZipInfo(name)
    for key, value in facts.items():
        setattr(member, key, value)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, content)
    return path


def test_a_good_wheel_is_let_in(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, requires=["torch"], requires_python=">=3.9")
    inspect(path, file_name=path.name)


@given(
    name=st.from_regex(r"[A-Za-z0-9]+([_.][A-Za-z0-9]+)*", fullmatch=True),
    version=st.lists(st.integers(0, 99), min_size=1, max_size=4),
)
def test_a_name_says_the_distribution_and_its_version(name: str, version: list[int]) -> None:
    number = ".".join(map(str, version))
    escaped = name.replace(".", "_")
    facts = facts_of_name(f"{escaped}-{number}-cp311-abi3-linux_x86_64.whl")
    assert facts == WheelFacts(canonicalize_name(escaped), number)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"no archive at all" * 100])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "our_models-1.0-py3-none-any.whl"
    path.write_bytes(content)
    refused(path)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path)
    content = bytearray(path.read_bytes())
    at = content.index(b"METADATA") + len(b"METADATA")
    content[at : at + 10] = bytes(10)
    path.write_bytes(content)
    refused(path)


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_wheel_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: float
) -> None:
    path = make_wheel(tmp_path_factory.mktemp("cut"))
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    refused(path)


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../escape.py", "our_models/../../escape.py", "our_models/./a.py"),
        *("our_models//a.py", "our_models\\a.py", "..", "C:\\a.py"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    assert "below the root" in refused(with_member(make_wheel(tmp_path), name))


@pytest.mark.parametrize("path", ["pyvenv.cfg", "wheel.json", "lib/python3.11/site-packages/a.py"])
def test_data_that_would_change_the_environment_is_refused(tmp_path: Path, path: str) -> None:
    wheel = with_member(make_wheel(tmp_path), f"our_models-1.0.data/data/{path}")
    assert "below share or etc" in refused(wheel)


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = with_member(
        make_wheel(tmp_path), "our_models/link", b"/etc/passwd", external_attr=0o120777 << 16
    )
    assert "no links" in refused(path)


def test_a_file_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        with_member(path, "our_models/__init__.py", b"another = 1")
    assert "expected each file only once" in refused(path)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MAX_WHEEL_FILES", 3)
    assert "at most 3 files" in refused(make_wheel(tmp_path))


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """A thousandth of its size as it comes."""
    path = make_wheel(tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            with archive.open(f"our_models/{number}.bin", "w") as file:
                for _ in range(360):
                    file.write(bytes(2**20))
    assert path.stat().st_size < 3 * 2**20
    assert "bytes unpacked" in refused(path)


def test_a_list_of_files_beyond_the_bound_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be held in memory as a whole, whatever number of files it says."""
    path = make_wheel(tmp_path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<L", content, len(content) - 10, 2**30)
    path.write_bytes(content)
    monkeypatch.setattr(zipfile, "ZipFile", _never)
    assert "a list of files of at most" in refused(path)


def _never(*args: Any, **options: Any) -> Any:
    raise AssertionError("read")


def test_sizes_in_64_bits_which_go_before_the_bounded_ones_are_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path)
    content = path.read_bytes()
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    path.write_bytes(content[:-22] + locator + content[-22:])
    assert "64-bit" in refused(path)


@pytest.mark.parametrize(
    ("dist_info", "words"),
    [
        ({"METADATA": None}, "expected the file our_models-1.0.dist-info/METADATA"),
        ({"WHEEL": None}, "expected the file our_models-1.0.dist-info/WHEEL"),
        ({"RECORD": None}, "expected the file our_models-1.0.dist-info/RECORD"),
        ({"METADATA": "Name: other\nVersion: 1.0\n"}, "saw other 1.0"),
        ({"METADATA": "Name: our-models\nVersion: 1.1\n"}, "saw our-models 1.1"),
        ({"METADATA": "Name: our-models\n"}, "saw our-models None"),
        ({"METADATA": "Name: our-models\nVersion: 1.0\n" + "a" * 2**20}, "bytes, saw"),
        ({"WHEEL": "Wheel-Version: 2.0\n"}, "expected a wheel of version 1, saw 2.0"),
        ({"WHEEL": "Generator: hand\n"}, "expected a wheel of version 1, saw None"),
    ],
)
def test_metadata_that_is_absent_or_another_is_refused(
    tmp_path: Path, dist_info: dict[str, str | None], words: str
) -> None:
    assert words in refused(make_wheel(tmp_path, dist_info=dist_info))


def test_names_and_versions_count_as_equal_where_they_are_to_everybody(tmp_path: Path) -> None:
    dist_info = {"METADATA": "Name: Our.Models\nVersion: 1.0.0\n"}
    path = make_wheel(tmp_path, dist_info=dist_info)
    inspect(path, file_name=path.name)


def test_metadata_of_two_distributions_is_refused(tmp_path: Path) -> None:
    path = with_member(make_wheel(tmp_path), "other-1.0.dist-info/METADATA")
    assert "expected one folder *.dist-info" in refused(path)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("roadless/__init__.py", "roadless"),
        ("torch/__init__.py", "torch"),
        ("torch/nn/extra.py", "torch"),
        ("roadless.py", "roadless"),
        ("roadless.cpython-311-x86_64-linux-gnu.so", "roadless"),
        ("json/__init__.py", "json"),
        ("sitecustomize.py", "sitecustomize"),
        ("our_models-1.0.data/purelib/roadless/__init__.py", "roadless"),
        ("our_models-1.0.data/platlib/numpy.py", "numpy"),
        ("other-2.0.data/purelib/ray/__init__.py", "ray"),
    ],
)
def test_a_package_that_would_take_the_place_of_one_of_ours_is_refused(
    tmp_path: Path, name: str, taken: str
) -> None:
    assert refused(make_wheel(tmp_path, files={**PACKAGE, name: ""})).endswith(f"saw {taken}")


@pytest.mark.parametrize("name", ["a.pth", "our_models-1.0.data/purelib/a.pth"])
def test_what_python_runs_when_it_starts_is_refused(tmp_path: Path, name: str) -> None:
    """It would run before a rank has begun, and could put anything before the node's packages."""
    said = refused(make_wheel(tmp_path, files={**PACKAGE, name: "import os"}))
    assert said.endswith("saw a.pth")


@pytest.mark.parametrize(
    "name",
    [
        *("our_models/worker.py", "our_models/torch/__init__.py", "our_models/a.pth"),
        "our_models-1.0.data/data/share/torch/notes.txt",
        *("our_models-1.0.data/scripts/json", "torch.txt", f"{INFO}/torch/LICENSE"),
    ],
)
def test_the_same_names_elsewhere_do_no_harm(tmp_path: Path, name: str) -> None:
    path = make_wheel(tmp_path, files={**PACKAGE, name: ""})
    inspect(path, file_name=path.name)


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refused(path)


def test_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + offset] = 99
    path.write_bytes(content)
    refused(path)
