"""The processor that is shipped with a classifier of images does what its training did."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_cases import Node
from PIL import Image
from pydantic import TypeAdapter
from transformers import AutoImageProcessor, ViTImageProcessor, Wav2Vec2FeatureExtractor

from roadless.service.contract.job.models import ModelSpec
from roadless.worker.data.base import Description
from roadless.worker.model.build import build_model
from roadless.worker.model.huggingface import image_processor
from roadless.worker.rank_launch import ModelSources

TINY = {
    "model_type": "vit",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "patch_size": 4,
}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node.at(tmp_path)


def pictures(mode: str, *, size: tuple[int, int] = (16, 16)) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    shape = (8, size[1], size[0]) if mode != "RGB" else (8, size[1], size[0], 3)
    highest, dtype = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    return [Image.fromarray(one) for one in draw.integers(0, highest, shape).astype(dtype)]


def data_of(node: Node, images: list[Image.Image], **fields: Any) -> Any:
    contents = []
    for image in images:
        content = io.BytesIO()
        image.save(content, "PNG")
        contents.append(content.getvalue())
    table = pa.table({"seen": contents, "y": [i % 2 for i in range(len(images))]})
    for name in ("train", "eval"):
        pq.write_table(table, node.root / f"{name}.parquet")
    spec = {"format": "parquet", "path": f"{node.root}/train.parquet", "target": "y"}
    held_out = {"path": f"{node.root}/eval.parquet"}
    return node.build({**spec, "image": "seen", "eval": held_out, **fields})


def processor_of(folder: Path, data: Description) -> Any:
    folder.mkdir()
    for name, content in image_processor.files_of(data).items():
        (folder / name).write_bytes(content)
    return AutoImageProcessor.from_pretrained(folder, backend="pil")


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize(
    ("mode", "image_size"),
    [("L", None), ("RGB", None), ("I;16", None), ("L", (12, 8)), ("RGB", (12, 8))],
)
def test_the_processor_gives_what_the_model_was_trained_on(
    node, tmp_path, mode, standardise, image_size
):
    images = pictures(mode)
    data = data_of(node, images, standardise=standardise, image_size=image_size)
    processor = processor_of(tmp_path / "shipped", data.description)
    seen = processor(images=images, return_tensors="pt").pixel_values
    assert torch.allclose(seen, data.eval_batch(0, len(images)).inputs, atol=1e-5)


@pytest.mark.parametrize("has_own", [False, True])
def test_a_checkpoint_has_the_processor_of_its_training_not_of_its_pretraining(
    node, tmp_path, has_own
):
    """The folder's own says ImageNet's mean and deviation, and another size."""
    data = data_of(node, pictures("RGB")).description
    spec: dict[str, Any] = {"kind": "transformers", "auto_class": "AutoModelForImageClassification"}
    sources = ModelSources(roots=(str(tmp_path),))
    first = build_model(_spec({**spec, "config": TINY}), data=data, seed=0, sources=sources)
    first.save_folder(tmp_path / "pretrained", first.state_dict())
    own = tmp_path / "pretrained" / image_processor.FILE
    assert json.loads(own.read_bytes())["image_mean"] == [0.5] * 3
    own.unlink()
    if has_own:
        ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(own.parent)
    spec |= {"pretrained": str(tmp_path / "pretrained")}
    model = build_model(_spec(spec), data=data, seed=0, sources=sources)
    model.save_folder(tmp_path / "trained", model.state_dict())
    shipped = json.loads((tmp_path / "trained" / image_processor.FILE).read_bytes())
    assert shipped["image_mean"] == shipped["image_std"] == [0.5] * 3
    assert shipped["size"] == {"height": 16, "width": 16}


SOUNDS = {
    "model_type": "wav2vec2",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "conv_dim": [8],
    "conv_stride": [4],
    "conv_kernel": [8],
    "num_conv_pos_embeddings": 2,
    "num_conv_pos_embedding_groups": 1,
    "classifier_proj_size": 8,
    "use_weighted_layer_sum": False,
}


def test_a_model_of_sounds_does_not_ship_a_processor_that_its_training_never_used(tmp_path):
    """Wav2Vec2's own subtracts the mean of each sound; the data set does not."""
    data = Description((64,), num_classes=2, tokens_per_sample=0, fingerprint="")
    spec = {"kind": "transformers", "auto_class": "AutoModelForAudioClassification"}
    sources = ModelSources(roots=(str(tmp_path),))
    first = build_model(_spec({**spec, "config": SOUNDS}), data=data, seed=0, sources=sources)
    first.save_folder(tmp_path / "pretrained", first.state_dict())
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "pretrained")
    assert (tmp_path / "pretrained" / image_processor.FILE).exists()
    spec["pretrained"] = str(tmp_path / "pretrained")
    model = build_model(_spec(spec), data=data, seed=0, sources=sources)
    model.save_folder(tmp_path / "trained", model.state_dict())
    assert not (tmp_path / "trained" / image_processor.FILE).exists()


def _spec(fields: dict[str, Any]) -> Any:
    adapter: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)
    return adapter.validate_python(fields)


@pytest.mark.parametrize("shape", [(4,), (2, 8, 8), (8, 8), (64, 8, 1)])
def test_what_is_no_image_gets_no_processor(shape):
    data = Description(shape, num_classes=2, tokens_per_sample=0, fingerprint="")
    assert image_processor.files_of(data) == {}


def test_tokens_get_no_processor():
    data = Description((3, 8, 8), num_classes=2, tokens_per_sample=8, fingerprint="")
    assert image_processor.files_of(data) == {}
