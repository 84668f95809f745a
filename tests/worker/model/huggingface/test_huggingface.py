"""Models of transformers: folders that the library loads as they are, no foreign code."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_cases import BYTES, DIGITS, GPT2, RESNET, parse, transformers_model
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from training_bench import bits
from transformers import AutoModelForCausalLM, AutoTokenizer

from roadless.service.contract.states import Reason
from roadless.worker.checkpointing.model_files import read_model, write_model
from roadless.worker.data.base import Description
from roadless.worker.errors import CheckpointUnreadable, JobFailed
from roadless.worker.model.base import blocks_of
from roadless.worker.model.build import build_model
from roadless.worker.model.huggingface import companions
from roadless.worker.rank_launch import ModelSources

CLASSIFIER = {"auto_class": "AutoModelForImageClassification", "context": None}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 2, "num_key_value_heads": 2}
MAMBA = {"model_type": "mamba", "num_hidden_layers": 2, "hidden_size": 32}
VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 4,
}
BERT = {**VIT, "model_type": "bert", "vocab_size": 256}
del BERT["patch_size"]
WAV2VEC2 = {
    "model_type": "wav2vec2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "conv_dim": [8, 8, 8],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 3],
    "classifier_proj_size": 16,
}
VIVIT = {
    "model_type": "vivit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "num_frames": 4,
}
SENTENCES = Description((16,), 3, tokens_per_sample=16, fingerprint="")
SOUNDS = Description((4000,), 5, tokens_per_sample=0, fingerprint="")
FILMS = Description((4, 3, 32, 32), 6, tokens_per_sample=0, fingerprint="")

CASES: dict[str, tuple[dict[str, Any], Description]] = {
    "gpt2": (transformers_model(GPT2), BYTES),
    "llama": (transformers_model(LLAMA), BYTES),
    "mixtral": (transformers_model(MIXTRAL), BYTES),
    "mamba": (transformers_model(MAMBA), BYTES),
    "resnet": (transformers_model(RESNET, **CLASSIFIER), DIGITS),
    "vit": (transformers_model(VIT, **CLASSIFIER), DIGITS),
    "deit": (
        transformers_model({**VIT, "model_type": "deit"}, **CLASSIFIER),
        DIGITS,
    ),
    "bert": (
        transformers_model(BERT, auto_class="AutoModelForSequenceClassification"),
        SENTENCES,
    ),
    "wav2vec2": (
        transformers_model(WAV2VEC2, auto_class="AutoModelForAudioClassification"),
        SOUNDS,
    ),
    "vivit": (
        transformers_model(VIVIT, auto_class="AutoModelForVideoClassification"),
        FILMS,
    ),
}
EVERY = pytest.mark.parametrize("name", CASES)


def make(model: dict[str, Any], data: Description, **options: Any) -> Any:
    return build_model(parse(model), data=data, **{"seed": 3, **options})


def inputs_of(data: Description) -> torch.Tensor:
    if data.tokens_per_sample:
        return torch.randint(1, min(data.num_classes, 256), (2, *data.input_shape))
    return torch.randn(2, *data.input_shape)


def refusal(model: dict[str, Any], data: Description = BYTES, **options: Any) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        make(model, data, **options)
    return caught.value


# ---- what is written -----------------------------------------------------------------------------


@EVERY
def test_the_written_folder_gives_the_same_logits_through_the_library_itself(
    name: str, tmp_path: Path
) -> None:
    """Through ``from_pretrained`` and the library's own forward, none of our code in between."""
    model, data = CASES[name]
    ours = make(model, data)
    files = write_model(tmp_path / "ours", ours)
    theirs = getattr(transformers, model["auto_class"]).from_pretrained(tmp_path / "ours").eval()
    inputs = inputs_of(data)
    with torch.no_grad():
        expected = theirs(**{theirs.main_input_name: inputs}).logits
        assert torch.equal(ours.eval()(inputs), expected)
    assert {"config.json", "model.safetensors"} <= {file.name for file in files}
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@EVERY
def test_the_folder_comes_back_bit_for_bit_into_a_model_of_another_seed(
    name: str, tmp_path: Path
) -> None:
    model, data = CASES[name]
    first = make(model, data)
    write_model(tmp_path / "first", first)
    other = make(model, data, seed=4, like=tmp_path / "first")
    assert bits(other.state_dict()) != bits(first.state_dict())
    read_model(tmp_path / "first", other)
    assert bits(other.state_dict()) == bits(first.state_dict())


def test_a_model_of_two_dtypes_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """As bf16 training has it: convolutions in bfloat16, batch norm in float32."""
    models_of_two = []
    for seed in (1, 2):
        model = make(transformers_model(RESNET, **CLASSIFIER), DIGITS, seed=seed).bfloat16()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.float().weight)
        models_of_two.append(model)
    first, other = models_of_two
    write_model(tmp_path / "first", first)
    read_model(tmp_path / "first", other)
    mine, theirs = first.state_dict(), other.state_dict()
    assert {value.dtype for value in mine.values()} >= {torch.bfloat16, torch.float32}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [value.dtype for value in mine.values()] == [value.dtype for value in theirs.values()]


def test_weights_gathered_elsewhere_are_what_is_written(tmp_path: Path) -> None:
    """As a sharded model is saved: tied weights come as two tensors, and are tied when loaded."""
    model = make(transformers_model(GPT2), BYTES)
    gathered = {name: value.clone() + 1 for name, value in model.state_dict().items()}
    (tmp_path / "gathered").mkdir()
    model.save_folder(tmp_path / "gathered", gathered)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "gathered")
    assert torch.equal(loaded.lm_head.weight, gathered["model.lm_head.weight"])
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_a_language_model_generates_after_the_download(tmp_path: Path) -> None:
    write_model(tmp_path / "model", make(transformers_model(GPT2), BYTES))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    said = loaded.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
    assert said.shape == (1, 7)
    assert loaded.generation_config.eos_token_id is None  # GPT-2's own is beyond 256


@pytest.mark.parametrize("fault", ["a weight is missing", "a weight has another shape", "no file"])
def test_a_folder_that_is_not_whole_is_unreadable(tmp_path: Path, fault: str) -> None:
    """The library itself would draw what is missing, and say so in its log only."""
    folder, model = tmp_path / "model", make(transformers_model(GPT2), BYTES)
    tensors = dict(model.state_dict())
    name = "model.transformer.h.0.mlp.c_fc.weight"
    tensors[name] = tensors[name][:, :-1]
    if fault == "a weight is missing":
        del tensors[name]
    folder.mkdir()
    model.save_folder(folder, tensors)
    if fault == "no file":
        (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointUnreadable):
        read_model(folder, model)


# ---- fresh models --------------------------------------------------------------------------------


def test_what_the_data_decides_may_be_left_out() -> None:
    config = make(transformers_model(GPT2), BYTES).model.config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (256, None, None)
    config = make(transformers_model(VIT, **CLASSIFIER), DIGITS).model.config
    assert (config.num_labels, config.num_channels, config.image_size) == (10, 1, 8)


def test_what_the_user_gives_is_taken() -> None:
    config = make(transformers_model({**GPT2, "vocab_size": 300, "eos_token_id": 7}), BYTES)
    assert config.model.config.vocab_size == 300
    assert config.model.config.eos_token_id == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt7"}, "expected a model_type of transformers, saw 'gpt7'"),
        ({"n_layers": 3}, "expected fields of gpt2, saw 'n_layers'"),
        ({"to_dict": 3}, "saw 'to_dict'"),
        ({"n_layer": "two"}, "n_layer"),
        ({"n_head": 5}, "expected AutoModelForCausalLM to make a gpt2"),
        ({"vocab_size": 100}, "expected a vocabulary of at least 256, saw 100"),
        ({"n_positions": 8}, "expected at least context = 16 positions, saw 8"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.py"}}, "expected no field 'auto_map'"),
        ({"_attn_implementation": "someone/kernels"}, "no field '_attn_implementation'"),
        ({"attn_implementation": "someone/kernels"}, "no field 'attn_implementation'"),
        ({"task_specific_params": {"a": [{"auto_map": 1}]}}, "no field 'auto_map'"),
        ({"quantization_config": {}}, "no field 'quantization_config'"),
        ({"dtype": "float16"}, "no field 'dtype'"),
    ],
)
def test_a_config_that_makes_no_sense_is_invalid(changes: dict[str, Any], message: str) -> None:
    failure = refusal(transformers_model({**GPT2, **changes}))
    assert failure.reason is Reason.MODEL_INVALID
    assert message in str(failure)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({**MIXTRAL, "router_aux_loss_coef": 0.02}, "router_aux_loss_coef"),
        ({**MIXTRAL, "output_router_logits": True}, "output_router_logits"),
        ({"model_type": "jetmoe", "aux_loss_coef": 0.01}, "aux_loss_coef"),
        ({"model_type": "dbrx", "ffn_config": {"moe_loss_weight": 0.05}}, "moe_loss_weight"),
        ({"model_type": "bamba", "z_loss_coefficient": 1e-4}, "z_loss_coefficient"),
    ],
)
def test_what_a_model_would_add_to_the_loss_is_refused(config: dict[str, Any], field: str) -> None:
    """It would be accepted, and trained with a weight of 0."""
    failure = refusal(transformers_model(config))
    assert failure.reason is Reason.MODEL_INVALID
    assert f"expected no {field} in the config" in str(failure)
    assert "the loss is that of the task alone" in str(failure)


@pytest.mark.parametrize(
    "fields", [{"router_aux_loss_coef": 0.0}, {"output_router_logits": False}, {}]
)
def test_a_mixture_that_adds_nothing_to_the_loss_is_made(fields: dict[str, Any]) -> None:
    make(transformers_model({**MIXTRAL, **fields}), BYTES)


def test_a_saved_mixture_that_adds_to_the_loss_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "roots" / "saved"
    model = make(transformers_model(MIXTRAL), BYTES).model
    model.config.output_router_logits = True
    model.save_pretrained(folder)
    failure = refusal(pretrained(folder), sources=sources(folder))
    assert failure.reason is Reason.MODEL_INVALID
    assert "expected output_router_logits = false in the folder's config.json" in str(failure)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gemma4_text", "head_dim": 8},
        {"model_type": "lfm2_moe", "hidden_size": 32, "num_hidden_layers": 1},
        {"model_type": "hunyuan_v1_dense", "hidden_size": 32, "num_hidden_layers": 1},
        {"model_type": "musicgen"},
    ],
    ids=lambda config: config["model_type"],
)
def test_an_architecture_that_fails_in_its_own_way_is_invalid(config: dict[str, Any]) -> None:
    """In a property, a check or its constructor: what is no fault of ours is not retried."""
    failure = refusal(transformers_model(config))
    assert failure.reason is Reason.MODEL_INVALID


def test_what_the_library_refuses_to_write_is_the_models_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("this configuration cannot be saved")

    model = make(transformers_model(GPT2), BYTES)
    monkeypatch.setattr(model.model, "save_pretrained", refuse)
    with pytest.raises(JobFailed, match="expected a model that can be written") as caught:
        write_model(tmp_path / "model", model)
    assert caught.value.reason is Reason.MODEL_INVALID


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        ({**VIT, "num_labels": 4}, DIGITS, "expected num_labels = 10, saw 4"),
        ({**VIT, "image_size": 16}, DIGITS, "expected a model for samples of shape (1, 8, 8)"),
        (GPT2, DIGITS, "to make a gpt2"),
    ],
)
def test_a_classifier_that_does_not_fit_the_data_is_invalid(
    config: dict[str, Any], data: Description, message: str
) -> None:
    failure = refusal(transformers_model(config, **CLASSIFIER), data)
    assert failure.reason is Reason.MODEL_INVALID
    assert message in str(failure)


def test_padding_is_not_read_by_a_classifier_of_sentences() -> None:
    model = make(*CASES["bert"]).eval()
    sentence = torch.tensor([[5, 6, 7, 8]])
    padded = torch.tensor([[5, 6, 7, 8, 0, 0, 0]])
    torch.testing.assert_close(model(padded), model(sentence), atol=1e-6, rtol=1e-5)
    unpadded = torch.tensor([[5, 6, 7, 8, 9, 9, 9]])
    assert not torch.allclose(model(unpadded), model(sentence), atol=1e-6)


def test_blocks_are_those_that_the_library_does_not_split() -> None:
    names = [type(block).__name__ for block in blocks_of(make(transformers_model(GPT2), BYTES))]
    assert names == ["GPT2Block", "GPT2Block"]


# ---- pretrained ----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as the library saves a model with its tokenizer; weights of bfloat16."""
    folder = tmp_path / "roots" / "saved"
    model = make(transformers_model(GPT2), BYTES, seed=9).model.bfloat16()
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(
        folder
    )
    return folder


def pretrained(folder: Path, **changes: Any) -> dict[str, Any]:
    return transformers_model(None, pretrained=str(folder), **changes)


def sources(folder: Path) -> ModelSources:
    return ModelSources(roots=(str(folder.parent),))


def test_a_saved_model_is_loaded_in_float32_and_in_training_mode(saved: Path) -> None:
    model = make(pretrained(saved), BYTES, sources=sources(saved))
    expected = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).state_dict()
    assert bits(model.model.state_dict()) == bits(expected)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(module.training for module in model.modules())


def test_its_tokenizer_goes_on_into_the_eval_checkpoint(saved: Path, tmp_path: Path) -> None:
    """And from there into the checkpoint of a job that starts from that one."""
    model = make(pretrained(saved), BYTES, sources=sources(saved))
    files = write_model(tmp_path / "first", model)
    assert {"tokenizer.json", "tokenizer_config.json"} <= {file.name for file in files}
    second = make(pretrained(saved), BYTES, like=tmp_path / "first")
    write_model(tmp_path / "second", second)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "second")
    assert tokenizer("b a b c").input_ids == [1, 0, 1, 2]


def test_a_fresh_model_takes_the_tokenizer_of_another_folder(saved: Path, tmp_path: Path) -> None:
    model = transformers_model(GPT2, tokenizer=str(saved))
    write_model(tmp_path / "ours", make(model, BYTES, sources=sources(saved)))
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("a").input_ids == [0]
    assert refusal(model).reason is Reason.MODEL_FORBIDDEN
    (empty := saved.parent / "empty").mkdir()
    failure = refusal({**model, "tokenizer": str(empty)}, sources=sources(saved))
    assert "expected files of a tokenizer" in str(failure)


def test_tokenizer_files_have_a_bound(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(companions, "MAX_BYTES", 10)
    failure = refusal(pretrained(saved), sources=sources(saved))
    assert "expected at most 10 bytes of tokenizer files" in str(failure)


def test_other_labels_get_a_new_head_drawn_from_the_seed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    make(transformers_model(RESNET, **CLASSIFIER), DIGITS, seed=9).model.save_pretrained(folder)
    four = Description((1, 8, 8), 4, tokens_per_sample=0, fingerprint="")
    first, again, other = (
        make(pretrained(folder, **CLASSIFIER), four, sources=sources(folder), seed=seed)
        for seed in (1, 1, 2)
    )
    before = make(pretrained(folder, **CLASSIFIER), DIGITS, sources=sources(folder)).state_dict()
    head = {"model.classifier.1.weight", "model.classifier.1.bias"}
    changed = {
        name for name, value in first.state_dict().items() if not _equal(value, before[name])
    }
    assert changed == head
    assert bits(first.state_dict()) == bits(again.state_dict())
    assert bits(first.state_dict()) != bits(other.state_dict())


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def test_a_vocabulary_smaller_than_the_datas_is_invalid(saved: Path) -> None:
    words = Description((16,), 300, tokens_per_sample=16, fingerprint="")
    failure = refusal(pretrained(saved), words, sources=sources(saved))
    assert "expected a vocabulary of at least 300, saw 256" in str(failure)
    assert failure.reason is Reason.MODEL_INVALID


def _as_pickle(folder: Path) -> None:
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


def _change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _as_foreign_code(folder: Path) -> None:
    """A folder whose code would leave a trace; of an architecture that the library has not."""
    marker = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    _change_config(folder, auto_map=names, model_type="evil")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_as_pickle, Reason.MODEL_UNREADABLE),
        (_as_foreign_code, Reason.MODEL_UNREADABLE),
        (lambda folder: (folder / "config.json").unlink(), Reason.MODEL_UNREADABLE),
        (lambda folder: (folder / "config.json").write_text("{"), Reason.MODEL_UNREADABLE),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"),
            Reason.MODEL_UNREADABLE,
        ),
        (shutil.rmtree, Reason.MODEL_NOT_FOUND),
        (
            lambda folder: _change_config(
                folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
            ),
            Reason.MODEL_INVALID,
        ),
        (lambda folder: _change_config(folder, n_embd=64), Reason.MODEL_UNREADABLE),
    ],
)
def test_a_spoilt_folder_is_refused_by_name(saved: Path, spoil: Any, reason: Reason) -> None:
    make(pretrained(saved), BYTES, sources=sources(saved))
    spoil(saved)
    assert refusal(pretrained(saved), sources=sources(saved)).reason is reason
    assert not (saved / "ran").exists()


def test_code_in_the_folder_of_a_known_architecture_is_not_run(saved: Path) -> None:
    _as_foreign_code(saved)
    _change_config(saved, model_type="gpt2")
    model = make(pretrained(saved), BYTES, sources=sources(saved))
    assert isinstance(model.model, transformers.GPT2LMHeadModel)
    assert not (saved / "ran").exists()


@pytest.mark.parametrize("path", ["/etc", "{root}/../outside", "{root}/link"])
def test_folders_outside_the_roots_are_forbidden_whether_they_exist_or_not(
    saved: Path, path: str
) -> None:
    root = saved.parent
    (root / "link").symlink_to("/etc")
    spec = {**pretrained(saved), "pretrained": path.format(root=root)}
    failure = refusal(spec, sources=sources(saved))
    assert failure.reason is Reason.MODEL_FORBIDDEN
    assert str(root) in str(failure)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_link_in_the_folder_does_not_lead_out_of_the_roots(
    saved: Path, tmp_path: Path, name: str
) -> None:
    """Else whoever may write there would read any file of the node in the checkpoints."""
    outside, inside = tmp_path / name, saved.parent / name
    shutil.copy(saved / name, outside)
    shutil.copy(saved / name, inside)
    for target in (inside, outside):
        (saved / name).unlink()
        (saved / name).symlink_to(target)
        if target == inside:
            make(pretrained(saved), BYTES, sources=sources(saved))
    assert refusal(pretrained(saved), sources=sources(saved)).reason is Reason.MODEL_FORBIDDEN


# ---- the hub -------------------------------------------------------------------------------------


def test_the_hub_is_forbidden_unless_the_operator_allows_it() -> None:
    failure = refusal(transformers_model(None, hub_id="gpt2"))
    assert failure.reason is Reason.MODEL_FORBIDDEN
    assert "ROADLESS_ALLOW_HUB=1" in str(failure)


COMMIT = "0123456789" * 4
HUB_SCRIPT = """
import json, sys
from model_cases import BYTES, parse, transformers_model
from roadless.worker.rank_launch import ModelSources
from roadless.worker.errors import JobFailed
from roadless.worker.model.build import build_model
for name in sys.argv[1:]:
    spec = parse(transformers_model(None, hub_id=name))
    try:
        model = build_model(spec, data=BYTES, seed=0, sources=ModelSources(allow_hub=True))
        print(json.dumps(["loaded", model.model.transformer.wte.weight.double().sum().item()]))
    except JobFailed as failure:
        print(json.dumps([failure.reason, str(failure)]))
"""


class _Hub(SimpleHTTPRequestHandler):
    """The three routes of the hub that a download needs, over a folder."""

    asked: list[str]

    def __init__(self, *arguments: Any, asked: list[str], **options: Any) -> None:
        self.asked = asked
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/api/models/someone/model/revision/main"):
            self._answer({"id": "someone/model", "sha": COMMIT, "siblings": []})
        elif self.path.startswith(f"/api/models/someone/model/tree/{COMMIT}"):
            self._answer([_described(path) for path in Path(self.directory).iterdir()])
        elif self.path.startswith(f"/someone/model/resolve/{COMMIT}/"):
            self._send_file()
        elif self.path.startswith("/api/models/someone/closed/"):
            self._refuse(403)
        else:
            self._missing()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_file(self) -> None:
        path = Path(self.directory) / self.path.rpartition("/")[2]
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{path.name}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _missing(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def _described(path: Path) -> dict[str, Any]:
    return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name}


@pytest.fixture
def hub(saved: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub with one model in it: its address, and the paths that it was asked for."""
    (saved / "pytorch_model.bin").write_bytes(b"a pickle")
    (saved / "modeling.py").write_text("raise SystemExit")
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, directory=str(saved), asked=asked))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_fetched_without_pickles_and_code(
    hub: tuple[str, list[str]], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP, in a process of its own, since the library reads its address once."""
    url, asked = hub
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    names = ["someone/model", "someone/else", "someone/closed", "someone--else"]
    command = [sys.executable, "-c", HUB_SCRIPT, *names]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    loaded, absent, closed, misspelt = (
        json.loads(line) for line in ran.stdout.splitlines() if line[0] == "["
    )
    expected = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    assert loaded == ["loaded", expected.transformer.wte.weight.double().sum().item()]
    assert [absent[0], closed[0], misspelt[0]] == [Reason.MODEL_NOT_FOUND] * 3
    assert "403" in closed[1]
    fetched = {path.rpartition("/")[2] for path in asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not {"pytorch_model.bin", "modeling.py"} & fetched


# ---- those who do not ask for it -----------------------------------------------------------------


def test_a_rank_that_asks_for_no_such_model_does_not_import_the_library() -> None:
    script = "import sys, roadless.worker.rank.main; print(sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "'roadless.worker.model.build'" in ran.stdout
    assert "'transformers'" not in ran.stdout
    assert "huggingface" not in ran.stdout


def test_a_node_without_the_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.startswith("roadless.worker.model.huggingface."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    failure = refusal(transformers_model(GPT2))
    assert failure.reason is Reason.MODEL_NOT_FOUND
    assert "the package transformers" in str(failure)


def test_a_model_trains_through_its_adapter_like_the_model_itself() -> None:
    """Our loss on our logits is the library's own on its shifted labels, gradients included."""
    adapter = make(transformers_model({**GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0}), BYTES)
    adapter.eval()  # the attention's dropout
    tokens = torch.randint(0, 256, (2, 17))
    theirs = adapter.model(input_ids=tokens, labels=tokens).loss
    logits = adapter(tokens[:, :-1])
    ours = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(ours, theirs)
