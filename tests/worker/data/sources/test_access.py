"""The built-in sets: what is read or made, what is held out, and how each failure ends the job."""

import hashlib
import os
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import Node
from sklearn.datasets import load_breast_cancer, load_digits

from roadless.service.contract.states import Reason
from roadless.worker.data.builtin import breast_cancer, stdlib_bytes
from roadless.worker.data.builtin.digits import Digits
from roadless.worker.errors import JobFailed

# ---- scikit-learn's -----------------------------------------------------------------------------


def test_every_fifth_digit_is_held_out_and_the_rest_is_trained_on():
    images, labels = load_digits(return_X_y=True)
    data = Digits()
    held_out = data.eval_batch(0, data.num_eval)
    trained = data.train_batch(np.arange(data.num_train))
    assert held_out.targets.tolist() == labels[4::5].tolist()
    assert trained.targets.tolist() == [y for i, y in enumerate(labels) if i % 5 != 4]
    assert held_out.inputs[3].flatten().tolist() == (images[19] / 8 - 1).tolist()
    assert trained.inputs[4].flatten().tolist() == (images[5] / 8 - 1).tolist()


def test_digits_look_alike_in_every_epoch():
    data = Digits()
    first, later = (data.train_batch(np.array([5 + e * data.num_train])) for e in (0, 3))
    assert torch.equal(first.inputs, later.inputs)
    assert torch.equal(first.targets, later.targets)


def test_digits_are_described_as_their_batches_are():
    data = Digits()
    batch = data.eval_batch(2, 7)
    assert batch.inputs.shape == (5, *data.description.input_shape)
    assert batch.inputs.dtype == torch.float32
    assert (batch.inputs.min(), batch.inputs.max()) == (-1.0, 1.0)
    assert data.description.num_classes == 10
    assert data.description.tokens_per_sample == 0
    assert data.num_train + data.num_eval == 1797


def test_breast_cancer_is_scikit_learns_standardised_by_what_is_trained_on(node):
    inputs, labels = load_breast_cancer(return_X_y=True)
    data = node.build({"kind": "builtin", "name": "breast_cancer"})
    is_held_out = np.arange(569) % 5 == 4
    trained = inputs[~is_held_out]
    expected = (inputs[is_held_out] - trained.mean(axis=0)) / trained.std(axis=0)
    held_out = data.eval_batch(0, data.num_eval)
    assert np.allclose(held_out.inputs.numpy(), expected, atol=1e-4)
    assert held_out.targets.tolist() == labels[is_held_out].tolist()
    assert (data.num_train, data.description.num_classes) == (456, 2)
    assert data.description.input_shape == (30,)


@pytest.mark.parametrize(
    ("load", "room"), [(Digits, "digits"), (breast_cancer.load, "breast_cancer")]
)
def test_without_their_package_they_are_not_found_and_without_their_file_unreadable(
    monkeypatch, tmp_path, load, room
):
    elsewhere = ModuleSpec("sklearn", None, origin=str(tmp_path / "__init__.py"))
    for found, reason in ((None, Reason.DATA_NOT_FOUND), (elsewhere, Reason.DATA_UNREADABLE)):
        monkeypatch.setattr(
            f"roadless.worker.data.builtin.{room}.find_spec", lambda name, found=found: found
        )
        with pytest.raises(JobFailed, match=f"scikit-learn|{room}") as caught:
            load()
        assert caught.value.reason is reason


# ---- the standard library -----------------------------------------------------------------------


def test_the_standard_library_is_its_top_modules_by_name(node):
    folder = Path(os.__file__).parent
    content = b"".join(p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix == ".py")
    spec = {"kind": "builtin", "name": "python_stdlib_bytes"}
    data = node.build(spec, task="causal_lm", context=17)
    assert data.description.fingerprint == hashlib.sha256(content).hexdigest()
    assert data.description.tokens_per_sample == 17
    assert data.eval_batch(0, 2).inputs.shape == (2, 17)
    first = len(content) - len(content) // 20
    assert bytes(data.eval_batch(0, 1).inputs[0].tolist()) == content[first : first + 17]


def test_a_python_without_its_source_is_data_not_found(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(JobFailed, match=r"\*\.py") as caught:
        stdlib_bytes.load(context=64)
    assert caught.value.reason is Reason.DATA_NOT_FOUND


# ---- synthetic ----------------------------------------------------------------------------------


def synthetic(node: Node, generator: str, task="classification", **fields):
    spec = {"kind": "builtin", "name": "synthetic", "generator": generator, **fields}
    return node.build(spec, task=task)


def test_synthetic_classes_can_be_told_apart(node):
    """The nearest class mean is right for most held-out samples, and no better than chance if
    noise is all there is."""
    for noise, is_learnable in ((0.5, True), (100.0, False)):
        data = synthetic(node, "classification", noise=noise, num_classes=4, input_shape=[3, 4, 4])
        trained = data.train_batch(np.arange(data.num_train))
        means = torch.stack([trained.inputs[trained.targets == c].mean(dim=0) for c in range(4)])
        held_out = data.eval_batch(0, data.num_eval)
        distances = torch.cdist(held_out.inputs.flatten(1), means.flatten(1))
        accuracy = (distances.argmin(dim=1) == held_out.targets).double().mean()
        assert (accuracy > 0.95) if is_learnable else (accuracy < 0.4)


def test_synthetic_targets_are_linear_in_the_inputs_but_for_the_noise(node):
    data = synthetic(node, "regression", "regression", noise=0.01, num_targets=2, num_train=500)
    batch = data.train_batch(np.arange(500))
    assert (data.description.num_targets, data.description.num_classes) == (2, 0)
    fit = torch.linalg.lstsq(batch.inputs, batch.targets).solution
    errors = batch.inputs @ fit - batch.targets
    assert 0 < errors.abs().max() < 0.02


def test_synthetic_text_repeats_itself_but_for_slips(node):
    data = synthetic(
        node, "tokens", "causal_lm", phrase=16, noise=0.2, vocabulary=300, num_tokens=8000
    )
    windows = data.train_batch(np.arange(data.num_train)).inputs
    tokens = windows[: len(windows) // 2 * 2].reshape(-1, 16)
    usual = tokens.mode(dim=0).values
    share = (tokens != usual).double().mean()
    assert 0.15 < share < 0.25
    assert data.description.num_classes == 300
    assert tokens.max() < 300


@pytest.mark.parametrize("generator", ["classification", "regression", "tokens"])
def test_synthetic_data_is_a_function_of_the_seed(node, generator):
    task = {"tokens": "causal_lm"}.get(generator, generator)
    prints = [
        synthetic(node, generator, task, seed=seed).description.fingerprint for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_synthetic_data_is_pinned_for_ever(node):
    """A change here would silently change every bench and every stored receipt."""
    data = synthetic(node, "classification", input_shape=[2], num_train=3, num_eval=1)
    assert data.train_batch(np.arange(3)).inputs.tolist() == PINNED


PINNED = [
    [-0.3480393886566162, -0.6375401020050049],
    [-1.177708387374878, 0.3520772457122803],
    [0.6441580057144165, -0.13837802410125732],
]
