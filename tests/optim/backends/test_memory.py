"""What a kernel may be given: it sees the value of a tensor, or torch takes the step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from optim_makes import make, parameters_of
from optim_memory import GUISES, KERNEL_NAMES, POORER_GUISES, Guise, give, kernels, negated
from optim_runs import distance
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn import Parameter
from torch.testing._internal.distributed.fake_pg import FakeStore

from roadless import optim
from roadless.optim.backends import choose, numba_cpu
from roadless.optim.backends.form import Gradient, Move, Tensors
from roadless.optim.backends.memory import are_same_part, have_own_memory, is_plain

#: The first two are of one shape; one element alone is contiguous whatever its stride.
SHAPES = ((4, 4), (4, 4), (1,), (2, 3, 2, 2), (0, 2))
NUM_STEPS = 6


def plainly(g: Tensor) -> Tensor:
    return g.clone()


def start(name: str, *, dtype: torch.dtype = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
    return make(name, [Parameter(t.to(dtype)) for t in drawn])


def end_of(optimizer: Any) -> list[Tensor]:
    """y and x of all parameters."""
    xs = optim.averaged_point(optimizer)
    return [t.detach().clone() for p in parameters_of(optimizer) for t in (p, xs[p])]


def steps(optimizer: Any, guises: list[Guise], *, first: int = 0) -> list[Tensor]:
    """One for each guise, which all gradients of that step wear."""
    for t, guise in enumerate(guises, first):
        generator = torch.Generator().manual_seed(t)
        drawn = [
            torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            for p in parameters_of(optimizer)
        ]
        give(optimizer, [guise(g) if g.numel() else g for g in drawn])
    return end_of(optimizer)


def farthest(seen: list[Tensor], expected: list[Tensor]) -> float:
    return max(distance(a.double(), b.double()) for a, b in zip(seen, expected, strict=True))


def alternating(guise: Guise) -> list[Guise]:
    """At the first step, at one like the one before, and after one like that."""
    return [guise, plainly, plainly, guise, guise, plainly]


@pytest.mark.parametrize("are_used", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("name", KERNEL_NAMES)
@pytest.mark.parametrize("guise", GUISES)
def test_a_gradient_counts_by_its_value_in_any_guise(name: str, guise: str, are_used: bool) -> None:
    with kernels(are_used=False):
        expected = steps(start(name), [plainly] * NUM_STEPS)
    with kernels(are_used=are_used):
        seen = steps(start(name), alternating(GUISES[guise]))
    assert farthest(seen, expected) < 1e-12


@pytest.mark.parametrize("are_used", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("name", KERNEL_NAMES)
@pytest.mark.parametrize("guise", POORER_GUISES)
def test_so_does_one_that_is_not_all_there(name: str, guise: str, are_used: bool) -> None:
    """One number in place of many, zeros in no memory, a dtype that autocast left."""
    poorer, value = POORER_GUISES[guise]
    with kernels(are_used=False):
        expected = steps(start(name), alternating(value))
    with kernels(are_used=are_used):
        seen = steps(start(name), alternating(poorer))
    assert farthest(seen, expected) < 1e-12


@pytest.mark.parametrize("name", KERNEL_NAMES)
@pytest.mark.parametrize("guise", ["negated", "among others", "last dimension first"])
def test_so_it_does_for_narrow_parameters(name: str, guise: str) -> None:
    """The same words round the same elements; sums are added up in another order elsewhere."""
    ends = []
    for dressed in (plainly, GUISES[guise]):
        with kernels(are_used=True):
            ends.append(steps(start(name, dtype=torch.bfloat16), alternating(dressed)))
    assert farthest(*ends) < 2**-6


def gain_found_by(name: str, *, are_used: bool) -> float:
    """The imaginary part b of the least |(1 + bi)* - (1 - 3i)|², from 2."""
    re, im = Parameter(torch.tensor([1.0])), Parameter(torch.tensor([2.0]))
    right = torch.complex(torch.tensor([1.0]), torch.tensor([-3.0]))

    def closure() -> float:
        re.grad = im.grad = None
        loss = (torch.complex(re, im).conj() - right).abs().square().sum()
        loss.backward()
        return loss.item()

    with kernels(are_used=are_used):
        optimizer = make(name, [re, im], lr=0.05)
        for _ in range(30):
            optimizer.step(closure)
    assert im.grad is not None
    assert im.grad.is_neg()
    return im.item()


@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_the_gradient_that_autograd_leaves_under_a_conjugate_leads_downhill(name: str) -> None:
    seen, expected = (gain_found_by(name, are_used=are_used) for are_used in (True, False))
    assert 2.05 < seen < 4
    assert seen == pytest.approx(expected, abs=1e-4)


def tied(one: list[Parameter], _optimizer: Any) -> None:
    """By memory, not by name, as in old code for embeddings."""
    one[1].data = one[0].data


def overlapping(one: list[Parameter], _optimizer: Any) -> None:
    memory = torch.arange(24, dtype=one[0].dtype)
    one[0].data, one[1].data = memory[:16].view(4, 4), memory[4:20].view(4, 4)


def with_one_state(one: list[Parameter], optimizer: Any) -> None:
    for name, tensor in optimizer.state.get(one[0], {}).items():
        if tensor.dim():
            optimizer.state[one[1]][name] = tensor


def in_shared_memory(one: list[Parameter], _optimizer: Any) -> None:
    for parameter in one:
        parameter.share_memory_()


def transposed(one: list[Parameter], _optimizer: Any) -> None:
    for parameter in one[:2]:
        parameter.data = parameter.data.t()


def with_transposed_state(one: list[Parameter], optimizer: Any) -> None:
    for name, tensor in optimizer.state.get(one[0], {}).items():
        if tensor.dim():
            optimizer.state[one[0]][name] = tensor.t()


def with_state_transposed_in_place(one: list[Parameter], optimizer: Any) -> None:
    for tensor in optimizer.state.get(one[0], {}).values():
        if tensor.dim():
            tensor.t_()


def with_wider_state(one: list[Parameter], optimizer: Any) -> None:
    for name, tensor in optimizer.state.get(one[0], {}).items():
        if tensor.is_floating_point():
            optimizer.state[one[0]][name] = tensor.double()


def cut_with_their_state(one: list[Parameter], optimizer: Any) -> None:
    for parameter in one[:2]:
        for name, tensor in optimizer.state.get(parameter, {}).items():
            if tensor.dim():
                optimizer.state[parameter][name] = tensor[:1]
        parameter.grad = None
        parameter.data = parameter.data[:1]


def fewer(_one: list[Parameter], optimizer: Any) -> None:
    optimizer.param_groups[0]["params"].pop()


CHANGES = [
    *(tied, overlapping, with_one_state, in_shared_memory, transposed, with_transposed_state),
    *(with_state_transposed_in_place, with_wider_state, cut_with_their_state, fewer),
]


@pytest.mark.parametrize("name", KERNEL_NAMES)
@pytest.mark.parametrize("change", CHANGES)
def test_parameters_and_states_that_changed_move_as_torch_moves_them(
    name: str, change: Callable[[list[Parameter], Any], None]
) -> None:
    """Two that share memory must not be moved at the same time: torch moves them in turn."""
    ends = []
    for are_used in (True, False):
        optimizer = start(name)
        with kernels(are_used=are_used):
            steps(optimizer, [plainly] * 3)
            change(parameters_of(optimizer), optimizer)
            ends.append(steps(optimizer, [plainly] * 3, first=3))
    assert farthest(*ends) < 1e-12


@pytest.mark.parametrize("name", KERNEL_NAMES)
@pytest.mark.parametrize("of", ["its own parameter", "another parameter", "a state"])
def test_a_gradient_in_the_memory_of_something_that_moves(name: str, of: str) -> None:
    ends = []
    for are_used in (True, False):
        optimizer = start(name)
        one = parameters_of(optimizer)
        with kernels(are_used=are_used):
            steps(optimizer, [plainly] * 3)
            state = next(t for t in optimizer.state[one[1]].values() if t.dim())
            shared = {"its own parameter": one[0], "another parameter": one[1], "a state": state}
            for _ in range(2):
                zeros = [torch.zeros_like(p) for p in one[1:]]
                give(optimizer, [shared[of].detach(), *zeros])
            ends.append(end_of(optimizer))
    assert farthest(*ends) < 1e-12


def test_a_lazy_copy_of_a_parameter_keeps_its_value() -> None:
    """Both look at one memory until one is written."""
    optimizer = start("AdamWScheduleFree")
    with kernels(are_used=True):
        steps(optimizer, [plainly] * 3)
        copies = [torch._lazy_clone(p.detach()) for p in parameters_of(optimizer)]
        values = [p.detach().clone() for p in parameters_of(optimizer)]
        steps(optimizer, [plainly] * 2)
    assert all(torch.equal(a, b) for a, b in zip(copies, values, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_autograd_knows_that_a_kernel_has_moved_a_parameter(name: str, dtype: torch.dtype) -> None:
    """A backward pass through a graph from before a step would mix two moments; torch refuses it.

    At the first step with kernels, and at one that is repeated.
    """
    w = Parameter(torch.ones(4, dtype=dtype))
    optimizer = make(name, [w])
    gradients: list[Tensor | None] = [torch.ones_like(w)]
    with kernels(are_used=True):
        for num_before in (0, 8, 1):
            for _ in range(num_before):
                give(optimizer, gradients)
            loss = (w * w).sum()
            give(optimizer, gradients)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_what_a_kernel_cannot_step_is_refused_in_words(name: str) -> None:
    """A parameter or state whose sign is in a flag; torch's list operations do not write to it."""
    for are_used in (True, False):
        with kernels(are_used=are_used):
            optimizer = start(name)
            steps(optimizer, [plainly] * 3)
            one = parameters_of(optimizer)[0]
            one.data = torch._neg_view(one.data.neg_())  # where it was
            with pytest.raises(ValueError, match="lazy negative"):
                steps(optimizer, [plainly])
            one.data = one.data.resolve_neg()
            steps(optimizer, [plainly])
            if "z" in optimizer.state[one]:
                optimizer.state[one]["z"] = negated(optimizer.state[one]["z"])
                with pytest.raises(ValueError, match=r"lazy negative.*resolve_neg"):
                    steps(optimizer, [plainly])


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "PaLMForeachSFAdamW", "RAdamScheduleFree"])
def test_a_state_that_lacks_something_is_refused(name: str) -> None:
    """A kernel would take its neighbour in the table for it."""
    optimizer = start(name)
    with kernels(are_used=True):
        steps(optimizer, [plainly] * 6)
        for parameter in parameters_of(optimizer):
            del optimizer.state[parameter]["z"]
        with pytest.raises(ValueError, match="expected 'z' in it, seen"):
            give(optimizer, [torch.zeros_like(p) for p in parameters_of(optimizer)])


def test_kernels_take_the_usual_steps_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the above would hold without any kernel."""
    taken: list[int] = []
    run = numba_cpu.Job.run
    monkeypatch.setattr(numba_cpu.Job, "run", lambda *a, **k: taken.append(1) or run(*a, **k))
    with kernels(are_used=True):
        for name in KERNEL_NAMES:
            taken.clear()
            steps(start(name), [plainly, GUISES["among others"], GUISES["with history"]] * 3)
            assert len(taken) >= 5, name


def test_tensors_without_memory_of_their_own() -> None:
    a, b = torch.ones(4), torch.ones(4)
    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    empty = torch.ones(0)
    assert have_own_memory([(a, b, torch.ones(4)), (torch.ones(4), b, torch.ones(4))])
    assert have_own_memory([(empty, empty, empty)])
    assert have_own_memory([])
    for strange in (freed, torch._efficientzerotensor((4,))):
        assert not have_own_memory([(a, strange)])
    for row in [(a, a), (a, b, a), (a, b, b), (a[1:], a[:3]), (a[:3], a[1:])]:
        assert not have_own_memory([row])
    assert not have_own_memory([(a, b), (a, torch.ones(4))])
    assert have_own_memory([(a[:2], b[:2], b[2:]), (a[2:], torch.ones(2), torch.ones(2))])


def test_a_tensor_inside_a_transform_has_no_address() -> None:
    def seen(x: Tensor) -> Tensor:
        assert not have_own_memory([(torch.ones(3), x)])
        return x

    torch.vmap(seen)(torch.ones(2, 3))
    torch.func.functionalize(seen)(torch.ones(3))


def test_flags_and_types_that_kernels_do_not_know() -> None:
    plain = torch.ones(3)
    assert is_plain((plain, plain))
    assert not is_plain((plain, negated(plain)))
    assert not is_plain((plain, plain[:2]))
    assert not is_plain((plain, plain.as_subclass(torch.nn.Buffer)))
    with torch.inference_mode():
        assert not is_plain((torch.ones(3), plain))


def test_local_parts_are_stepped_only_where_they_are_the_same_part() -> None:
    """A gradient whose sum is still to come, as tensor parallel norms have, is torch's to add."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = dist.init_device_mesh("cpu", (2,))
        whole = torch.ones(4, 4)
        replicated = distribute_tensor(whole, mesh, [Replicate()], src_data_rank=None)
        sharded = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)
        partial = DTensor.from_local(whole, mesh, [Partial()])
        assert are_same_part((replicated, replicated))
        assert are_same_part((sharded, sharded))
        assert are_same_part((whole, whole))
        for row in [(replicated, partial), (partial, partial), (sharded, replicated)]:
            assert not are_same_part(row)
        assert not are_same_part((replicated, whole))
        states = [replicated.clone(), sharded.clone()]
        tensors = Tensors([replicated, sharded], [partial, sharded.clone()], z=states)
        done = choose.run_where_possible(tensors, move=Move(lr=0.0), direction=Gradient())
        assert done == {1}
    finally:
        dist.destroy_process_group()
