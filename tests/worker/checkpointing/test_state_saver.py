"""Training states beside training: what is saved, when it waits, and what a bad disk costs."""

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from failing_disk import FailingDisk
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import MODELS, job_of
from training_bench import CONVNET, Bench, bits, make_brief
from worker_drills import wait_until

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.reports.events import Notice
from roadless.worker.checkpointing import model_files, safetensors_file, state_saver
from roadless.worker.checkpointing.model_files import check_files, gathered
from roadless.worker.checkpointing.state_saver import HostCopy
from roadless.worker.position import Position


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A convnet after three steps, with one good state published."""
    bench = Bench(make_brief(model=CONVNET), tmp_path)
    steps(bench, 3)
    save(bench)
    bench.settle()
    return bench


def steps(bench: Bench, number: int) -> None:
    for _ in range(number):
        bench.training.take_step()


def save(bench: Bench) -> None:
    bench.states.save(Position(step=bench.training.step), evaluated_step=None)


def states_of(bench: Bench) -> list[Any]:
    return bench.reporter.of_kind(CheckpointKind.RESUME)


def notices_of(bench: Bench) -> list[str]:
    return [event.code for event in bench.reporter.said if isinstance(event, Notice)]


# ---- a disk that fails --------------------------------------------------------------------------


def test_a_save_that_fails_anywhere_is_never_published(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each single operation: the state before stays the last, and training goes on."""
    num_failed = 0
    while True:
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, fails_at=num_failed)
            save(bench)
            bench.states.close()
        if not disk.has_failed:
            break
        num_failed += 1
        assert [staged.manifest.step for staged in states_of(bench)] == [3]
        assert list((tmp_path / "staging").iterdir()) == [states_of(bench)[0].folder]
        with pytest.raises(OSError, match="No space left"):
            bench.settle()
    assert num_failed > 20
    assert len(states_of(bench)) == 2
    for staged in states_of(bench):
        check_files(staged.folder, staged.manifest)
    assert notices_of(bench) == ["checkpoint.failed"]
    bench.settle()
    steps(bench, 1)


def test_an_eval_checkpoint_that_fails_anywhere_is_never_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each single operation: its point is said, nothing stays behind, and training goes on.

    A run that ends with it fails, since its last model is what its user wants.
    """
    bench = Bench(make_brief(model={"kind": "preset", "name": "linear"}), tmp_path)
    steps(bench, 3)
    before = bits(bench.state)
    num_failed = 0
    while True:
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, fails_at=num_failed)
            bench.evaluations.evaluate(Position(step=3), evaluations_served=0)
        assert bits(bench.state) == before
        assert len(bench.reporter.evals) == num_failed + 1
        if not disk.has_failed:
            break
        num_failed += 1
        assert not bench.reporter.of_kind(CheckpointKind.EVAL)
        assert not list((tmp_path / "staging").glob("*"))
        with pytest.raises(OSError, match="No space left"):
            bench.settle()
    assert num_failed > 20
    (staged,) = bench.reporter.of_kind(CheckpointKind.EVAL)
    check_files(staged.folder, staged.manifest)
    assert notices_of(bench) == ["checkpoint.failed"]
    bench.settle()
    steps(bench, 1)


@pytest.mark.parametrize("name", MODELS)
def test_an_eval_checkpoint_of_any_model_that_is_cut_short_is_never_published(
    tmp_path: Path, name: str
) -> None:
    """By the kernel, which takes no byte of a file behind some place, whoever writes it."""
    bench = Bench(make_brief(**job_of(name)), tmp_path)
    steps(bench, 1)
    bench.evaluations.evaluate(Position(step=1), evaluations_served=0)
    (whole,) = bench.reporter.of_kind(CheckpointKind.EVAL)
    sizes = sorted({file.size for file in whole.manifest.files})
    for limit in sorted({0, 7, *(size // 2 for size in sizes), *(size - 1 for size in sizes)}):
        with no_file_longer_than(limit):
            bench.evaluations.evaluate(Position(step=1), evaluations_served=0)
        assert bench.reporter.of_kind(CheckpointKind.EVAL) == [whole]
        assert list((tmp_path / "staging").iterdir()) == [whole.folder]
    assert notices_of(bench) == ["checkpoint.failed"]
    bench.evaluations.evaluate(Position(step=1), evaluations_served=0)
    assert len(bench.reporter.of_kind(CheckpointKind.EVAL)) == 2
    check_files(whole.folder, whole.manifest)


@contextmanager
def no_file_longer_than(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- beside training ----------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits until it is set."""
    gate, write = threading.Event(), safetensors_file.write_tensors

    def patient(*given: Any, **named: Any) -> Any:
        assert gate.wait(10)
        return write(*given, **named)

    monkeypatch.setattr("roadless.worker.checkpointing.training_state.write_tensors", patient)
    return gate


def test_training_goes_on_while_a_state_is_written_and_does_not_change_it(
    bench: Bench, gate: threading.Event, tmp_path: Path
) -> None:
    before = bits(bench.state)
    save(bench)
    steps(bench, 3)
    assert bits(bench.state) != before
    assert len(states_of(bench)) == 1
    gate.set()
    bench.settle()
    again = Bench(make_brief(model=CONVNET), tmp_path / "again", resume=bench.last_state)
    assert bits(again.state) == before


def test_a_save_waits_for_the_one_before_and_says_so_once(
    bench: Bench, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So one state is in memory and one is being written, never more, and none is left out."""
    monkeypatch.setattr(state_saver, "_WORTH_TELLING_SECONDS", 0.01)
    save(bench)
    steps(bench, 1)
    second = threading.Thread(target=save, args=(bench,))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    gate.set()
    second.join(10)
    bench.settle()
    assert [staged.manifest.step for staged in states_of(bench)] == [3, 3, 4]
    assert notices_of(bench) == ["checkpoint.slow"]


def test_memory_is_ready_before_the_first_save(tmp_path: Path) -> None:
    bench = Bench(make_brief(model=CONVNET), tmp_path)
    steps(bench, 1)
    bench.states.prepare()
    copy = bench.states._copy
    wait_until(lambda: not bench.states.is_busy)
    ready = {name: buffer.data_ptr() for name, buffer in copy._buffers.items()}
    for _ in range(2):
        save(bench)
        bench.settle()
    assert {name: buffer.data_ptr() for name, buffer in copy._buffers.items()} == ready


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_copies_are_equal_and_use_no_memory_of_their_own(data: st.DataObject) -> None:
    """Whatever changes between saves: shapes, dtypes, names that come and go."""
    copy, taken = HostCopy(), {}
    shapes = st.sampled_from([(), (3,), (2, 3), (0, 2)])
    dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.int16, torch.bool])
    for _ in range(3):
        wanted = data.draw(st.dictionaries(st.sampled_from("abc"), st.tuples(shapes, dtypes)))
        tensors = {
            name: torch.randint(0, 2, shape).to(dtype) for name, (shape, dtype) in wanted.items()
        }
        kept, taken = taken, copy.take(tensors)
        assert bits(taken) == bits(tensors)
        for name, buffer in kept.items():
            same = name in tensors and buffer.shape == tensors[name].shape
            if same and buffer.dtype == tensors[name].dtype:
                assert taken[name] is buffer


def test_a_lead_whose_disk_fails_gathers_to_the_end_with_the_others(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who shares a model with it waits in the same exchange, tensor by tensor."""
    seen: list[str] = []

    def counted(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in gathered(model):
            seen.append(name)
            yield name, tensor

    monkeypatch.setattr(model_files, "gathered", counted)
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="File exists"):
        model_files.write_model(tmp_path / "taken", bench.setup.model)
    assert sorted(seen) == sorted(bench.setup.model.state_dict())
