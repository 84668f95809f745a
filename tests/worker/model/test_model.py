"""The presets: shapes follow spec and data, and each model is what its name says."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from roadless.service.contract.job.models import (
    GPT_SIZES,
    ConvnetPreset,
    GptPreset,
    LinearPreset,
    MlpPreset,
    PresetSpec,
    ResnetPreset,
    VitPreset,
)
from roadless.worker.data.base import Description
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.base import blocks_of
from roadless.worker.model.build import build_model
from roadless.worker.model.convnet import Convnet
from roadless.worker.model.gpt import Gpt
from roadless.worker.model.linear import Linear
from roadless.worker.model.mlp import Mlp
from roadless.worker.model.resnet import Resnet
from roadless.worker.model.vit import Vit

DOCUMENT = Path(__file__).parents[3] / "docs" / "models.md"
IMAGES = Description(input_shape=(3, 9, 7), num_classes=5, tokens_per_sample=0, fingerprint="")
TOKENS = Description(input_shape=(16,), num_classes=32, tokens_per_sample=16, fingerprint="")


def gpt(**options) -> Gpt:
    sizes = {"layers": 2, "width": 16, "heads": 2, "context": 16} | options
    torch.manual_seed(0)
    model = Gpt(GptPreset(kind="preset", name="gpt", **sizes), data=TOKENS)
    for parameter in model.parameters():  # blocks begin at zero; let them speak
        nn.init.normal_(parameter, std=0.3)
    return model


# ---- linear and mlp ------------------------------------------------------------------------------


def test_linear_is_linear_with_an_output_for_each_class():
    model = Linear(LinearPreset(kind="preset", name="linear"), data=IMAGES)
    a, b, zero = torch.randn(2, 3, 9, 7), torch.randn(2, 3, 9, 7), torch.zeros(2, 3, 9, 7)
    torch.testing.assert_close(model(a) + model(b), model(a + b) + model(zero))
    assert sum(p.numel() for p in model.parameters()) == (189 + 1) * 5


def test_a_regression_has_an_output_for_each_target():
    table = Description((13,), num_classes=0, tokens_per_sample=0, fingerprint="", num_targets=2)
    for model in (
        Linear(LinearPreset(kind="preset", name="linear"), data=table),
        Mlp(MlpPreset(kind="preset", name="mlp"), data=table),
    ):
        assert model(torch.randn(4, 13)).shape == (4, 2)


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


# ---- convolutions --------------------------------------------------------------------------------


def test_convnet_grows_with_width_and_normalises_by_batch():
    model = Convnet(ConvnetPreset(kind="preset", name="convnet", width=6), data=IMAGES)
    norms = [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [6, 12]
    assert model(torch.randn(4, 3, 9, 7)).shape == (4, 5)


def test_convnet_pools_between_its_blocks():
    model = Convnet(ConvnetPreset(kind="preset", name="convnet", width=6), data=IMAGES)
    assert model.features(torch.randn(2, 3, 8, 8)).shape == (2, 12, 4, 4)


def resnet(**fields: Any) -> Resnet:
    torch.manual_seed(0)
    return Resnet(ResnetPreset(kind="preset", name="resnet", **fields), data=IMAGES)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_resnet_halves_the_image_and_doubles_the_channels_from_stage_to_stage(block):
    model = resnet(depths=(2, 1, 1), width=4, block=block)
    features, shapes = model.stem(torch.randn(2, 3, 9, 7)), []
    for one in model.blocks:
        features = one(features)
        shapes.append(tuple(features.shape[1:]))
    factor = 4 if block == "bottleneck" else 1
    widths = [4 * factor, 4 * factor, 8 * factor, 16 * factor]
    assert shapes == list(zip(widths, [9, 9, 5, 3], [7, 7, 4, 2], strict=True))


def test_a_large_stem_quarters_the_image():
    model = resnet(stem="large")
    assert model.stem(torch.randn(2, 3, 64, 32)).shape == (2, 16, 16, 8)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_blocks_of_a_resnet_are_their_shortcuts_at_first(block):
    """With norms of the sum at zero, a deep network begins as a shallow one."""
    model = resnet(depths=(2,), width=4, block=block)
    features = torch.rand(2, 16 if block == "bottleneck" else 4, 5, 5)
    torch.testing.assert_close(model.blocks[1](features), features)
    nn.init.ones_(model.blocks[1].last_norm.weight)
    assert not torch.allclose(model.blocks[1](features), features)


# ---- vit -----------------------------------------------------------------------------------------

SQUARES = Description((3, 8, 12), num_classes=5, tokens_per_sample=0, fingerprint="")


def vit(**fields: Any) -> Vit:
    torch.manual_seed(0)
    spec = VitPreset(kind="preset", name="vit", **{"width": 16, "heads": 2, "layers": 2, **fields})
    model = Vit(spec, data=SQUARES)
    nn.init.normal_(model.head.weight)  # the head begins at zero; let it speak
    return model


def test_vit_has_a_position_for_each_patch_and_for_the_class_token():
    model = vit(patch=4)
    assert model.positions.shape == (1, 2 * 3 + 1, 16)
    assert model(torch.randn(4, 3, 8, 12)).shape == (4, 5)


def test_vit_knows_where_a_patch_is():
    model, images = vit(patch=4), torch.randn(1, 3, 8, 12)
    swapped = images.clone()
    swapped[..., :4], swapped[..., 4:8] = images[..., 4:8], images[..., :4]
    assert not torch.allclose(model(images), model(swapped), atol=1e-4)
    nn.init.zeros_(model.positions)
    torch.testing.assert_close(model(images), model(swapped))


def test_vit_attention_is_the_textbook_formula():
    model, stream = vit(), torch.randn(3, 7, 16)
    attention = model.blocks[0].attention
    q, k, v = attention.queries_keys_values(stream).reshape(3, 7, 3, 2, 8).unbind(2)
    weights = (torch.einsum("bihk,bjhk->bhij", q, k) / math.sqrt(8)).softmax(dim=-1)
    expected = attention.project(torch.einsum("bhij,bjhk->bihk", weights, v).flatten(2))
    torch.testing.assert_close(attention(stream), expected)


def test_an_image_that_is_not_whole_patches_is_refused():
    with pytest.raises(ModelInvalid, match=r"multiples of patch = 5 for vit, saw 8x12"):
        vit(patch=5)


# ---- gpt -----------------------------------------------------------------------------------------


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


def test_gpt_pads_its_rows_and_never_its_answers():
    model = gpt(vocabulary_multiple=24)
    assert model.embedding.weight.shape == (48, 16)
    assert model(torch.randint(0, 32, (2, 16))).shape == (2, 16, 32)


def test_a_gpt_with_a_head_of_its_own_begins_at_the_uniform_guess():
    spec = GptPreset(kind="preset", name="gpt", width=16, heads=2, context=16, tied_head=False)
    model = Gpt(spec, data=TOKENS)
    assert (model(torch.randint(0, 32, (2, 16))) == 0).all()
    nn.init.normal_(model.head.weight)
    assert model.head.weight is not model.embedding.weight
    assert (model(torch.randint(0, 32, (2, 16))) != 0).any()


# ---- shapes that do not fit ----------------------------------------------------------------------

TABLE = Description((13,), num_classes=5, tokens_per_sample=0, fingerprint="")
LONG = Description((65,), num_classes=32, tokens_per_sample=65, fingerprint="")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("convnet", TABLE, "expected images of shape .channels, height, width. for convnet, saw"),
        ("resnet", TABLE, "for resnet, saw samples of shape .13,."),
        ("vit", TABLE, "for vit, saw"),
        ("convnet", Description((1, 1, 8), 5, 0, ""), "at least 2x2 for convnet, saw 1x8"),
        ("linear", TOKENS, "expected samples of numbers for linear, saw 16 tokens"),
        ("mlp", TOKENS, "expected samples of numbers for mlp"),
        ("gpt", IMAGES, "expected 1 to 64 tokens a sample for gpt, saw 0"),
        ("gpt", LONG, "expected 1 to 64 tokens a sample for gpt, saw 65"),
    ],
)
def test_data_that_a_preset_cannot_read_is_refused_by_name(name, data, message):
    with pytest.raises(ModelInvalid, match=message):
        build_model(preset({"name": name}), data=data, seed=0)


# ---- documented sizes ----------------------------------------------------------------------------


def preset(fields: dict[str, Any]) -> Any:
    return TypeAdapter(PresetSpec).validate_python({"kind": "preset", **fields})


def count(fields: dict[str, Any], data: Description) -> int:
    with torch.device("meta"):
        model = build_model(preset(fields), data=data, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


WORDS = Description((1024,), 50_257, tokens_per_sample=1024, fingerprint="")
IMAGENET = Description((3, 224, 224), 1000, tokens_per_sample=0, fingerprint="")
CIFAR = Description((3, 32, 32), 10, tokens_per_sample=0, fingerprint="")

#: Specification, data, and the count; those of images are the ones that torchvision has.
SIZES: list[tuple[dict[str, Any], Description, int]] = [
    ({"name": "gpt", "size": "30M"}, WORDS, 29_938_560),
    ({"name": "gpt", "size": "51M"}, WORDS, 50_930_176),
    ({"name": "gpt", "size": "124M"}, WORDS, 123_587_328),
    ({"name": "gpt", "size": "350M"}, WORDS, 353_551_360),
    ({"name": "resnet"}, CIFAR, 272_474),
    (
        {"name": "resnet", "stem": "large", "depths": [2, 2, 2, 2], "width": 64},
        IMAGENET,
        11_689_512,
    ),
    (
        {
            "name": "resnet",
            "stem": "large",
            "block": "bottleneck",
            "depths": [3, 4, 6, 3],
            "width": 64,
        },
        IMAGENET,
        25_557_032,
    ),
    ({"name": "vit", "patch": 16, "layers": 12, "width": 384, "heads": 6}, IMAGENET, 22_050_664),
    ({"name": "vit", "patch": 16, "layers": 12, "width": 768, "heads": 12}, IMAGENET, 86_567_656),
]


@pytest.mark.parametrize(("fields", "data", "expected"), SIZES, ids=lambda value: str(value)[:40])
def test_a_documented_size_has_the_documented_parameters(fields, data, expected):
    assert count(fields, data) == expected
    assert f"{expected:,}" in DOCUMENT.read_text()


def test_every_size_of_gpt_is_documented():
    documented = re.findall(
        r"^\| `gpt` \| `\"size\": \"(\w+)\"` \|", DOCUMENT.read_text(), re.MULTILINE
    )
    assert documented == list(GPT_SIZES)


def test_blocks_are_listed_for_those_who_recompute_or_shard_them():
    assert len(blocks_of(gpt())) == 2
    assert len(blocks_of(vit())) == 2
    assert len(blocks_of(resnet(depths=(2, 1)))) == 3
    assert blocks_of(Mlp(MlpPreset(kind="preset", name="mlp"), data=IMAGES)) == []
