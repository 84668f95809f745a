"""Whether a file is a wheel that a node may install. Only reads it.

Whether it fits a node, its Python and its packages, is decided there; this finds what is wrong
everywhere.
"""

import email.message
import email.parser
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from packaging.utils import (
    InvalidWheelFilename,
    NormalizedName,
    canonicalize_name,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from roadless.service.contract.uploads.wheels import MAX_UNPACKED_BYTES, MAX_WHEEL_FILES, reserved
from roadless.service.errors import Invalid

#: Limits for the list of files, which is read as a whole, and for one file of metadata.
_MAX_DIRECTORY_BYTES = 4 * 2**20
_MAX_METADATA_BYTES = 2**20
_LONGEST_COMMENT = 2**16
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE, _ZIP64_SIGNATURE = b"PK\x05\x06", b"PK\x06\x07"
_ZIP64_LOCATOR_BYTES = 20
_ENCRYPTED = 0x1
_DIST_INFO, _DATA = ".dist-info", ".data"
_LIBRARIES = ("purelib", "platlib")
#: Where data files may be: elsewhere they could change the environment itself.
_DATA_FOLDERS = ("share", "etc")
_MODULE_SUFFIXES = (".py", ".pyc", ".so")


@dataclass(frozen=True)
class WheelFacts:
    """What a wheel says about itself. ``distribution``: normalised."""

    distribution: str
    version: str


def facts_of_name(file_name: str) -> WheelFacts:
    """Return what the file's name says; raises Invalid unless it is a wheel's."""
    name, version = _parsed(file_name)
    return WheelFacts(name, str(version))


def inspect(path: Path, *, file_name: str) -> None:
    """Raise Invalid unless the file is a wheel of this name that ranks can use.

    Sizes are those of the archive's own list; whoever unpacks a file gets no more than it says.
    """
    try:
        with path.open("rb") as file:
            _require_short_directory(file)
            with zipfile.ZipFile(file) as archive:
                _require_bounded(archive.infolist())
                _require_safe(archive.infolist())
                _require_metadata(archive, file_name)
                _require_free_names(archive.namelist())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeError) as error:
        raise Invalid(f"expected {file_name} to be a zip archive, saw: {error}") from error


def _parsed(file_name: str) -> tuple[NormalizedName, Version]:
    try:
        name, version, _, _ = parse_wheel_filename(file_name)
    except (InvalidWheelFilename, InvalidVersion) as error:
        raise Invalid(
            f"expected a file name as NAME-VERSION-PYTHON-ABI-PLATFORM.whl, saw {file_name!r}"
        ) from error
    return name, version


def _require_short_directory(file: BinaryIO) -> None:
    """Check the end record before a library reads the list of files that it describes."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _LONGEST_COMMENT - _END.size))
    tail = file.read()
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) - at < _END.size:
        raise Invalid("expected a zip archive, saw none")
    if tail[:at][-_ZIP64_LOCATOR_BYTES:].startswith(_ZIP64_SIGNATURE):
        raise Invalid("expected a zip archive without 64-bit extensions, saw some")
    directory_bytes = _END.unpack_from(tail, at)[5]
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise Invalid(
            f"expected a list of files of at most {_MAX_DIRECTORY_BYTES} bytes, "
            f"saw {directory_bytes}"
        )


def _require_bounded(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_WHEEL_FILES:
        raise Invalid(f"expected at most {MAX_WHEEL_FILES} files, saw {len(members)}")
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_UNPACKED_BYTES:
        raise Invalid(f"expected at most {MAX_UNPACKED_BYTES} bytes unpacked, saw {unpacked}")


def _require_safe(members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Invalid(f"expected each file only once, saw {twice!r} twice")
    for member in members:
        _require_safe_member(member)


def _require_safe_member(member: zipfile.ZipInfo) -> None:
    parts = member.filename.removesuffix("/").split("/")
    if "\\" in member.filename or any(part in ("", ".", "..") for part in parts):
        raise Invalid(f"expected paths below the root, saw {member.filename!r}")
    is_data = parts[0].endswith(_DATA) and parts[1:2] == ["data"] and len(parts) > 2
    if is_data and parts[2] not in _DATA_FOLDERS:
        raise Invalid(f"expected data files below share or etc, saw {member.filename!r}")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise Invalid(f"expected files and no links, saw the link {member.filename!r}")
    if member.flag_bits & _ENCRYPTED:
        raise Invalid(f"expected plain files, saw {member.filename!r} encrypted")


def _require_metadata(archive: zipfile.ZipFile, file_name: str) -> None:
    folder = _dist_info(archive.namelist())
    said = folder.removesuffix(_DIST_INFO).partition("-")
    _require_identity(folder, said[0], said[2], file_name=file_name)
    metadata = _headers(archive, f"{folder}/METADATA")
    _require_identity(
        f"{folder}/METADATA", metadata["Name"], metadata["Version"], file_name=file_name
    )
    _headers(archive, f"{folder}/RECORD")
    version = _headers(archive, f"{folder}/WHEEL")["Wheel-Version"]
    if str(version).partition(".")[0].strip() != "1":
        raise Invalid(f"expected a wheel of version 1, saw {version}")


def _dist_info(names: Iterable[str]) -> str:
    found = {name.partition("/")[0] for name in names}
    folders = sorted(name for name in found if name.endswith(_DIST_INFO))
    if len(folders) != 1:
        raise Invalid(f"expected one folder *{_DIST_INFO}, saw {', '.join(folders) or 'none'}")
    return folders[0]


def _headers(archive: zipfile.ZipFile, name: str) -> email.message.Message:
    try:
        member = archive.getinfo(name)
    except KeyError as error:
        raise Invalid(f"expected the file {name}, saw none") from error
    if member.file_size > _MAX_METADATA_BYTES:
        raise Invalid(
            f"expected {name} of at most {_MAX_METADATA_BYTES} bytes, saw {member.file_size}"
        )
    return email.parser.BytesParser().parsebytes(archive.read(member), headersonly=True)


def _require_identity(place: str, name: object, version: object, *, file_name: str) -> None:
    expected_name, expected_version = _parsed(file_name)
    try:
        is_equal = Version(str(version)) == expected_version
    except InvalidVersion:
        is_equal = False
    if not is_equal or canonicalize_name(str(name)) != expected_name:
        raise Invalid(
            f"expected {expected_name} {expected_version} in {place}, matching the file name, "
            f"saw {name} {version}"
        )


def _require_free_names(names: Iterable[str]) -> None:
    top = list(_top_level(names))
    if taken := reserved(name.partition(".")[0] for name in top):
        raise Invalid(
            "expected no package or module with a name that Python or a rank needs, saw "
            + ", ".join(taken)
        )
    if paths := [name for name in top if name.endswith(".pth")]:
        raise Invalid(f"expected no file that Python runs when it starts, saw {paths[0]}")


def _top_level(names: Iterable[str]) -> Iterator[str]:
    """Packages, modules and ``.pth`` files that end up where Python imports from."""
    for name in names:
        first, *rest = name.split("/")
        if first.endswith(_DATA) and len(rest) > 1 and rest[0] in _LIBRARIES:
            first, *rest = rest[1:]
        elif first.endswith((_DATA, _DIST_INFO)):
            continue
        if rest or first.endswith((*_MODULE_SUFFIXES, ".pth")):
            yield first
