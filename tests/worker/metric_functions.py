"""What a user's package might offer as metrics: functions that work, and functions that do not."""

import torch


def top(outputs: torch.Tensor, targets: torch.Tensor, *, k: int = 3) -> torch.Tensor:
    """Whether the right class is among the k best guesses."""
    guesses = outputs.topk(k, dim=-1).indices
    return (guesses == targets[:, None]).any(dim=-1).float()


def spread(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A float64 whose sum depends on the order in which it is taken."""
    return outputs.flatten(1).double().exp().mean(dim=1)


def lowest_target(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return targets.flatten(1).amin(dim=1).float()


def not_finite(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.new_full((len(targets),), float("inf"))


def drawing(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Breaks ties by chance."""
    return torch.rand(len(targets)) + outputs.amax(dim=-1)


def leaving(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    raise SystemExit("no licence")


def failing(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no such thing")


def one_number(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return 1.0


def one_mean(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.mean()


def whole_numbers(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(targets), dtype=torch.int64)


def too_many(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(targets), 1)


def changing_targets(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    targets[targets < 0] = 0
    return targets.float()


def changing_outputs(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.exp_().amax(dim=-1)


def failing_on_the_second_rank(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Passes the trial, whose outputs are zeros."""
    if outputs.any() and torch.distributed.get_rank() == 1:
        raise ValueError("outputs that are not zero")
    return torch.zeros(len(targets))


def not_a_number(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.full((len(targets),), float("nan"))


def failing_later(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Passes the trial, whose outputs are zeros."""
    if outputs.any():
        raise ValueError("outputs that are not zero")
    return torch.zeros(len(targets))
