"""Evaluations and saved states: what is written, said and left as it was."""

from pathlib import Path

import pytest
import torch
from training_bench import CONVNET, Bench, bits, make_brief

from roadless.optim import at_average, averaged_point
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.worker.checkpointing.model_files import check_files, read_model
from roadless.worker.checkpointing.training_state import read_state
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.evaluation.evaluate import recalibrated_buffers
from roadless.worker.position import Position

POSITION = Position(step=4, samples=32, tokens=0, wall_seconds=1.5, gpu_seconds=0.0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A convnet after four steps."""
    bench = Bench(make_brief(model=CONVNET), tmp_path)
    for _ in range(4):
        bench.training.take_step()
    return bench


def test_an_evaluation_is_said_and_then_its_checkpoint_published(bench: Bench) -> None:
    bench.evaluations.evaluate(POSITION, evaluations_served=3)
    assert bench.reporter.order[-2:] == ["eval", "eval"]
    (point,), (staged,) = bench.reporter.evals, bench.reporter.published
    assert (point.step, point.samples, point.wall_seconds) == (4, 32, 1.5)
    assert staged.evaluations_served == 3
    manifest = staged.manifest
    assert (manifest.job_id, manifest.attempt_id) == ("job_1", "att_1")
    assert (manifest.kind, manifest.step, manifest.samples) == (CheckpointKind.EVAL, 4, 32)
    assert manifest.spec == make_brief(model=CONVNET).spec.model_dump(mode="json")
    check_files(staged.folder, manifest)


def test_the_receipt_says_what_was_evaluated_and_how(bench: Bench) -> None:
    bench.evaluations.evaluate(POSITION, evaluations_served=0)
    receipt = bench.reporter.published[0].manifest.evaluation
    assert receipt is not None
    assert receipt.loss == bench.reporter.evals[0].loss
    assert set(receipt.metrics) == {"eval.accuracy", "eval.top5_accuracy"}
    assert receipt.metrics.items() <= bench.reporter.evals[0].metrics.items()
    assert (receipt.num_examples, receipt.batch_size, receipt.max_batches) == (40, 20, 2)
    assert receipt.threads == torch.get_num_threads()
    assert receipt.torch_version == torch.__version__
    assert receipt.data_fingerprint == bench.setup.datasets.train.description.fingerprint


def test_the_checkpoint_is_the_averaged_point_with_statistics_of_its_own(
    bench: Bench, tmp_path: Path
) -> None:
    bench.evaluations.evaluate(POSITION, evaluations_served=0)
    fresh = Bench(make_brief(model=CONVNET), tmp_path / "fresh").setup.model
    read_model(bench.reporter.published[0].folder, fresh)
    model, optimizer = bench.setup.model, bench.setup.optimizer
    average = averaged_point(optimizer)
    expected = {name: average[parameter] for name, parameter in model.named_parameters()}
    with at_average(optimizer):
        expected |= statistics_of(bench)
    seen = fresh.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value.to(seen[name].dtype), rtol=0, atol=0)
    mean = "features.0.1.running_mean"
    assert not torch.equal(seen[mean], model.state_dict()[mean])


def statistics_of(bench: Bench) -> dict[str, torch.Tensor]:
    """Of the model's batch norms, as it stands."""
    spec = make_brief(model=CONVNET).spec
    return recalibrated_buffers(
        bench.setup.model,
        data=bench.setup.datasets.train,
        spec=spec.evaluation,
        seed=spec.training.seed,
        rank=0,
        world_size=1,
        gather=lambda table: table,
    )


def test_an_evaluation_leaves_the_training_point_and_its_buffers_as_they_were(
    bench: Bench,
) -> None:
    before = bits(bench.state)
    held = {name: buffer.data_ptr() for name, buffer in bench.setup.model.named_buffers()}
    torch.manual_seed(7)
    random = torch.get_rng_state()
    bench.evaluations.evaluate(POSITION, evaluations_served=0)
    assert bits(bench.state) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert held == {name: buffer.data_ptr() for name, buffer in bench.setup.model.named_buffers()}
    assert bench.setup.model.training


def test_a_training_state_is_published_with_what_it_takes_to_go_on(
    bench: Bench, tmp_path: Path
) -> None:
    bench.states.save(POSITION, evaluated_step=2)
    bench.settle()
    (staged,) = bench.reporter.published
    manifest = staged.manifest
    assert (manifest.kind, manifest.step, manifest.evaluation) == (CheckpointKind.RESUME, 4, None)
    assert staged.evaluations_served == 0
    check_files(staged.folder, manifest)
    fresh = Bench(make_brief(model=CONVNET), tmp_path / "fresh")
    resumed = read_state(staged.folder, model=fresh.setup.model, optimizer=fresh.setup.optimizer)
    assert (resumed.position, resumed.evaluated_step) == (POSITION, 2)
    assert bits(fresh.state) == bits(bench.state)


def test_checkpoints_do_not_share_a_folder(bench: Bench) -> None:
    for _ in range(2):
        bench.evaluations.evaluate(POSITION, evaluations_served=0)
        bench.states.save(POSITION, evaluated_step=4)
    bench.settle()
    assert len({staged.folder for staged in bench.reporter.published}) == 4


def test_only_the_lead_writes_and_speaks(tmp_path: Path) -> None:
    cluster = Cluster(rank=1, world_size=1, device=torch.device("cpu"))
    bench = Bench(make_brief(model=CONVNET), tmp_path, cluster=cluster)
    bench.evaluations.evaluate(POSITION, evaluations_served=0)
    bench.states.save(POSITION, evaluated_step=None)
    assert bench.reporter.order == []
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_process_left_behind_is_removed(tmp_path: Path) -> None:
    (tmp_path / "staging" / "ckpt_old").mkdir(parents=True)
    Bench(make_brief(), tmp_path)
    assert not (tmp_path / "staging").exists()
