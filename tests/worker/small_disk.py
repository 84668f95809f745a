"""A disk that takes a few bytes at a time, until it is full."""

import errno
import io
from typing import Any


class SmallDisk:
    """Stands in for ``tempfile.TemporaryFile``."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.room = room  #: bytes that may still be written
        self.gives_back = False  #: whether a file that is closed leaves room
        self.open_files: set[io.BytesIO] = set()

    @property
    def held_bytes(self) -> int:
        return sum(len(file.getvalue()) for file in self.open_files)

    def __call__(self, **options: Any) -> io.BytesIO:
        assert options["buffering"] == 0
        file = _File(self)
        self.open_files.add(file)
        return file


class _File(io.BytesIO):
    def __init__(self, disk: SmallDisk) -> None:
        super().__init__()
        self._disk = disk

    def write(self, data: Any) -> int:
        if self._disk.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = bytes(data[: min(7, self._disk.room)])
        self._disk.room -= len(taken)
        return super().write(taken)

    def close(self) -> None:
        self._disk.open_files.discard(self)
        if self._disk.gives_back:
            self._disk.room += len(self.getvalue())
        super().close()
