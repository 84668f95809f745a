"""Blobs as files below one folder of the service."""

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from roadless.service.errors import BlobMissing, Unavailable
from roadless.service.storage.blobs import CHUNK_BYTES, Content
from roadless.service.storage.disk import needing_room


class LocalBlobs:
    """Blobs as files below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, source: Path) -> None:
        """Move the file next to its place, flush it, rename it, and flush the folders above.

        Next to its place it has a name of its own: the same content may be stored twice at once.
        """
        assert source.exists(), f"expected the file {source}, saw none"
        target = self._path(key)
        part = target.with_name(f".{secrets.token_hex(16)}.part")
        with needing_room(self._root), _folder_lasting(key), _dropped_unless_stored(part):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, part)  # which copies where blobs are on another disk
            _fsync(part)
            part.replace(target)
            self._fsync_folders(target)

    def _fsync_folders(self, target: Path) -> None:
        for folder in target.parents:
            _fsync(folder)
            if folder == self._root.resolve():
                break

    def size(self, key: str) -> int | None:
        """Bytes of the file."""
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, key: str, start: int, stop: int) -> Content:
        """Open now, so that absence is known before the answer begins; then read lazily."""
        try:
            file = self._path(key).open("rb")
        except FileNotFoundError as error:
            raise BlobMissing from error
        return _FileContent(file, start, stop)

    def delete(self, prefix: str) -> None:
        """Remove the folder."""
        shutil.rmtree(self._path(prefix), ignore_errors=True)

    def folders(self, *, before: datetime) -> Iterator[str]:
        """Each blob has its own folder, so the checkpoint's folder is as old as its newest blob."""
        for path in self._older("*/*/*", before):
            yield path.relative_to(self._root).as_posix()

    def drop_unfinished(self, *, before: datetime) -> int:
        """Remove interrupted copies from another disk."""
        num_dropped = 0
        for part in self._older("*/*/*/*/.*.part", before):
            part.unlink(missing_ok=True)
            num_dropped += 1
        return num_dropped

    def _older(self, pattern: str, before: datetime) -> Iterator[Path]:
        # Path.glob (3.11) fails where a folder is deleted while it looks.
        for name in glob.iglob(pattern, root_dir=self._root):
            path = self._root / name
            with contextlib.suppress(FileNotFoundError):  # removed since
                if path.stat().st_mtime < before.timestamp():
                    yield path

    def _path(self, key: str) -> Path:
        path = (self._root / key).resolve()
        assert path.is_relative_to(self._root.resolve()), f"key {key!r} leaves the store"
        return path


class _FileContent:
    """Bytes of an open file. No generator: one that never began would not close it."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self._file = file
        self._left = stop - start
        file.seek(start)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = b"" if self._file.closed else self._file.read(min(CHUNK_BYTES, self._left))
        if not chunk:
            self.close()
            raise StopIteration
        self._left -= len(chunk)
        return chunk

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _folder_lasting(key: str) -> Iterator[None]:
    """Raise Unavailable where the blob's folder is deleted meanwhile, with all that it held."""
    try:
        yield
    except FileNotFoundError as error:
        raise Unavailable(
            f"expected the folder of {key} to stay, saw it deleted meanwhile; try again if what it "
            "belongs to is still there"
        ) from error


@contextlib.contextmanager
def _dropped_unless_stored(part: Path) -> Iterator[None]:
    """A copy that is not finished takes up room that others need."""
    try:
        yield
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
