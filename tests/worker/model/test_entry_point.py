"""Entry points: only what the operator lists is called, and what it makes is tried at once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_cases import BYTES, DIGITS, parse
from torch import nn
from training_bench import Bench, bits, make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.states import RETRYABLE, Reason
from roadless.worker.data.base import Description
from roadless.worker.errors import JobFailed
from roadless.worker.model.build import build_model
from roadless.worker.model.sources import ENTRY_POINTS_VARIABLE, wheel_of_this_process
from roadless.worker.rank_launch import ModelSources
from roadless.worker.validation.reload import MANIFEST_FILE

MODULE = "entry_point_models"


def make(
    function: str, *, data: Description = DIGITS, seed: int = 0, **arguments: Any
) -> nn.Module:
    name = f"{MODULE}:{function}"
    spec = parse({"kind": "entry_point", "factory": name, "arguments": arguments})
    return build_model(spec, data=data, seed=seed, sources=ModelSources(entry_points=(name,)))


def refusal(factory: str) -> JobFailed:
    """Why the job ends that names this factory, for good."""
    spec = parse({"kind": "entry_point", "factory": factory})
    with pytest.raises(JobFailed) as caught:
        build_model(spec, data=DIGITS, seed=0, sources=ModelSources(entry_points=(factory,)))
    assert caught.value.reason not in RETRYABLE
    return caught.value


def test_the_factory_gets_the_shapes_and_the_arguments() -> None:
    model = make("small", width=7)
    assert [tuple(p.shape) for p in model.parameters()] == [(7, 64), (7,), (10, 7), (10,)]


def test_its_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (make("small", seed=seed) for seed in (1, 1, 2))
    assert bits(first.state_dict()) == bits(again.state_dict())
    assert bits(first.state_dict()) != bits(other.state_dict())


def test_the_trial_leaves_modes_and_statistics_as_the_factory_made_them() -> None:
    model = make("frozen_norm")
    assert [module.training for module in model] == [True, False, True]
    assert model.get_buffer("1.num_batches_tracked") == 0


@pytest.mark.parametrize("listed", [(), (f"{MODULE}:other",), (MODULE,), (f"{MODULE}:small2",)])
def test_what_the_operator_does_not_list_in_full_is_forbidden(listed: tuple[str, ...]) -> None:
    """And not imported: importing a module runs it."""
    sys.modules.pop(MODULE, None)
    spec = parse({"kind": "entry_point", "factory": f"{MODULE}:small"})
    with pytest.raises(JobFailed, match=ENTRY_POINTS_VARIABLE) as caught:
        build_model(spec, data=DIGITS, seed=0, sources=ModelSources(entry_points=listed))
    assert caught.value.reason is Reason.MODEL_FORBIDDEN
    assert MODULE not in sys.modules


@pytest.mark.parametrize(
    ("function", "reason", "message"),
    [
        ("absent", Reason.MODEL_NOT_FOUND, "has no attribute 'absent'"),
        ("failing", Reason.MODEL_INVALID, "RuntimeError: no such width"),
        ("no_module", Reason.MODEL_INVALID, "to return a torch module, saw str"),
        ("too_wide", Reason.MODEL_INVALID, "outputs of shape (2, 10), saw (2, 11)"),
        ("for_tokens", Reason.MODEL_INVALID, "expected a model for samples of shape (1, 8, 8)"),
        ("pair", Reason.MODEL_INVALID, "returns a tensor, saw tuple"),
    ],
)
def test_what_does_not_make_a_model_for_the_data_fails_by_name(
    function: str, reason: Reason, message: str
) -> None:
    failure = refusal(f"{MODULE}:{function}")
    assert failure.reason is reason
    assert message in str(failure)


SHA256 = "0" * 64
WHEEL = {"wheel": "whl_" + "0" * 26, "wheel_sha256": SHA256}


def test_in_the_environment_of_its_wheel_a_factory_needs_no_list() -> None:
    spec = parse({"kind": "entry_point", "factory": f"{MODULE}:small", **WHEEL})
    sources = ModelSources(wheel_sha256=SHA256)
    assert isinstance(build_model(spec, data=DIGITS, seed=0, sources=sources), nn.Module)


@pytest.mark.parametrize("seen", [None, "1" * 64])
@pytest.mark.parametrize("said", [WHEEL, {"wheel": WHEEL["wheel"]}])
def test_the_model_of_a_wheel_is_not_made_of_another_package_of_that_name(
    seen: str | None, said: dict[str, str]
) -> None:
    """Not even where the operator lists the factory; and nothing is imported."""
    sys.modules.pop(MODULE, None)
    name = f"{MODULE}:small"
    spec = parse({"kind": "entry_point", "factory": name, **said})
    sources = ModelSources(entry_points=(name,), wheel_sha256=seen)
    with pytest.raises(JobFailed, match="expected an environment of the wheel whl_") as caught:
        build_model(spec, data=DIGITS, seed=0, sources=sources)
    assert caught.value.reason is Reason.MODEL_FORBIDDEN
    assert MODULE not in sys.modules


def test_this_process_has_no_wheel_of_its_own() -> None:
    assert wheel_of_this_process() is None


def test_a_package_that_is_not_installed_is_not_found() -> None:
    failure = refusal("absent_package.models:make")
    assert failure.reason is Reason.MODEL_NOT_FOUND
    assert "absent_package" in str(failure)


@pytest.mark.parametrize(
    ("source", "reason", "message"),
    [
        ("import package_that_nobody_has\n", Reason.MODEL_NOT_FOUND, "package_that_nobody_has"),
        ("WIDTH = 1 / 0\n", Reason.MODEL_INVALID, "ZeroDivisionError: division by zero"),
        ("def make(:\n", Reason.MODEL_INVALID, "SyntaxError"),
        ("raise SystemExit('no licence')\n", Reason.MODEL_INVALID, "SystemExit: no licence"),
        ("make = 'a text'\n", Reason.MODEL_INVALID, "'str' object is not callable"),
        ("def make(width): ...\n", Reason.MODEL_INVALID, "unexpected keyword argument"),
        ("def make(**a): raise OSError('no file')\n", Reason.MODEL_INVALID, "OSError: no file"),
    ],
)
def test_a_module_that_fails_while_it_is_imported_or_called_is_its_owners_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: Reason, message: str
) -> None:
    """Tried once, and named with its own line; not taken for a fault of the node."""
    module = f"broken_models_{abs(hash(source))}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    failure = refusal(f"{module}:make")
    assert failure.reason is reason
    assert message in str(failure)
    if "Error: " in message:
        assert f"at {module}.py:1 in " in str(failure)


@pytest.mark.parametrize("function", ["drawn_by_numpy", "drawn_by_python"])
def test_weights_that_other_libraries_draw_are_a_function_of_the_seed_too(function: str) -> None:
    first, again, other = (make(function, seed=seed) for seed in (1, 1, 2))
    assert bits(first.state_dict()) == bits(again.state_dict())
    assert bits(first.state_dict()) != bits(other.state_dict())


def test_outputs_for_tokens_are_one_row_a_token() -> None:
    assert isinstance(make("for_tokens", data=Description((16,), 10, 16, "")), nn.Embedding)
    with pytest.raises(JobFailed, match=r"outputs of shape \(2, 16, 256\), saw \(2, 16, 10\)"):
        make("for_tokens", data=BYTES)


def test_what_a_model_draws_from_any_library_is_a_function_of_seed_and_step(
    tmp_path: Path,
) -> None:
    """So a run that is repeated, or resumed, takes the same steps."""
    losses = []
    for run in ("first", "again"):
        brief = make_brief(model={"kind": "entry_point", "factory": f"{MODULE}:noisy"})
        bench = Bench(brief, tmp_path / run, model=make("noisy"))
        bench.training.run()
        losses.append([point.values["train.loss"] for point in bench.reporter.steps])
    assert losses[0] == losses[1]


def test_a_stranger_with_the_package_finds_the_loss_of_the_receipt(tmp_path: Path) -> None:
    """The command, in a process of its own; without the operator's consent it calls nothing."""
    name = f"{MODULE}:small"
    model = {"kind": "entry_point", "factory": name, "arguments": {"width": 6}}
    bench = Bench(make_brief(model=model), tmp_path, model=make("small", width=6))
    bench.training.run()
    staged = bench.reporter.of_kind(CheckpointKind.EVAL)[-1]
    (staged.folder / MANIFEST_FILE).write_text(staged.manifest.model_dump_json())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "roadless.worker.verify", str(staged.folder)]
    ran, refused = (
        subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**environment, ENTRY_POINTS_VARIABLE: listed},
        )
        for listed in (f"other:thing,{name}", "")
    )
    assert json.loads(ran.stdout)["equal"] is True, ran.stderr
    assert refused.returncode != 0
    assert ENTRY_POINTS_VARIABLE in refused.stderr
