"""What differs between CPUs are last bits: they stay small, whatever the optimizer."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optim_makes import NAMES, make, randoms, step
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Parameter

from tests.studies.last_bits.__main__ import many_ends
from tests.studies.last_bits.partings import LIMIT, LastBit, ends, limit_of, parting, still
from tests.studies.last_bits.problems import PROBLEMS, EqualValues, Noise, Problem, Twins

ROOT = Path(__file__).parents[2]
SOAPS = [name for name in NAMES if name.endswith("SOAP")]
#: Of one machine, what other CPUs would compute: other kernels of torch, of MKL and of OpenBLAS,
#: and sums shared by other numbers of threads.
CPUS = {
    "no vectors": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
    },
    "avx2": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "two threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two would wait for each other longer than these small sums take."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("name", NAMES)
def test_a_change_of_last_bits_stays_one(name: str, problem: type[Problem]) -> None:
    """Each number of each gradient is moved to a neighbour; 50 steps, float64."""
    shaken = ends(name, problem, shake=LastBit(1))
    assert parting(still(name, problem), shaken) < limit_of(name, problem)


@pytest.fixture(scope="module")
def here() -> dict[str, Tensor]:
    return many_ends()


@pytest.mark.parametrize("cpu", CPUS)
def test_another_cpu_ends_where_this_one_does(
    cpu: str, here: dict[str, Tensor], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.studies.last_bits", "--ends", str(tmp_path / "ends")]
    subprocess.run(command, env=os.environ | CPUS[cpu], cwd=ROOT, check=True, timeout=240)
    there = load_file(tmp_path / "ends")
    problems = {problem.__name__: problem for problem in PROBLEMS}
    assert there.keys() == here.keys()
    for run, (start, end) in there.items():
        name, problem = run.split()
        apart = parting(tuple(here[run]), (start, end))
        assert apart < limit_of(name, problems[problem]), run


def turned_eigenvectors(L: Tensor) -> Any:
    """As right as LAPACK's: with other signs, and another basis where eigenvalues are equal."""
    eigenvalues, eigenvectors = _EIGH(L)
    generator = torch.Generator().manual_seed(len(L))
    turned, start = eigenvectors.clone(), 0
    for end in range(1, len(L) + 1):
        last = eigenvalues[end - 1] + 1e-13 * eigenvalues[-1]
        if end == len(L) or eigenvalues[end] > last:
            size = end - start
            W = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=L.dtype))[0]
            turned[:, start:end] = eigenvectors[:, start:end] @ W
            start = end
    return torch.return_types.linalg_eigh((eigenvalues, turned))


def openblas_eigenvectors(L: Tensor) -> Any:
    eigenvalues, eigenvectors = np.linalg.eigh(L.numpy())
    found = torch.from_numpy(eigenvalues), torch.from_numpy(eigenvectors)
    return torch.return_types.linalg_eigh(found)


def openblas_reflectors(A: Tensor) -> tuple[Tensor, Tensor]:
    reflectors, scales = np.linalg.qr(A.numpy(), mode="raw")
    return torch.from_numpy(reflectors).T, torch.from_numpy(scales)


_EIGH = torch.linalg.eigh


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("eigh", [turned_eigenvectors, openblas_eigenvectors])
@pytest.mark.parametrize("name", SOAPS)
def test_another_lapack_gives_the_same_run(
    name: str,
    problem: type[Problem],
    eigh: Callable[[Tensor], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where an eigenbasis is not unique, neither signs nor choices of a solver reach the run."""
    with monkeypatch.context() as other:
        other.setattr(torch.linalg, "eigh", eigh)
        other.setattr(torch, "geqrf", openblas_reflectors)
        changed = ends(name, problem)
    assert parting(still(name, problem), changed) < limit_of(name, problem)


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_columns_may_come_in_another_order(name: str) -> None:
    """Where the bases are decided by the gradients, which here are of full rank."""
    gradients = randoms(30, [Parameter(torch.zeros(6, 6, dtype=torch.float64))], seed=3)
    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([1, 5, 0, 4, 2, 3])
    straight, mixed = (Parameter(torch.ones(6, 6, dtype=torch.float64)) for _ in range(2))
    one, other = make(name, [straight]), make(name, [mixed])
    for (gradient,) in gradients:
        step(one, [gradient])
        step(other, [gradient[rows][:, columns]])
    apart = straight.detach()[rows][:, columns] - mixed.detach()
    assert float(apart.norm() / (straight.detach() - 1).norm()) < LIMIT


@pytest.mark.parametrize("name", SOAPS)
def test_units_that_are_alike_stay_alike(name: str) -> None:
    """In float32 too: no gradient tells them apart, so rounding must not."""
    W = Parameter(torch.ones(8, 6))
    optimizer = make(name, [W], lr=0.1)
    for k in range(30):
        half = torch.randn(4, 6, generator=torch.Generator().manual_seed(k))
        step(optimizer, [torch.cat([half, half])])
    moved = W.detach() - 1
    assert float(moved.norm()) > 0.1
    assert float((moved[:4] - moved[4:]).norm() / moved.norm()) < 1e-4


@pytest.mark.parametrize("name", SOAPS)
def test_dead_units_stay_where_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the rounding of others' steps; also with a LAPACK that mixes their axes."""
    monkeypatch.setattr(torch.linalg, "eigh", turned_eigenvectors)
    W = Parameter(torch.zeros(8, 6))
    optimizer = make(name, [W], lr=0.1, weight_decay=0.0)
    dead, living = [1, 4, 5], [0, 2, 3, 6, 7]
    for k in range(30):
        gradient = torch.randn(8, 6, generator=torch.Generator().manual_seed(k))
        gradient[dead] = 0
        step(optimizer, [gradient])
    num_eps = W.detach()[dead].abs().max() / W.detach().norm() / torch.finfo(W.dtype).eps
    assert float(num_eps) < 30, "one a step at most"
    assert bool((W.detach()[living] != 0).all())


def test_the_table_has_every_optimizer_and_problem() -> None:
    text = (ROOT / "docs" / "reproducibility.md").read_text().partition("<!-- table -->")[2]
    rows = {
        row[1]: re.findall(r" (\d+e[+-]\d+) ", row[0])
        for row in re.finditer(r"^\| `(\w+)` .*$", text, re.MULTILINE)
    }
    assert sorted(rows) == NAMES
    for name, cells in rows.items():
        assert len(cells) == len(PROBLEMS)
        for cell, problem in zip(cells, PROBLEMS, strict=True):
            assert float(cell) < limit_of(name, problem), (name, problem.name)


def test_the_problems_are_what_they_say() -> None:
    """Else nothing of the above would be shaken."""
    equal = torch.linalg.svdvals(EqualValues().gradients(3)[1][0])
    torch.testing.assert_close(equal, torch.ones(6, dtype=torch.float64))
    twins = Twins().gradients(3)[1][0]
    assert torch.equal(twins[:4], twins[4:])
    assert all(torch.linalg.matrix_rank(g) == min(g.shape) for g in Noise().gradients(3)[1][3:])
