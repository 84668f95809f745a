"""``make bench-soap``: a step of SOAP beside heavyball's, and what its schedule saves.

The first part takes turns on the shapes of ``make bench-optim`` (an embedding and six layers of
width 768, 56M float32 elements; two threads), a whole cycle of steps a turn, so that each turn has
one refresh of the bases. ``--width`` makes it narrower, for machines where that takes minutes: the
work grows with its third power. A machine that others use disturbs whole rounds: the quieter half
of them counts, and a ratio is the median of its rounds' own ratios. heavyball runs without
compilation, and with ``--compiled`` as it comes, too; then the faster of the two is the peer. It
tunes each shape for about ten seconds, and where products dominate comes back to those of torch.

The second part sets the count of updates to 10, 1000 and 100000 and measures the mean step there,
refreshes included, on one narrower layer: a mean needs many steps.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import heavyball
import torch
from torch.nn import Parameter

from roadless import optim
from roadless.optim.soap.schedule import steps_between_updates
from tests.benchmarks.optim_contenders import WIDTH, Contender, transformer_shapes

Make = Callable[[list[Parameter]], torch.optim.Optimizer]
Rounds = list[dict[str, float]]

FREQUENCY = 2
OURS, COMPILED, EAGER = "ours SOAP", "heavyball SOAP", "heavyball SOAP, not compiled"
NARROW = 256
COUNTS = (10, 1000, 100_000)


def shapes_of(width: int) -> list[tuple[int, ...]]:
    """Of ``make bench-optim``, with each dimension narrower by the same factor."""
    return [tuple(size * width // WIDTH for size in shape) for shape in transformer_shapes()]


def made(name: str, shapes: list[tuple[int, ...]], make: Make) -> Contender:
    generator = torch.Generator().manual_seed(0)
    parameters = [Parameter(torch.randn(s, generator=generator)) for s in shapes]
    return Contender(name, make(parameters), parameters)


def contenders(shapes: list[tuple[int, ...]], *, is_compiled: bool) -> list[Contender]:
    peers = [COMPILED, EAGER] if is_compiled else [EAGER]
    ours = made(OURS, shapes, lambda p: optim.SOAP(p, shampoo_beta=0.95))
    return [ours, *(made(name, shapes, lambda p: heavyball.SOAP(p)) for name in peers)]


@contextmanager
def compilation(name: str) -> Iterator[None]:
    """heavyball compiles unless its module-wide mode is None; it is read at each call."""
    mode = heavyball.utils.compile_mode
    if name == EAGER:
        heavyball.utils.compile_mode = None
    try:
        yield
    finally:
        heavyball.utils.compile_mode = mode


def seconds_of_cycle(member: Contender, gradients: list[torch.Tensor], num_steps: int) -> float:
    """Mean seconds of a step; giving the gradients is not counted."""
    total = 0.0
    with compilation(member.name):
        for _ in range(num_steps):
            member.give(gradients)
            started = time.perf_counter()
            member.optimizer.step()
            total += time.perf_counter() - started
    return total / num_steps


def measure(members: list[Contender], num_rounds: int) -> Rounds:
    """By round and contender; the first two cycles start the bases and compile, and are dropped."""
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(p.shape, generator=generator) for p in members[0].parameters]
    rounds = []
    for number in range(num_rounds + 2):
        seconds = {m.name: seconds_of_cycle(m, gradients, FREQUENCY) for m in members}
        rounds.append(seconds)
        if number == 0:
            report("first two steps, mean", [seconds])
    return rounds[2:]


def quieter_half(rounds: Rounds) -> Rounds:
    ranked = sorted(rounds, key=lambda seconds: sum(seconds.values()))
    return ranked[: max(1, len(ranked) // 2)]


def report(title: str, rounds: Rounds) -> None:
    print(f"{title}:", flush=True)
    for name in rounds[0]:
        seconds = [r[name] for r in rounds]
        fastest = 1e3 * min(seconds)
        print(f"  {name:30} {1e3 * statistics.median(seconds):9.1f} ms   fastest {fastest:9.1f} ms")


def report_acceptance(rounds: Rounds) -> None:
    peers = [name for name in rounds[0] if name != OURS]
    peer = min(peers, key=lambda name: statistics.median(r[name] for r in rounds))
    seen = statistics.median(r[OURS] / r[peer] for r in rounds)
    verdict = "holds" if seen <= 1 else "MISSED"
    print(f"{OURS} / {peer}: {seen:.2f}, at most 1: {verdict}")


def report_schedule(num_repeats: int) -> None:
    """The mean step at each count of updates, over two of its cycles or more."""
    shapes = [(2048, NARROW), (3 * NARROW, NARROW), (NARROW, NARROW), (4 * NARROW, NARROW)]
    member = made("ours", shapes, lambda p: optim.SOAP(p, precond_schedule=True))
    gradients = [torch.randn_like(p) for p in member.parameters]
    seconds_of_cycle(member, gradients, 3)
    for count in COUNTS:
        num_steps = max(20, round(2 * steps_between_updates(count)))
        means = [mean_at(member, gradients, count, num_steps) for _ in range(num_repeats)]
        print(
            f"  at {count:6} updates: a refresh every {steps_between_updates(count):6.2f} steps, "
            f"mean step {1e3 * statistics.median(means):7.2f} ms, "
            f"fastest {1e3 * min(means):7.2f} ms",
            flush=True,
        )


def mean_at(member: Contender, gradients: list[torch.Tensor], count: int, num_steps: int) -> float:
    for group in member.optimizer.param_groups:
        group["k"], group["precond_due"] = count, 0.0
    return seconds_of_cycle(member, gradients, num_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="cycles that count, before halving")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="of the schedule's measurement")
    parser.add_argument("--compiled", action="store_true", help="heavyball as it comes, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes = shapes_of(arguments.width)
    elements = sum(torch.Size(s).numel() for s in shapes)
    print(
        f"{elements / 1e6:.1f}M float32 elements, width {arguments.width}, "
        f"refresh every {FREQUENCY} steps",
        flush=True,
    )
    rounds = measure(contenders(shapes, is_compiled=arguments.compiled), arguments.rounds)
    quiet = quieter_half(rounds)
    report("a step, mean over a cycle", quiet)
    report_acceptance(quiet)
    print("scheduled refreshes, ours, one narrow layer:")
    report_schedule(arguments.repeats)


if __name__ == "__main__":
    main()
