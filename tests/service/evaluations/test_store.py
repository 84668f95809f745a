"""The eval curve in pages: each point once, where steps were evaluated by two attempts as well."""

import pytest
from stage import staged

from roadless.service.evaluations import store


@pytest.fixture
def stage(database_url, tmp_path):
    with staged(database_url, tmp_path) as stage:
        yield stage


def evaluated(step, seq, loss=1.0):
    return {
        "kind": "eval",
        "seq": seq,
        "step": step,
        "samples": step,
        "tokens": 0,
        "wall_seconds": step,
        "gpu_seconds": 0,
        "loss": loss,
    }


def points(stage, job_id, *, limit):
    """(step, fence) of the whole curve, read in pages."""
    found, since = [], -1
    while True:
        with stage.db.read() as session:
            rows = store.curve(session, job_id, since=since, limit=limit)
        if not rows:
            return found
        found += [(point.step, point.fence) for point, _ in rows]
        since = rows[-1][0].step


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
def test_pages_of_a_curve_split_no_step(stage, digits_spec, limit):
    """A second attempt that saved no training state begins at step 0, as the first one did."""
    job_id, runner_id = stage.submit(digits_spec), stage.register()
    first = stage.claim(runner_id)
    stage.report(first.token, evaluated(0, 1))
    stage.sync(runner_id, alive=[first.attempt_id])
    stage.sync(runner_id, alive=[])
    second = stage.claim(runner_id, released=[first.attempt_id])
    stage.report(second.token, *(evaluated(step, step + 1) for step in range(3)))
    assert points(stage, job_id, limit=limit) == [(0, 1), (0, 2), (1, 2), (2, 2)]
