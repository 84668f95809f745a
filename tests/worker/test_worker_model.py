"""The presets: shapes follow spec and data, and each model is what its name says."""

import math

import pytest
import torch
from torch import nn

from service.contract.models import ConvnetPreset, GptPreset, MlpPreset
from worker.data.base import Description
from worker.model.convnet import Convnet
from worker.model.gpt import Gpt
from worker.model.mlp import Mlp

IMAGES = Description(input_shape=(3, 9, 7), num_classes=5, tokens_per_sample=0, fingerprint="")
TOKENS = Description(input_shape=(16,), num_classes=32, tokens_per_sample=16, fingerprint="")


def gpt(**options) -> Gpt:
    sizes = {"layers": 2, "width": 16, "heads": 2, "context": 16} | options
    torch.manual_seed(0)
    model = Gpt(GptPreset(kind="preset", name="gpt", **sizes), data=TOKENS)
    for parameter in model.parameters():  # blocks begin at zero; let them speak
        nn.init.normal_(parameter, std=0.3)
    return model


def test_mlp_has_the_hidden_layers_of_its_spec():
    model = Mlp(MlpPreset(kind="preset", name="mlp", hidden=(11, 13)), data=IMAGES)
    shapes = [tuple(p.shape) for p in model.parameters() if p.dim() == 2]
    assert shapes == [(11, 189), (13, 11), (5, 13)]
    assert model(torch.randn(2, 3, 9, 7)).shape == (2, 5)


def test_mlp_without_hidden_layers_is_linear():
    model = Mlp(MlpPreset(kind="preset", name="mlp", hidden=()), data=IMAGES)
    a, b, zero = torch.randn(2, 3, 9, 7), torch.randn(2, 3, 9, 7), torch.zeros(2, 3, 9, 7)
    torch.testing.assert_close(model(a) + model(b), model(a + b) + model(zero))


def test_mlp_with_hidden_layers_is_not_linear():
    torch.manual_seed(0)
    model = Mlp(MlpPreset(kind="preset", name="mlp"), data=IMAGES)
    a, zero = torch.randn(2, 3, 9, 7), torch.zeros(2, 3, 9, 7)
    assert not torch.allclose(model(a) + model(-a), 2 * model(zero), atol=1e-4)


def test_convnet_grows_with_width_and_normalises_by_batch():
    model = Convnet(ConvnetPreset(kind="preset", name="convnet", width=6), data=IMAGES)
    norms = [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [6, 12]
    assert model(torch.randn(4, 3, 9, 7)).shape == (4, 5)


def test_convnet_pools_between_its_blocks():
    model = Convnet(ConvnetPreset(kind="preset", name="convnet", width=6), data=IMAGES)
    assert model.features(torch.randn(2, 3, 8, 8)).shape == (2, 12, 4, 4)


@pytest.mark.parametrize("position", [0, 7, 15])
def test_gpt_sees_the_past_and_never_the_future(position):
    model = gpt()
    before = torch.randint(0, 32, (2, 16))
    after = before.clone()
    after[:, position] = (after[:, position] + 1) % 32
    change = (model(before) - model(after)).abs().amax(dim=(0, 2))
    assert (change[:position] == 0).all()
    assert (change[position:] > 0).all()


def test_gpt_knows_the_order_of_the_past():
    """Without positions, a change of order before the last token would not change its logits."""
    model = gpt(layers=1)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    swapped = torch.tensor([[2, 1, 3, 4, 5, 6, 7, 8]])
    assert not torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], atol=1e-4)


def test_gpt_attention_is_the_textbook_formula_in_complex_numbers():
    """Rotary positions turn each pair of coordinates, as one complex number, by its angle."""
    model = gpt()
    attention, stream = model.blocks[0].attention, torch.randn(3, 16, 16)
    q, k, v = attention.queries_keys_values(stream).reshape(3, 16, 3, 2, 8).unbind(2)
    angles = torch.arange(16)[:, None] * 10_000 ** -(torch.arange(4) / 4)
    turn = torch.polar(torch.ones(16, 4), angles)[:, None]
    q, k = (torch.complex(x[..., :4], x[..., 4:]) * turn for x in (q, k))
    products = torch.einsum("bihk,bjhk->bhij", q, k.conj()).real / math.sqrt(8)
    future = torch.ones(16, 16, dtype=torch.bool).triu(1)
    weights = products.masked_fill(future, -math.inf).softmax(dim=-1)
    expected = attention.project(torch.einsum("bhij,bjhk->bihk", weights, v).flatten(2))
    torch.testing.assert_close(attention(stream, model.cos, model.sin), expected)


def test_gpt_takes_fewer_tokens_than_its_context():
    model = gpt()
    tokens = torch.randint(0, 32, (2, 16))
    torch.testing.assert_close(model(tokens[:, :5]), model(tokens)[:, :5])


def test_gpt_state_holds_each_weight_once_and_no_tables():
    """The head is the embedding, and the rotary tables follow from the spec."""
    model = gpt()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    storages = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(storages) == len(set(storages))


def test_gpt_begins_near_the_uniform_guess():
    torch.manual_seed(0)
    over_bytes = Description((64,), 256, tokens_per_sample=64, fingerprint="")
    model = Gpt(GptPreset(kind="preset", name="gpt"), data=over_bytes)
    tokens = torch.randint(0, 256, (8, 64))
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(7, 0).flatten())
    assert loss.item() == pytest.approx(math.log(256), abs=0.5)
