"""A saved model's own files name weights in it alone, not any that the node could read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_cases import BYTES, GPT2, parse, transformers_model

from roadless.service.contract.states import Reason
from roadless.worker.errors import JobFailed
from roadless.worker.model.build import build_model
from roadless.worker.rank_launch import ModelSources

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose weights an index lists."""
    saved = tmp_path / "roots" / "saved"
    model = build_model(parse(transformers_model(GPT2)), data=BYTES, seed=9).model
    model.save_pretrained(saved, max_shard_size="20KB")
    assert (saved / INDEX).exists()
    return saved


def load(folder: Path) -> Any:
    spec = transformers_model(None, pretrained=str(folder))
    sources = ModelSources(roots=(str(folder.parent),))
    return build_model(parse(spec), data=BYTES, seed=3, sources=sources)


def name_weights(folder: Path, rename: Callable[[str], str]) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {key: rename(name) for key, name in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))


def test_weights_in_parts_are_loaded(folder: Path) -> None:
    load(folder)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("place", ["../../secret/{}", "{outside}/{}", "sub/../../../secret/{}"])
def test_an_index_that_names_weights_elsewhere_is_forbidden(
    folder: Path, tmp_path: Path, place: str, exists: bool
) -> None:
    """They would be in the job's checkpoints; and what is said must not tell whether they exist."""
    outside = tmp_path / "secret"
    if exists:
        shutil.copytree(folder, outside)
    (folder / "sub").mkdir()
    name_weights(folder, lambda name: place.format(name, outside=outside))
    with pytest.raises(JobFailed, match=f"{INDEX}.* to name files of its folder") as caught:
        load(folder)
    assert caught.value.reason is Reason.MODEL_FORBIDDEN


def test_a_link_below_the_folder_leads_no_further(folder: Path, tmp_path: Path) -> None:
    (folder / "sub").mkdir()
    for path in folder.glob("*.safetensors"):
        moved = tmp_path / path.name
        path.rename(moved)
        (folder / "sub" / path.name).symlink_to(moved)
    name_weights(folder, lambda name: f"sub/{name}")
    with pytest.raises(JobFailed) as caught:
        load(folder)
    assert caught.value.reason is Reason.MODEL_FORBIDDEN


def test_weights_that_a_config_names_lie_in_its_folder(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "sub").mkdir()
    (folder / "sub" / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    config["transformers_weights"] = "sub/model.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        JobFailed, match=r"config\.json of .* to name files of its folder"
    ) as caught:
        load(folder)
    assert caught.value.reason is Reason.MODEL_FORBIDDEN
