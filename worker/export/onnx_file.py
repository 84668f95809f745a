"""ONNX: one graph with its weights, for runtimes without torch.

Batches of any size; for language models any number of tokens up to the context too. Batch norm is
that of evaluation, with the statistics of x.
"""

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roadless.worker.export.compare import examples, require_same
from roadless.worker.export.errors import NotExportable, ToolMissing
from roadless.worker.export.source import Loaded

#: Beside it, for a model of 2 GB and more, lies a file with the weights.
FILE = "model.onnx"
#: The version of the operators: the newest that torch writes without a conversion.
OPSET = 20
#: Sums in another order: more than float32 has to lose by them, and far less than a wrong operator.
TOLERANCE = 1e-4

INPUTS, OUTPUTS = "inputs", "outputs"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LONGEST_MESSAGE = 2000


def write_onnx(loaded: Loaded, folder: Path, *, metadata: Mapping[str, str]) -> float:
    """Write the graph, run it and the model, and return how far their outputs differ.

    ``metadata``: goes into the file's properties, the opset with it. Raises ToolMissing,
    NotExportable for a model that torch cannot write or the runtime cannot run, OutputsDiffer, and
    OSError.
    """
    runtime = _runtime()
    path = folder / FILE
    program = _program(loaded)
    program.model.metadata_props.update({**metadata, "opset": str(OPSET)})
    program.save(path)
    with _expecting("a graph that onnxruntime loads"):
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def written(inputs: torch.Tensor) -> torch.Tensor:
        with _expecting("a graph that onnxruntime runs"):
            (outputs,) = session.run([OUTPUTS], {INPUTS: inputs.numpy()})
        return torch.from_numpy(outputs)

    return require_same(loaded, written, tolerance=TOLERANCE)


def _runtime() -> Any:
    """Return onnxruntime, after checking that every package needed is installed."""
    return [_imported(name) for name in _PACKAGES][-1]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ToolMissing(
            f"expected the package {error.name}, which the extra 'export' installs; saw none"
        ) from error


def _program(loaded: Loaded) -> Any:
    example = examples(loaded)[-1]
    axes = {0: "batch"} | ({1: "tokens"} if loaded.data.tokens_per_sample else {})
    with _expecting("a model that torch writes as ONNX"), _quietly():
        return torch.onnx.export(
            _Plain(loaded.model),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={INPUTS: axes},
            input_names=[INPUTS],
            output_names=[OUTPUTS],
            verbose=False,
        )


@contextmanager
def _expecting(what: str) -> Iterator[None]:
    """Turn any error of an outside library about a model into NotExportable."""
    try:
        yield
    except Exception as error:
        root = _root(error)
        said = str(root)[:_LONGEST_MESSAGE]
        raise NotExportable(f"expected {what}, saw {type(root).__name__}: {said}") from error


def _root(error: BaseException) -> BaseException:
    """The error that torch's exporter wraps in advice on how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class _Plain(nn.Module):
    """The model with a fixed name for its argument, whatever the model calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the model's outputs."""
        outputs: torch.Tensor = self.model(inputs)
        return outputs


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence torch's warnings about packages that no model here needs."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
