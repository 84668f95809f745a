"""A tokenizer on the node: its files lie below the roots, and a path that is none ends the job."""

import errno
import json
from pathlib import Path

import pytest
from data_cases import Node
from tokenizers import Tokenizer, models

from roadless.service.contract.states import Reason
from roadless.worker.data.prepared import tokenizer
from roadless.worker.errors import JobFailed
from roadless.worker.model.sources import allowed_folder


def save_tokenizer(node: Node, folder: str) -> str:
    made = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    return str(node.write(f"{folder}/tokenizer.json", made.to_str()))


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("is_named_by_its_folder", [True, False])
def test_roles_of_tokens_are_not_read_elsewhere(node, tmp_path, exists, is_named_by_its_folder):
    """Else the name of a token, which may be anything of a file, would be in the message."""
    path = save_tokenizer(node, "words")
    secret = tmp_path / "secret.json"
    if exists:
        secret.write_text(json.dumps({"eos_token": "hunter2"}))
    (node.root / "words" / "tokenizer_config.json").symlink_to(secret)
    asked = str(node.root / "words") if is_named_by_its_folder else path
    with pytest.raises(JobFailed, match="ROADLESS_DATA_ROOTS") as caught:
        tokenizer.load(asked, separator=None, sources=node.sources)
    assert caught.value.reason is Reason.DATA_FORBIDDEN
    assert "hunter2" not in str(caught.value)


def test_the_end_of_text_is_read_beside_it(node):
    save_tokenizer(node, "words")
    node.write("words/tokenizer_config.json", json.dumps({"eos_token": "</s>"}))
    loaded = tokenizer.load(str(node.root / "words"), separator=None, sources=node.sources)
    assert loaded.separator == 1


def test_a_file_that_the_nodes_user_may_not_read_is_unreadable(node, monkeypatch):
    path = save_tokenizer(node, "words")

    def refusing(_path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refusing)  # the tests may run as root
    with pytest.raises(JobFailed, match="saw: Permission denied") as caught:
        tokenizer.load(path, separator="</s>", sources=node.sources)
    assert caught.value.reason is Reason.DATA_UNREADABLE


def test_a_name_that_no_disk_takes_is_not_found(node):
    """Jobs are stored that were posted before such names were refused."""
    long = f"{node.root}/{'x' * 300}"
    with pytest.raises(JobFailed) as of_tokenizer:
        tokenizer.load(long, separator=None, sources=node.sources)
    with pytest.raises(JobFailed) as of_model:
        allowed_folder(long, roots=node.sources.roots)
    with pytest.raises(JobFailed) as of_folder:
        node.build({"kind": "huggingface", "path": long, "target": "y"})
    reasons = [caught.value.reason for caught in (of_tokenizer, of_model, of_folder)]
    assert reasons == [Reason.DATA_NOT_FOUND, Reason.MODEL_NOT_FOUND, Reason.DATA_NOT_FOUND]
