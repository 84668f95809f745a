"""All studies, run side by side in worker processes of one thread each."""

import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch

from tests.studies.evidence import anytime, convex, language, prediction
from tests.studies.evidence.protocols import Protocols
from tests.studies.evidence.report import Result

NUM_WORKERS = 2
#: The studies that take one process, by name. The fourth, "language", shares its runs out.
_WHOLE: dict[str, Callable[..., Result]] = {
    "convex": convex.run,
    "anytime": anytime.run,
    "prediction": prediction.run,
}
NAMES = (*_WHOLE, "language")

ProtocolT = TypeVar("ProtocolT")


def run(names: Iterable[str], *, protocols: Protocols) -> dict[str, tuple[Result, float]]:
    """Return the result of each study, and the seconds of CPU time that it took."""
    wanted = set(names)
    with _workers() as executor:
        futures = {
            name: executor.submit(_timed, one, getattr(protocols, name))
            for name, one in _WHOLE.items()
            if name in wanted
        }
        found: dict[str, tuple[Result, float]] = {}
        if "language" in wanted:
            found["language"] = language.run(protocols.language, executor=executor, say=_say)
        return {name: future.result() for name, future in futures.items()} | found


def _workers() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        NUM_WORKERS,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )


def _timed(study: Callable[[ProtocolT], Result], protocol: ProtocolT) -> tuple[Result, float]:
    started = time.process_time()
    result = study(protocol)
    return result, time.process_time() - started


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
