"""What is sharded as a unit: each block once, wherever it stands, and what a block has inside."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from roadless.optim import SOAP, AdamWScheduleFree
from roadless.service.contract.job.training import ParallelismSpec
from roadless.worker.distributed.parallel import shard
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.errors import ModelInvalid

WIDTH = 5


@pytest.fixture
def _group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def layer() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


class InDouble(nn.Module):
    """Layers in float64, within a model in float32."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers).double()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs.double())
        return outputs.float()


class Scaled(nn.Module):
    """Of another dtype itself, around layers that are units of their own."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((WIDTH,), 0.5, dtype=torch.float64))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return (outputs * self.scale).float()


class Model(nn.Module):
    """Blocks in the order in which they run, and a head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = torch.tanh(block(inputs))
        outputs: Tensor = self.head(inputs)
        return outputs


class Around(Model):
    """Its blocks stand inside a module of another dtype."""

    def __init__(self) -> None:
        super().__init__(Scaled(layer(), layer()))
        self.inner = self.blocks
        self.blocks = self.inner[0].layers  # type: ignore[assignment]

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.inner[0](inputs))
        return outputs


def twice(block: nn.Module) -> Model:
    return Model(block, layer(), block)


def frozen(block: nn.Module) -> nn.Module:
    return block.requires_grad_(False)


def inside(block: nn.Module) -> Model:
    """A block that is a part of another one."""
    return Model(nn.Sequential(block, nn.Tanh()), block)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a block twice": (lambda: twice(layer()), 3),
    "a frozen block twice": (lambda: twice(frozen(layer())), 3),
    "a block of another dtype": (lambda: Model(layer(), InDouble(layer())), 4),
    "a block of another dtype twice": (lambda: twice(InDouble(layer())), 4),
    "another dtype within a block": (lambda: Model(nn.Sequential(layer(), InDouble(layer()))), 3),
    "another dtype within a block twice": (
        lambda: twice(nn.Sequential(layer(), InDouble(nn.LayerNorm(WIDTH)))),
        4,
    ),
    "blocks within another dtype": (Around, 4),
    "a block within a block": (lambda: inside(layer()), 3),
}


def cases() -> list[object]:
    return [pytest.param(*case, id=name) for name, case in MODELS.items()]


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    for t in range(4):
        inputs = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(t))
        optimizer.zero_grad()
        (model(inputs) - 1).square().mean().backward()
        optimizer.step()
    named = model.named_parameters()
    return {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in named}


def sharded(model: nn.Module) -> nn.Module:
    cluster = Cluster(0, 1, torch.device("cpu"))
    shard(model, cluster=cluster, parallelism=ParallelismSpec(num_workers=1, strategy="fsdp"))
    return model


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("kind", [AdamWScheduleFree, SOAP])
@pytest.mark.parametrize(("make", "num_units"), cases())
def test_each_unit_is_sharded_once_and_trains_as_the_bare_model_does(
    make: Callable[[], nn.Module], num_units: int, kind: type[torch.optim.Optimizer]
) -> None:
    """Whose parameters have two dtypes in one group."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(make())
    units = [one for one in sharded(models[0]).modules() if isinstance(one, FSDPModule)]
    assert len(units) == num_units
    seen, expected = (trained(model, kind(model.parameters(), lr=0.02)) for model in models)
    assert seen.keys() == expected.keys()
    for name, value in seen.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_group")
def test_a_layer_of_two_blocks_is_refused_by_its_names() -> None:
    shared = nn.LayerNorm(WIDTH)
    model = Model(nn.Sequential(layer(), shared), nn.Sequential(layer(), shared))
    with pytest.raises(ModelInvalid, match=r"blocks.0.1.bias = blocks.1.1.bias; .* strategy ddp"):
        sharded(model)


@pytest.mark.usefixtures("_group")
def test_a_weight_of_a_block_and_the_head_is_refused_by_its_names() -> None:
    model = Model(layer(), layer())
    model.head = nn.Linear(WIDTH, WIDTH, bias=False)
    model.head.weight = model.blocks[0].weight
    with pytest.raises(ModelInvalid, match=r"blocks.0.weight = head.weight; use strategy ddp"):
        sharded(model)


@pytest.mark.usefixtures("_group")
def test_a_weight_shared_within_a_block_is_sharded_as_one() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Model(nn.Sequential(layer(), nn.Tanh(), layer()))
        model.blocks[0][2].weight = model.blocks[0][0].weight
        models.append(model)
    sharded(models[0])
    seen, expected = (trained(m, AdamWScheduleFree(m.parameters(), lr=0.02)) for m in models)
    for name, value in seen.items():
        torch.testing.assert_close(value, expected[name])
