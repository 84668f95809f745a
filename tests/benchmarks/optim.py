"""``make bench-optim``: the time of one optimizer step beside torch's and the field's, in one run.

All contenders take one step a round, in turn, on equal parameters in transformer shapes (56M
float32 elements, 73 tensors), with two threads. A machine that others use disturbs whole rounds, so
the quieter half of the rounds counts, chosen by their total time; a ratio is the median of its
rounds' own ratios. The export of x, first steps and memory follow. Run as a module, because this
file is called as the library is.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch

from roadless import optim
from roadless.optim.backends import choose
from tests.benchmarks.optim_contenders import (
    MAKES,
    OURS_ADAMW,
    OURS_SGD,
    PEER_ADAMW,
    PEER_SGD,
    TORCH_ADAMW,
    TORCH_SGD,
    Contender,
    contenders,
    transformer_shapes,
)

Rounds = list[dict[str, float]]

#: What is compared with what, and the largest ratio allowed; and how much faster than its peer the
#: first of ours must be.
ACCEPTANCE = (
    (OURS_ADAMW, (TORCH_ADAMW,), 1.15),
    (OURS_SGD, (TORCH_SGD,), 1.15),
)
AT_LEAST_FASTER = 4.0
#: Processes of each contender for the figures of an optimizer alone.
ALONE_ROUNDS = 5
#: Models so small that a step is mostly the way to its arithmetic.
SMALL: dict[str, list[tuple[int, ...]]] = {
    "convnet, 8 tensors of 20 thousand elements": [
        *[(32, 1, 3, 3), (32,), (32,), (64, 32, 3, 3), (64,), (64,), (10, 64), (10,)],
    ],
    "10 tensors of 1000": [(1000,)] * 10,
    "100 tensors of 1000": [(1000,)] * 100,
    "100 tensors of 10000": [(10_000,)] * 100,
}
STEPS_AT_ONCE = 20
PLAIN = "plain torch"


def seconds_of(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure_rounds(members: list[Contender], num_rounds: int) -> Rounds:
    """Seconds of a step, by round and contender; the first round warms up and is dropped."""
    gradients = [torch.randn_like(p) for p in members[0].parameters]
    rounds = []
    for _ in range(num_rounds + 1):
        seconds = {}
        for member in members:
            member.give(gradients)
            seconds[member.name] = seconds_of(member.optimizer.step)
        rounds.append(seconds)
    return rounds[1:]


def quieter_half(rounds: Rounds) -> Rounds:
    ranked = sorted(rounds, key=lambda seconds: sum(seconds.values()))
    return ranked[: max(1, len(ranked) // 2)]


def ratio(rounds: Rounds, name: str, others: tuple[str, ...]) -> float:
    """Of ``name`` to the faster of ``others``."""
    fastest = min(others, key=lambda other: statistics.median(r[other] for r in rounds))
    return statistics.median(r[name] / r[fastest] for r in rounds)


def report_steps(rounds: Rounds) -> None:
    for name in rounds[0]:
        seconds = [r[name] for r in rounds]
        base = TORCH_SGD if "SGD" in name else TORCH_ADAMW
        line = f"{name:28} {1e3 * statistics.median(seconds):8.2f} ms"
        line += f"   fastest {1e3 * min(seconds):8.2f} ms"
        print(f"{line}   {ratio(rounds, name, (base,)):6.2f} x {base}", flush=True)


def report_acceptance(rounds: Rounds) -> None:
    for name, others, limit in ACCEPTANCE:
        seen = ratio(rounds, name, others)
        verdict = "holds" if seen <= limit else "MISSED"
        print(f"{name} / {others[0]}: {seen:.2f}, at most {limit}: {verdict}")
    for name, peers in ((OURS_ADAMW, PEER_ADAMW), (OURS_SGD, PEER_SGD)):
        seen = 1 / ratio(rounds, name, peers)
        print(f"{name} is {seen:.1f} times as fast as schedulefree's faster form", end="")
        print(f" (asked of AdamW: {AT_LEAST_FASTER})")


def report_export(member: Contender, num_rounds: int) -> None:
    """x into buffers that exist, beside one pass that reads two tensors and writes a third."""
    buffers = {p: torch.empty_like(p) for p in member.parameters}
    others = [torch.randn_like(p) for p in member.parameters]
    names = {
        "export of x": lambda: optim.averaged_point(member.optimizer, out=buffers),
        "one pass (c = a + b)": lambda: add_into(buffers, others),
        "a step": member.optimizer.step,
    }
    rounds = [{name: seconds_of(act) for name, act in names.items()} for _ in range(num_rounds)]
    kept = quieter_half(rounds[1:])
    for name in names:
        print(f"{name:28} {1e3 * statistics.median(r[name] for r in kept):8.2f} ms")
    print(f"export / pass: {ratio(kept, 'export of x', ('one pass (c = a + b)',)):.2f}")


def add_into(buffers: dict[torch.nn.Parameter, torch.Tensor], others: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for (parameter, buffer), other in zip(buffers.items(), others, strict=True):
            torch.add(parameter, other, out=buffer)


def probe(name: str, size: str, cache: str) -> dict[str, float]:
    """A fresh process; ``cache``: where numba and torch keep compiled code."""
    environment = os.environ | {"NUMBA_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, "-m", "tests.benchmarks.optim_probe", name, size]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def report_first_steps(names: list[str]) -> None:
    for name in names:
        with tempfile.TemporaryDirectory() as cache:
            cold, warm, small = (probe(name, size, cache) for size in ("big", "big", "small"))
        print(
            f"{name:28} first step {cold['first_step_seconds']:6.2f} s, "
            f"from the cache {warm['first_step_seconds']:6.2f} s, "
            f"of a small model {small['first_step_seconds']:6.3f} s; "
            f"added peak memory {warm['added_peak_in_parameter_sizes']:.2f} x parameters",
            flush=True,
        )


def report_alone(num_rounds: int) -> None:
    """Later steps of processes that hold one optimizer each, as users' do.

    In a process of many contenders the allocator keeps pages that a lone optimizer with temporaries
    gives back and faults in again at every step.
    """
    names = (OURS_ADAMW, TORCH_ADAMW, *PEER_ADAMW, OURS_SGD, TORCH_SGD, *PEER_SGD)
    with tempfile.TemporaryDirectory() as cache:
        rounds = [
            {name: probe(name, "big", cache)["later_step_seconds"] for name in names}
            for _ in range(num_rounds)
        ]
    print(f"alone in a process, medians of {num_rounds} processes each:")
    report_steps(rounds)
    report_acceptance(rounds)


def report_small() -> None:
    """Steps of small models, with kernels and without, and so what `MIN_ELEMENTS` should be.

    One thread, and nothing else in the caches: between two steps of a model all take longer.
    """
    torch.set_num_threads(1)
    for described, shapes in SMALL.items():
        members = [*contenders(shapes, [TORCH_ADAMW, *PEER_ADAMW]), *with_and_without(shapes)]
        for member in members:
            member.give([torch.randn(shape) for shape in shapes])
        rounds = [{m.name: seconds_of(partial(many_steps, m)) for m in members} for _ in range(41)]
        kept = quieter_half(rounds[1:])
        for name in rounds[0]:
            median = statistics.median(r[name] for r in kept) / STEPS_AT_ONCE
            print(f"{described}: {name:42} {1e6 * median:8.1f} us", flush=True)


def with_and_without(shapes: list[tuple[int, ...]]) -> list[Contender]:
    """Ours stepped by kernels, and in plain torch; what stepped it once does so from then on."""
    made = []
    for kind, least in (("kernels", 0), (PLAIN, 10**12)):
        choose.MIN_ELEMENTS = least
        (member,) = contenders(shapes, [OURS_ADAMW])
        made.append(Contender(f"{member.name}, {kind}", member.optimizer, member.parameters))
        made[-1].give([torch.randn(shape) for shape in shapes])
        member.optimizer.step()
    return made


def many_steps(member: Contender) -> None:
    for _ in range(STEPS_AT_ONCE):
        member.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--without", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--small", action="store_true", help="small models alone")
    arguments = parser.parse_args()
    if arguments.small:
        report_small()
        return
    names = [name for name in MAKES if name not in arguments.without]
    torch.set_num_threads(2)
    shapes = transformer_shapes()
    elements = sum(torch.Size(s).numel() for s in shapes)
    print(f"{elements / 1e6:.1f}M float32 in {len(shapes)} tensors, torch {torch.__version__}, ")
    print(f"2 threads of {os.cpu_count()} cores, load {os.getloadavg()}", flush=True)
    members = contenders(shapes, names)
    rounds = quieter_half(measure_rounds(members, arguments.rounds))
    report_steps(rounds)
    report_acceptance(rounds)
    ours = next(member for member in members if member.name == OURS_ADAMW)
    members.clear()
    report_export(ours, arguments.rounds)
    report_first_steps(names)
    report_alone(ALONE_ROUNDS)
    report_small()
    print(f"load at the end {os.getloadavg()}")


if __name__ == "__main__":
    main()
