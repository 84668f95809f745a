"""What a fork server loads: none of the libraries that only some data needs."""

import subprocess
import sys

import pytest

from roadless.worker.agent.launcher import PRELOAD
from roadless.worker.data.lazy_import import lazy_import
from roadless.worker.errors import DataNotFound

LATE = {"PIL", "datasets", "obstore", "pandas", "pyarrow", "tokenizers"}


def test_a_fork_server_loads_none_of_them_and_has_one_thread():
    code = f"""
import os, sys
from roadless.worker.agent.rank_process import load_entry
load_entry("os:getpid", preload={PRELOAD!r})
before = set(sys.modules)
import roadless.worker.rank.main
new = {{name.partition('.')[0] for name in set(sys.modules) - before}}
print(*new & {LATE!r}, len(os.listdir('/proc/self/task')))
"""
    environment = {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["1"]


@pytest.mark.parametrize(
    "name",
    ["formats.arrow_rows", "prepared.bpe", "records.hub", "formats.images", "sources.object_files"],
)
def test_a_rank_imports_each_module_by_name(name):
    assert lazy_import(name).__name__ == f"roadless.worker.data.{name}"


def test_a_library_that_is_absent_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "roadless.worker.data.sources.object_files", raising=False)
    with pytest.raises(
        DataNotFound, match=r"the package obstore on this node \(roadless\[data\]\)"
    ):
        lazy_import("sources.object_files")
