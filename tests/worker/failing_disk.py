"""A file system that fails once, at a chosen operation: a new folder or file, a write, a flush."""

import errno
import os
from pathlib import Path
from typing import IO, Any

import pytest

from roadless.worker.checkpointing import safetensors_file


class FailingDisk:
    """Counts what is done to the disk, and refuses the operation number ``fails_at``, from 0."""

    def __init__(self, patch: pytest.MonkeyPatch, *, fails_at: int | None) -> None:
        self.num_operations = 0
        self.fails_at = fails_at
        self._open, self._mkdir, self._fsync = Path.open, Path.mkdir, os.fsync
        patch.setattr(safetensors_file, "_CHUNK_BYTES", 512)
        patch.setattr(Path, "mkdir", lambda *given, **named: self._make(*given, **named))
        patch.setattr(Path, "open", lambda *given, **named: self._opened(*given, **named))
        patch.setattr(safetensors_file.os, "fsync", self._flush)

    @property
    def has_failed(self) -> bool:
        return self.fails_at is not None and self.num_operations > self.fails_at

    def operate(self) -> None:
        self.num_operations += 1
        if self.num_operations - 1 == self.fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _make(self, *given: Any, **named: Any) -> None:
        self.operate()
        self._mkdir(*given, **named)

    def _opened(self, path: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
        file = self._open(path, mode, *given, **named)
        if "x" not in mode:
            return file
        self.operate()
        return _Watched(self, file)

    def _flush(self, fd: int) -> None:
        self.operate()
        self._fsync(fd)


class _Watched:
    def __init__(self, disk: FailingDisk, file: IO[bytes]) -> None:
        self._disk, self._file = disk, file

    def __enter__(self) -> "_Watched":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, data: memoryview) -> int:
        """Half of what is asked for, as a file may."""
        self._disk.operate()
        return self._file.write(data[: max(1, len(data) // 2)])
