"""``roadless checkpoint`` as a process, against the real app, with a rank played by the test."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from live_app import serving

from roadless.service.cli.checkpoints import Format
from roadless.worker.export.formats import FORMATS

sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

Roadless = Callable[..., tuple[int, str, str]]


@pytest.fixture
def roadless(service, settings, tmp_path) -> Iterator[Roadless]:
    """Runs ``roadless checkpoint`` with these arguments: (exit code, stdout, stderr)."""
    with serving(service.http.app) as url:

        def running(*arguments: str) -> tuple[int, str, str]:
            given = {"ROADLESS_URL": url, "ROADLESS_HOME": str(settings.home_dir)}
            ran = subprocess.run(
                [sys.executable, "-m", "roadless.service.cli", "checkpoint", *arguments],
                env=os.environ | given,
                cwd=tmp_path,
                text=True,
                capture_output=True,
                check=False,
                timeout=60,
            )
            return ran.returncode, ran.stdout, ran.stderr

        yield running


@sqlite
def test_a_checkpoint_is_listed_pinned_unpinned_and_deleted(service, roadless, digits_spec):
    job, rank = service.running(digits_spec)
    worse, better = rank.save(1, loss=2.0), rank.save(2, loss=1.0)
    state = rank.save(2, kind="resume")
    assert roadless("pin", worse) == (0, f"{worse} pinned\n", "")
    rows = [row.split("\t") for row in roadless("list", job)[1].splitlines()]
    assert {row[0] for row in rows} == {worse, better, state}
    (row,) = [row for row in rows if row[0] == worse]
    assert row[1:6] == ["eval", "step 1", "loss 2", "1 bytes", "pinned"]
    assert roadless("list", job, "--best", "1")[1].startswith(f"{better}\teval\tstep 2\tloss 1\t")
    assert roadless("list", job, "--kind", "resume")[1].startswith(f"{state}\tresume\tstep 2\t\t")
    code, _, said = roadless("delete", worse)
    assert code == 1
    assert "unpin it first" in said
    assert roadless("unpin", worse) == (0, f"{worse} unpinned\n", "")
    assert roadless("delete", worse) == (0, f"{worse} deleted\n", "")
    assert service.get(f"/checkpoints/{worse}").status_code == 404
    code, _, said = roadless("delete", state)
    assert code == 1
    assert job in said
    assert "Traceback" not in said


@sqlite
def test_a_checkpoint_is_downloaded_and_exported_in_one_go(
    service, roadless, digits_spec, tmp_path
):
    _, rank = service.running(digits_spec)
    saved = rank.save(1, content=b"weights")
    code, out, err = roadless("export", saved, "out", "--to", "safetensors")
    assert code == 0, err
    assert json.loads(out)["files"] == ["model.safetensors"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights"
    code, _, err = roadless("export", saved, "out", "--to", "safetensors")
    assert code == 1
    assert "expected a folder that does not exist" in err
    assert "Traceback" not in err


def test_what_the_command_line_offers_is_what_the_worker_writes():
    assert tuple(Format) == FORMATS
