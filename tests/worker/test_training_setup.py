"""What a specification makes of a model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_bench import CONVNET, Bench, bits, build, make_brief, make_spec

from roadless.worker.errors import ModelInvalid

GPT = {
    "model": {"kind": "preset", "name": "gpt", "layers": 2, "width": 8, "heads": 1, "context": 4},
    "data": {"kind": "builtin", "name": "python_stdlib_bytes"},
    "task": "causal_lm",
}


@pytest.fixture
def _determinism_as_before() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("_determinism_as_before")
def test_a_deterministic_job_trains_with_deterministic_kernels_only(tmp_path: Path) -> None:
    bench = Bench(make_brief(model=CONVNET, training={"deterministic": True}), tmp_path)
    assert torch.are_deterministic_algorithms_enabled()
    bench.training.run()
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1), accumulate=False)


def test_narrow_parameters_are_those_of_a_bf16_job_only() -> None:
    dtypes = {
        precision: build(make_spec(**GPT, training={"precision": precision})).model
        for precision in ("fp32", "amp_bf16", "bf16")
    }
    seen = {name: {p.dtype for p in model.parameters()} for name, model in dtypes.items()}
    narrow, wide = {torch.bfloat16}, {torch.float32}
    assert seen == {"fp32": wide, "amp_bf16": wide, "bf16": narrow}


def test_recomputed_activations_are_asked_for_of_a_model_that_has_blocks(tmp_path: Path) -> None:
    wanted = {"training": {"activation_checkpointing": True}}
    with pytest.raises(ModelInvalid, match="expected a model with blocks"):
        build(make_spec(**wanted))
    seen, expected = (Bench(make_brief(**GPT, **c), tmp_path / str(bool(c))) for c in (wanted, {}))
    for bench in (seen, expected):
        bench.training.run()
    assert bits(seen.state) == bits(expected.state)


def test_only_training_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluated model is the bare one, whose bits a stranger gets too; names stay the same."""
    monkeypatch.setattr(torch, "compile", lambda model: torch.nn.Sequential(model))
    setup = build(make_spec(training={"compile": True}))
    assert setup.wrapped is not setup.model
    assert setup.model.state_dict().keys() == build(make_spec()).model.state_dict().keys()
    assert {id(p) for p in setup.wrapped.parameters()} == {id(p) for p in setup.model.parameters()}
