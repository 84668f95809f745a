"""Checkpoints: what comes back is bit for bit what went in, or an error that says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_specs import OPTIMIZERS, make_optimizer
from torch import nn
from training_bench import bits

from roadless.optim import at_average, averaged_point
from roadless.service.contract.checkpoint.manifest import CheckpointFile, CheckpointKind, Manifest
from roadless.worker.checkpointing.model_files import (
    MODEL_FILE,
    check_files,
    read_model,
    write_model,
)
from roadless.worker.checkpointing.training_state import (
    STATE_FILE,
    Resumed,
    read_state,
    share_of,
    tensors_file,
    write_share,
)
from roadless.worker.errors import CheckpointUnreadable
from roadless.worker.position import Position

STATE_TENSORS_FILE = tensors_file(0)
POSITION = Position(step=7, samples=56, tokens=1, wall_seconds=0.1 + 0.2, gpu_seconds=1e-300)
AVERAGED = ["adamw_schedulefree", "schedulefree_wrapper", "sgd_schedulefree"]


def make_model(width: int = 3) -> nn.Module:
    """With batch norm, a frozen parameter, and one that never sees a gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    model.register_parameter("late", nn.Parameter(torch.ones(2)))
    model[2].bias.requires_grad_(False)
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        batch = torch.randn(5, 4)

        def closure(batch: torch.Tensor = batch) -> float:
            optimizer.zero_grad()
            loss = model(batch).square().sum()
            loss.backward()
            return loss.item()

        optimizer.step(closure)


def manifest_of(files: tuple[CheckpointFile, ...]) -> Manifest:
    return Manifest(
        checkpoint_id="ckpt_1",
        job_id="job_1",
        attempt_id="att_1",
        kind=CheckpointKind.RESUME,
        step=1,
        samples=1,
        files=files,
    )


def write_state(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    evaluated_step: int | None,
) -> tuple[CheckpointFile, ...]:
    """The state of a rank alone."""
    folder.mkdir(parents=True)
    share = share_of(model, optimizer, rank=0, position=position, evaluated_step=evaluated_step)
    return write_share(folder, share)


def state_after(steps: int, folder: Path, **spec: Any) -> tuple[CheckpointFile, ...]:
    model = make_model()
    optimizer = make_optimizer(model, **(spec or {"name": "adamw_schedulefree"}))
    train(model, optimizer, steps=range(steps))
    return write_state(
        folder, model=model, optimizer=optimizer, position=POSITION, evaluated_step=6
    )


def read_into_fresh(folder: Path, *, width: int = 3, name: str = "adamw_schedulefree") -> Resumed:
    model = make_model(width)
    return read_state(folder, model=model, optimizer=make_optimizer(model, name=name))


# ---- training state -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=4, deadline=None)
@given(
    steps=st.integers(0, 4),
    lr=st.floats(1e-6, 0.1),
    warmup_steps=st.integers(0, 5),
    weight_decay=st.floats(0, 0.5),
    r=st.floats(0, 2),
    weight_lr_power=st.floats(0, 2),
)
def test_going_on_from_a_state_is_going_on(
    tmp_path_factory: pytest.TempPathFactory, steps: int, name: str, **spec: Any
) -> None:
    folder = tmp_path_factory.mktemp("state") / "ckpt"
    model = make_model()
    optimizer = make_optimizer(model, name=name, **spec)
    train(model, optimizer, steps=range(steps))
    files = write_state(
        folder, model=model, optimizer=optimizer, position=POSITION, evaluated_step=None
    )
    check_files(folder, manifest_of(files))

    other = nn.Sequential(*make_model(), nn.Identity())  # built alike, in other memory
    other.register_parameter("late", nn.Parameter(torch.zeros(2)))
    again = make_optimizer(other, name=name, **spec)
    assert read_state(folder, model=other, optimizer=again) == Resumed(POSITION, None)
    for _ in range(2):
        assert bits(other.state_dict()) == bits(model.state_dict())
        assert bits(again.state_dict()) == bits(optimizer.state_dict())
        for pair in ((model, optimizer), (other, again)):
            train(*pair, steps=range(steps, steps + 3))


def test_where_the_state_was_taken_comes_back(tmp_path: Path) -> None:
    state_after(2, tmp_path / "ckpt")
    assert read_into_fresh(tmp_path / "ckpt") == Resumed(POSITION, 6)


def test_files_are_json_and_safetensors_and_nothing_else(tmp_path: Path) -> None:
    files = state_after(2, tmp_path / "ckpt") + write_model(tmp_path / "model", make_model())
    assert [file.name for file in files] == [STATE_TENSORS_FILE, STATE_FILE, MODEL_FILE]
    seen = sorted(path.name for path in tmp_path.glob("*/*"))
    assert seen == sorted([STATE_TENSORS_FILE, STATE_FILE, MODEL_FILE])
    json.loads((tmp_path / "ckpt" / STATE_FILE).read_text())
    for path in (tmp_path / "ckpt" / STATE_TENSORS_FILE, tmp_path / "model" / MODEL_FILE):
        header = int.from_bytes(path.read_bytes()[:8], "little")
        tensors = json.loads(path.read_bytes()[8 : 8 + header])
        ends = [tensor["data_offsets"][1] for tensor in tensors.values()]
        assert path.stat().st_size == 8 + header + max(ends)


# ---- model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AVERAGED)
def test_a_model_written_at_the_average_holds_the_average(tmp_path: Path, name: str) -> None:
    model = make_model()
    optimizer = make_optimizer(model, name=name, lr=0.1)
    train(model, optimizer, steps=range(5))
    average = averaged_point(optimizer)  # type: ignore[arg-type]
    expected = {key: average[parameter] for key, parameter in model.named_parameters()}
    with at_average(optimizer):  # type: ignore[arg-type]
        write_model(tmp_path / "ckpt", model)
    fresh = make_model()
    read_model(tmp_path / "ckpt", fresh)
    assert bits({key: value.data for key, value in fresh.named_parameters()}) == bits(expected)
    assert bits(dict(fresh.named_buffers())) == bits(dict(model.named_buffers()))
    assert not torch.equal(fresh[0].weight, model[0].weight)


class Tied(nn.Module):
    """One parameter under two names, and buffers that are views of one tensor."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding.from_pretrained(torch.randn(4, 3, generator=generator))
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight
        table = torch.randn(6, generator=generator)
        self.register_buffer("first", table[:3])
        self.register_buffer("every_other", table[::2])


def test_tied_weights_and_views_come_back(tmp_path: Path) -> None:
    model, fresh = Tied(seed=1), Tied(seed=2)
    write_model(tmp_path / "ckpt", model)
    read_model(tmp_path / "ckpt", fresh)
    assert bits(fresh.state_dict()) == bits(model.state_dict())
    assert fresh.head.weight is fresh.embedding.weight


def test_a_view_is_written_without_the_rest_of_its_tensor(tmp_path: Path) -> None:
    write_model(tmp_path / "ckpt", Tied(seed=1))
    content = (tmp_path / "ckpt" / MODEL_FILE).read_bytes()
    header = int.from_bytes(content[:8], "little")
    assert len(content) - 8 - header == 4 * (12 + 12 + 3 + 3)


# ---- damage -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_changed_or_shortened_file_differs_from_its_manifest(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("state") / "ckpt"
    files = state_after(1, folder)
    path = folder / data.draw(st.sampled_from(files)).name
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    path.write_bytes(data.draw(st.sampled_from([flipped, content[:place]])))
    with pytest.raises(CheckpointUnreadable, match=f"{path.name}: expected"):
        check_files(folder, manifest_of(files))


def test_a_missing_file_differs_from_its_manifest(tmp_path: Path) -> None:
    files = state_after(1, tmp_path / "ckpt")
    (tmp_path / "ckpt" / STATE_FILE).unlink()
    with pytest.raises(CheckpointUnreadable, match=f"{STATE_FILE}: expected a file"):
        check_files(tmp_path / "ckpt", manifest_of(files))


@pytest.mark.parametrize("name", [STATE_TENSORS_FILE, STATE_FILE])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff" * 100, b'{"optimizer": []}'])
def test_a_state_that_is_not_one_is_unreadable(tmp_path: Path, name: str, content: bytes) -> None:
    state_after(1, tmp_path / "ckpt")
    (tmp_path / "ckpt" / name).write_bytes(content)
    with pytest.raises(CheckpointUnreadable):
        read_into_fresh(tmp_path / "ckpt")


def test_a_shortened_state_is_unreadable(tmp_path: Path) -> None:
    state_after(1, tmp_path / "ckpt")
    path = tmp_path / "ckpt" / STATE_TENSORS_FILE
    for length in (4, 100, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(CheckpointUnreadable):
            read_into_fresh(tmp_path / "ckpt")


def test_a_state_of_another_model_is_unreadable(tmp_path: Path) -> None:
    state_after(1, tmp_path / "ckpt")
    with pytest.raises(CheckpointUnreadable, match="size mismatch"):
        read_into_fresh(tmp_path / "ckpt", width=4)


@pytest.mark.parametrize(("saved", "wanted"), [AVERAGED[::2], AVERAGED[::-2]])
def test_a_state_of_another_optimizer_is_unreadable(
    tmp_path: Path, saved: str, wanted: str
) -> None:
    state_after(1, tmp_path / "ckpt", name=saved)
    with pytest.raises(CheckpointUnreadable, match="expected the state of"):
        read_into_fresh(tmp_path / "ckpt", name=wanted)


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100])
def test_a_model_that_is_not_one_is_unreadable(tmp_path: Path, content: bytes | None) -> None:
    write_model(tmp_path / "ckpt", make_model())
    path = tmp_path / "ckpt" / MODEL_FILE
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointUnreadable, match="the model does not load"):
        read_model(tmp_path / "ckpt", make_model())


def test_a_model_of_another_shape_is_unreadable(tmp_path: Path) -> None:
    write_model(tmp_path / "ckpt", make_model(width=4))
    with pytest.raises(CheckpointUnreadable, match="size mismatch"):
        read_model(tmp_path / "ckpt", make_model())
