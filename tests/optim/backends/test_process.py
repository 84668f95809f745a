"""Kernels in a process: when they are loaded, whose threads they run on, and life without."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from optim_memory import Strange
from optim_updates import KINDS, example_update, pairs
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import Parameter

from roadless.optim import AdamWScheduleFree
from roadless.optim.backends import choose, numba_cpu
from roadless.optim.backends.form import Gradient, Move, Tensors

STEPS = """
import torch, sys, roadless.optim as optim
from roadless.optim.backends import choose
def steps(numel):
    w = torch.nn.Parameter(torch.ones(numel))
    optimizer = optim.SGDScheduleFree([w], lr=0.5)
    for _ in range(2):
        w.grad = torch.ones(numel)
        optimizer.step()
    return w.detach()
large = choose.MIN_ELEMENTS
"""


def process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STEPS + code],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])} | environment,
    )


def test_a_small_model_loads_no_backend_and_a_large_one_does() -> None:
    done = process("""
steps(large - 1)
assert "numba" not in sys.modules
steps(large)
assert "numba" in sys.modules
""")
    assert done.returncode == 0, done.stderr


def test_a_process_that_has_loaded_kernels_steps_small_models_by_them_too() -> None:
    """Of its own device only, and a child that it forks does as well."""
    done = process("""
import os
optim.load_kernels()
from roadless.optim.backends import numba_cpu
before = numba_cpu._function.cache_info().misses
assert before == 4
ran = []
run = numba_cpu.Job.run
numba_cpu.Job.run = lambda *a, **k: ran.append(run(*a, **k))
pid = os.fork()
w = steps(8)
assert len(ran) == 2
assert numba_cpu._function.cache_info().misses == before
assert abs(w - 0.225).max() < 1e-6
assert not choose.is_worth_a_kernel(8, "cuda")
assert choose.is_worth_a_kernel(large, "cuda")
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
""")
    assert done.returncode == 0, done.stderr


def test_kernels_work_in_a_fork_of_a_process_that_only_imported() -> None:
    """z = 0.5, 0 and x = 0.5, 0.25, so y ends at 0.9 · 0.25."""
    done = process("""
import os
children = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(2)
        os._exit(int(abs(steps(large)[-1].item() - 0.225) > 1e-6))
    children.append(pid)
assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
""")
    assert done.returncode == 0, done.stderr


def test_without_numba_torch_takes_the_steps_and_it_is_said_once() -> None:
    done = process("""
import logging
logging.basicConfig(level=logging.INFO)
sys.modules["numba"] = None
steps(large)
steps(large)
assert choose.backend_of("cpu").backend is None
assert "numba" in choose.backend_of("cpu").reason
""")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("optimizer steps on cpu run in plain torch") == 1


def test_compiled_code_is_kept_on_disk(tmp_path: Path) -> None:
    code = """
from roadless.optim.backends import numba_cpu
steps(large)
print(numba_cpu._function("sgd", "float32").cache_hits)
"""
    hits = [process(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert [done.stdout.strip() for done in hits] == ["0", "1"], hits


def test_without_a_folder_to_write_kernels_are_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = numba_cpu.numba_kernels.compiled

    def refusing(kind: str, dtype: str, *, is_cached: bool) -> Any:
        if is_cached:
            raise RuntimeError("no locator available")
        return compiled(kind, dtype, is_cached=False)

    monkeypatch.setattr(numba_cpu.numba_kernels, "compiled", refusing)
    numba_cpu._function.cache_clear()
    y, z, g = (torch.ones(2) for _ in range(3))
    numba_cpu.run(Tensors([y], [g], [z]), move=Move(lr=0.5), direction=Gradient())
    numba_cpu._function.cache_clear()
    assert z.tolist() == [0.5, 0.5]
    assert "no locator available" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_and_the_chunks_change_no_bit(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, usual, seen = example_update(kind), torch.get_num_threads(), []
    for threads, elements in ((1, 2**15), (2, 2**15), (2, 1000), (3, 7)):
        monkeypatch.setattr(numba_cpu, "_CHUNK_ELEMENTS", elements)
        numba_cpu._chunks.cache_clear()
        torch.set_num_threads(threads)
        seen.append(update.tensors())
        numba_cpu.run(seen[-1], move=update.move, direction=update.direction)
    torch.set_num_threads(usual)
    numba_cpu._chunks.cache_clear()
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in pairs(seen[0], other))


@pytest.mark.parametrize(("numel", "expected"), [(2**15, 1), (2**15 + 1, 2), (2**20, 2)])
def test_threads_are_those_of_torch_and_no_more_than_the_work_needs(
    numel: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, usual = [], torch.get_num_threads()
    monkeypatch.setattr(numba_cpu, "_gomp_parallel", lambda: lambda *a: asked.append(a[2]))
    torch.set_num_threads(2)
    y = torch.ones(numel)
    numba_cpu.run(Tensors([y], [y], [y]), move=Move(lr=0.5), direction=Gradient())
    torch.set_num_threads(usual)
    assert asked == [expected]


def test_nothing_is_compiled_again_when_numbers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "MIN_ELEMENTS", 0)
    w = Parameter(torch.ones(10))
    optimizer = AdamWScheduleFree([w], lr=0.1, warmup_steps=5)
    w.grad = torch.ones(10)
    optimizer.step()
    before = numba_cpu._function.cache_info().misses
    for k in range(12):
        optimizer.param_groups[0].update(lr=0.1 * k, weight_decay=0.01 * k, eps=1e-8 * (k + 1))
        optimizer.step()
    assert numba_cpu._function.cache_info().misses == before


def test_subclasses_and_rows_of_unequal_shape_are_left_to_torch() -> None:
    def rows_done(*rows: tuple[torch.Tensor, ...]) -> set[int]:
        tensors = Tensors(*(list(column) for column in zip(*rows, strict=True)))
        return choose.run_where_possible(tensors, move=Move(lr=0.1), direction=Gradient())

    plain, strange = torch.ones(4), torch.ones(4).as_subclass(Strange)
    taken = (Parameter(plain.clone()), plain, plain.clone())
    with torch.no_grad():
        assert rows_done((strange, plain, plain.clone()), taken) == {1}
        assert rows_done((plain.clone(), plain[:3], plain.clone()), taken) == {1}
        assert rows_done((plain.clone().to("meta"),) * 3, taken) == {1}


def test_of_a_distributed_tensor_the_local_part_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a world of one, so with the bits of the plain tensor."""
    monkeypatch.setattr(choose, "MIN_ELEMENTS", 0)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    run, calls = numba_cpu.Job.run, []
    monkeypatch.setattr(numba_cpu.Job, "run", lambda *a, **k: calls.append(run(*a, **k)))
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        ends, whole = [], torch.randn(4, 3)
        for place in (lambda t: t, lambda t: distribute_tensor(t, mesh, [Shard(0)])):
            w = Parameter(place(whole.clone()))
            optimizer = AdamWScheduleFree([w], lr=0.1, weight_decay=0.1)
            for _ in range(3):
                w.grad = place(torch.ones(4, 3))
                optimizer.step()
            ends.append(getattr(w.detach(), "full_tensor", w.detach)())
        assert torch.equal(*ends)
        assert len(calls) == 6
    finally:
        torch.distributed.destroy_process_group()


def test_devices_without_a_backend_say_so() -> None:
    assert choose.backend_of("meta") == choose.Choice(None, "no backend for this device")
    assert choose.backend_of("cpu").reason == ""


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGDScheduleFree", "ForeachAdamW"])
def test_a_compiled_step_is_not_compiled_again_in_every_step(name: str) -> None:
    """At most one graph in twelve steps, and the result of the step that is not compiled."""
    done = process(f"""
from torch._dynamo.utils import counters
ends = []
for wrap in (lambda step: step, torch.compile):
    w = torch.nn.Parameter(torch.ones(5))
    optimizer = optim.{name}([w], lr=0.1, weight_decay=0.1, warmup_steps=4)
    step = wrap(optimizer.step)
    for k in range(12):
        w.grad = torch.full_like(w, 0.1 * k)
        step()
    ends.append(w.detach().clone())
assert torch.equal(*ends)
assert counters["stats"].get("unique_graphs", 0) <= 1, counters
""")
    assert done.returncode == 0, done.stderr
