"""The trial before the first step: what trains without an error and is not what the task says."""

import random
from collections.abc import Callable
from typing import Any

import faulty_models
import language_models
import numpy as np
import pytest
import torch
from faulty_models import make
from model_cases import MODELS, job_of, transformers_model
from torch import nn
from training_bench import ALONE, Bench, bits, build, make_brief, make_spec

from roadless.service.contract.states import RETRYABLE, Reason
from roadless.worker.errors import JobFailed, ModelInvalid
from roadless.worker.training.trial import try_out

DIGITS = {"model": {"kind": "entry_point", "factory": "faulty_models:make"}}
TEXT = {"data": {"kind": "builtin", "name": "python_stdlib_bytes"}, "task": "causal_lm"}
CONTEXT = {"kind": "entry_point", "factory": "language_models:make", "context": 16}


def tried(model: nn.Module | None = None, /, **changes: Any) -> nn.Module:
    """The model as it is after its trial."""
    spec = make_spec(**changes)
    setup = build(spec, model=model)
    try_out(setup, spec=spec, cluster=ALONE)
    return setup.model


def refusal(model: nn.Module | None = None, /, **changes: Any) -> str:
    with pytest.raises(ModelInvalid) as caught:
        tried(model, **changes)
    assert caught.value.reason is Reason.MODEL_INVALID
    assert caught.value.reason not in RETRYABLE
    return str(caught.value)


def of_kind(kind: str) -> nn.Module:
    return make(input_shape=(1, 8, 8), num_outputs=10, kind=kind)


# ---- what it leaves ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_passes_and_is_left_as_it_was(name: str) -> None:
    """Weights, statistics, modes, gradients, and every generator of random numbers."""
    spec = make_spec(**job_of(name))
    setup = build(spec)
    before = bits(dict(setup.model.state_dict()))
    states = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    try_out(setup, spec=spec, cluster=ALONE)
    assert bits(dict(setup.model.state_dict())) == before
    assert all(module.training for module in setup.model.modules())
    assert all(parameter.grad is None for parameter in setup.model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tobytes(), random.getstate()) == states[1:]


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16", "bf16"])
@pytest.mark.parametrize("name", ["convnet", "gpt", "transformers gpt2"])
def test_a_model_passes_in_every_precision(name: str, precision: str) -> None:
    tried(**job_of(name), training={"precision": precision})


@pytest.mark.parametrize(
    "kind",
    [
        *("DrawsInVain", "LockAndGenerator", "IntegerParameter", "HalfFrozen"),
        *("ComplexBuffer", "TensorExtraState", "Scalar", "Turned", "ChannelsLast"),
        *("FollowsItsInputs", "TiedBlocks", "OneBlockTwice", "TwoTypes", "Empty", "WeightNorm"),
    ],
)
@pytest.mark.parametrize("optimizer", ["adamw_schedulefree", "soap"])
def test_an_oddity_that_is_no_fault_trains_and_is_saved(
    kind: str, optimizer: str, tmp_path: Any
) -> None:
    brief = make_brief(**DIGITS, optimizer={"name": optimizer, "lr": 0.01}, budget={"max_steps": 3})
    bench = Bench(brief, tmp_path, model=of_kind(kind))
    try_out(bench.setup, spec=brief.spec, cluster=ALONE)
    bench.training.run()
    assert len(bench.reporter.steps) == 3
    assert len(bench.reporter.published) == 2  # the model and the state


def test_a_long_trial_shows_that_it_moves() -> None:
    """Once for each pass, and not any more when training begins."""
    beats: list[int] = []
    spec = make_spec(**job_of("mlp"))
    setup = build(spec)
    try_out(setup, spec=spec, cluster=ALONE, beat=lambda: beats.append(1))
    assert len(beats) == 4
    setup.model(torch.zeros(1, 1, 8, 8))
    assert len(beats) == 4


# ---- causality -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make_model", language_models.AHEAD)
def test_a_language_model_that_looks_ahead_is_refused(make_model: Callable[..., nn.Module]) -> None:
    """However it does, and although it may add nothing yet."""
    said = refusal(make_model(256), model=CONTEXT, **TEXT)
    assert "expected outputs that depend on no later token, saw those before token" in said
    assert "is_decoder = true" in said


@pytest.mark.parametrize("make_model", language_models.BEHIND)
def test_a_language_model_that_only_looks_back_passes(make_model: Callable[..., nn.Module]) -> None:
    tried(make_model(256), model=CONTEXT, **TEXT)


@pytest.mark.parametrize("make_model", [language_models.AttendsToAll, language_models.SeesTheNext])
@pytest.mark.parametrize("precision", ["amp_bf16", "bf16"])
def test_looking_ahead_is_seen_in_every_precision(
    make_model: Callable[..., nn.Module], precision: str
) -> None:
    training = {"precision": precision}
    assert "no later token" in refusal(make_model(256), model=CONTEXT, training=training, **TEXT)


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
ENCODERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra"),
            *("ernie", "megatron-bert", "roberta", "roberta-prelayernorm", "roformer"),
            *("xlm-roberta", "xlm-roberta-xl"),
        ),
        SMALL,
    ),
    "roc_bert": {**SMALL, "pronunciation_vocab_size": 8, "shape_vocab_size": 8},
    "rembert": {**SMALL, "input_embedding_size": 16, "output_embedding_size": 16},
    "cpmant": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "dim_head": 8,
        "dim_ff": 64,
    },
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_that_the_library_offers_as_a_causal_model_is_refused(name: str) -> None:
    """AutoModelForCausalLM of transformers 5.23 makes them attend in both directions, and warns."""
    config = {"model_type": name, **ENCODERS[name]}
    assert "no later token" in refusal(model=transformers_model(config), **TEXT)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "roformer", "rembert", "ernie"])
def test_an_encoder_that_is_told_to_decode_passes(name: str) -> None:
    config = {"model_type": name, **ENCODERS[name], "is_decoder": True}
    tried(model=transformers_model(config), **TEXT)


LLAMA = {**SMALL, "num_key_value_heads": 2}
DECODERS: dict[str, dict[str, Any]] = {
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma2": {**LLAMA, "head_dim": 8},
    "gpt_neox": SMALL,
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "mixtral": {**LLAMA, "num_local_experts": 4},
    "olmoe": {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "qwen3": {**LLAMA, "head_dim": 8},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_of_every_make_pass(name: str) -> None:
    """Attention, recurrence, experts that tokens are sorted to."""
    tried(model=transformers_model({"model_type": name, **DECODERS[name]}), **TEXT)


# ---- positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["roberta", "camembert", "xlm-roberta"])
def test_positions_that_padding_takes_away_are_counted(name: str) -> None:
    """Two of them: of 17 for a context of 16 are left 15, which a short trial never reaches."""
    config = {"model_type": name, **ENCODERS[name], "is_decoder": True}
    with pytest.raises(JobFailed, match="expected at least context = 16 positions, saw 15") as seen:
        tried(model=transformers_model({**config, "max_position_embeddings": 17}), **TEXT)
    assert seen.value.reason is Reason.MODEL_INVALID
    tried(model=transformers_model({**config, "max_position_embeddings": 18}), **TEXT)


DECODER = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2}


def test_a_table_with_more_positions_than_it_says_passes() -> None:
    """Two of them."""
    config = {"model_type": "trocr", **DECODER, "decoder_ffn_dim": 32}
    tried(model=transformers_model({**config, "max_position_embeddings": 16}), **TEXT)


def test_the_whole_context_is_tried() -> None:
    """A table of positions under any name: this one is for twelve, and the context has sixteen."""
    config = {"model_type": "whisper", **DECODER, "max_target_positions": 12}
    said = refusal(model=transformers_model(config), **TEXT)
    assert said.startswith("expected a model for a batch of shape (2, 16), saw ")
    assert "at transformers/models/whisper" in said


# ---- what draws ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        *("DropsAlways", "DrawsFromNumpy", "DrawsFromPython", "SkipsSeldom", "CountsPasses"),
        *("NeverEvaluates", "ReturnsTupleLater"),
    ],
)
def test_a_model_that_evaluates_to_something_else_each_time_is_refused(kind: str) -> None:
    said = refusal(of_kind(kind), **DIGITS)
    assert said.startswith("expected the same outputs for the same inputs in evaluation mode")


# ---- faults of models ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ReturnsNothing", "returns a tensor, saw NoneType"),
        ("ReturnsTuple", "returns a tensor, saw tuple"),
        ("ReturnsTupleInTraining", "returns a tensor, saw tuple"),
        ("ReturnsClasses", "of a floating-point type, saw torch.int64"),
        ("TooWide", "expected outputs of shape (2, 10), saw (2, 20)"),
        ("OneRowForAll", "expected outputs of shape (2, 10), saw (10,)"),
        ("DividesByZero", "ZeroDivisionError"),
        ("Exits", "saw SystemExit: no licence"),
        ("RaisesInTraining", "saw OSError: no such table"),
        ("OnAnotherDevice", "expected a model for a batch of shape (2, 1, 8, 8), saw "),
        ("NotANumber", "expected outputs that are numbers, saw NaN"),
        ("Detached", "no gradient flows from"),
        ("NoBackward", "saw NotImplementedError: to be done"),
        ("NoParameters", "expected parameters to train, saw 0 parameters"),
        ("AllFrozen", "expected parameters to train, saw 2 parameters, none of which requires"),
        ("ComplexWeights", "saw phase of torch.complex64"),
        ("Expanded", "expected each number of scale in memory of its own"),
        ("TiedByMemory", "saw layer.weight and other.weight in the same place"),
        ("Overlapping", "saw first and second in the same place"),
        ("OfEightBits", "of 16 bits or more to train, saw scale of torch.float8_e4m3fn"),
        ("MadeForInference", "saw scale made under torch.inference_mode"),
        ("GrowsBuffer", "a state_dict that training changes no names and shapes of, saw others"),
        ("AddsBuffer", "saw others under seen, which a fresh model cannot load"),
        ("KeepsItsGraph", "saw RuntimeError: Trying to backward through the graph a second time"),
        ("StartsAtInfinity", "expected finite numbers to start from, saw NaN or infinity in layer"),
        ("OnMeta", "expected dense parameters with values"),
        ("LazyAside", "expected parameters with shapes, saw lazy ones: aside.weight"),
        ("SparseEmbedding", "saw an embedding table with sparse=True"),
        ("SparseFunction", "saw torch.sparse_coo of table"),
        ("ExtraState", "saw _extra_state of dict"),
        ("UnloadableState", "expected a model whose state_dict can be loaded again"),
        ("DoubleComplexBuffer", "saw phase of torch.complex128"),
        ("ReplacesParameter", "expected the same outputs for the same inputs"),
        ("ReplacesInTraining", "expected a forward pass to keep the parameters"),
        ("GrowsInTraining", "others under late.bias, late.weight"),
        ("RenormsEmbedding", "expected a forward pass to leave the parameters"),
        ("ClampsWeights", "expected a forward pass to leave the parameters"),
    ],
)
def test_a_fault_of_the_model_is_final_and_says_what_was_seen(kind: str, message: str) -> None:
    assert message in refusal(of_kind(kind), **DIGITS)


def test_the_owners_own_frames_come_first_and_innermost_first() -> None:
    _, first, second = refusal(of_kind("DividesByZero"), **DIGITS).splitlines()
    assert first.strip().startswith("at faulty_models.py:")
    assert first.endswith("in scaled: return inputs * (1 // factor)")
    assert second.endswith("in forward: return self.scaled(inputs, 0)")


def test_a_fault_that_shows_only_later_is_the_models_too(tmp_path: Any) -> None:
    """In any step, and in an evaluation."""

    class Ageing(faulty_models.Base):
        passes = 0

        def forward(self, inputs: torch.Tensor) -> Any:
            self.passes += self.training
            if self.passes > 2:
                raise KeyError("the third batch")
            return super().forward(inputs)

    bench = Bench(make_brief(**DIGITS), tmp_path, model=Ageing())
    with pytest.raises(ModelInvalid, match="saw KeyError: 'the third batch'\n  at "):
        bench.training.run()
    assert len(bench.reporter.steps) == 2


@pytest.mark.parametrize(
    "error", [MemoryError("no more"), torch.OutOfMemoryError("CUDA out of memory")], ids=repr
)
def test_want_of_memory_is_no_fault_of_the_model(error: Exception) -> None:
    class Greedy(faulty_models.Base):
        def forward(self, inputs: torch.Tensor) -> Any:
            raise error

    with pytest.raises(type(error)):
        tried(Greedy(), **DIGITS)


class RemembersMean(nn.Module):
    """Subtracts a running mean of its own; beside it batch norm, and a table that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(64), nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("table", torch.ones(10))
        self.other = nn.Module()
        self.other.register_buffer("same_table", self.table)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(self.norm(inputs.flatten(1)))
        if self.training:
            self.mean.lerp_(outputs.detach().mean(0), 0.1)
        return (outputs - self.mean) * self.table


def test_buffers_that_training_changes_are_named_if_no_evaluation_finds_them_at_x() -> None:
    spec = make_spec(**DIGITS)
    setup = build(spec, model=RemembersMean())
    assert try_out(setup, spec=spec, cluster=ALONE) == ["mean"]
    assert not setup.model.mean.any()
    frozen = build(spec, model=nn.Sequential(RemembersMean().eval()))
    assert try_out(frozen, spec=spec, cluster=ALONE) == []
