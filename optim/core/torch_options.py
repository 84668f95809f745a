"""The options that every optimizer of torch.optim takes, and what they mean here.

Code written for torch passes them to whatever optimizer it is given. Those that mean something
are taken by every name; the others are refused with the reason, unless they ask for what is done
anyway.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from roadless.optim.checks import require_bool

#: Kept in the groups: ``maximize`` goes up the gradient, ``foreach`` may be false to process one
#: tensor at a time. Neither changes the other's result.
_TAKEN = ("maximize", "foreach")
#: Options that are not offered: the values that ask for nothing, and why the others are refused.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "capturable": (
        (False,),
        "the numbers of a step are computed on the CPU, so that a CUDA graph would repeat them",
    ),
    "differentiable": ((False,), "a step is not recorded by autograd"),
    "fused": ((None, False), "kernels are used without being asked for, where there are any"),
    "amsgrad": ((False,), "no largest second moment is kept"),
    "nesterov": ((False,), "the interpolation of y takes the place of momentum"),
    "dampening": ((0,), "the interpolation of y takes the place of momentum"),
    "decoupled_weight_decay": ((True,), "weight decay is always decoupled"),
}


def check_torch_options(settings: Mapping[str, Any]) -> None:
    """Check those of torch's options that are among a group's settings.

    Raises:
        ValueError: an option asks for something that does not exist here, or is no bool.
    """
    for name, (neutral, why) in _REFUSED.items():
        value = settings.get(name, neutral[0])
        if value not in neutral:
            raise ValueError(f"{name}: expected {neutral[-1]}, as {why}, seen {value!r}")
    if "maximize" in settings:
        require_bool(settings, "maximize")
    if settings.get("foreach") is not None:
        require_bool(settings, "foreach")


def taking_torch_options(make: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that takes torch's options too, beside its own arguments.

    Its signature stays that of the published optimizer. An option that is not given leaves no
    trace in the groups, so that their settings are those of the published optimizer as well.
    """
    own = inspect.signature(make).parameters

    @functools.wraps(make)
    def constructor(self: Any, *args: Any, **kwargs: Any) -> None:
        names = [name for name in (*_TAKEN, *_REFUSED) if name in kwargs and name not in own]
        options = {name: kwargs.pop(name) for name in names}
        check_torch_options(options)
        make(self, *args, **kwargs)
        taken = {name: options[name] for name in _TAKEN if options.get(name) is not None}
        self.defaults.update(taken)
        for group in self.param_groups:
            for name, value in taken.items():
                group.setdefault(name, value)
            self._check(group)

    return constructor


def leaving_torch_options(make: Callable[..., None]) -> Callable[..., None]:
    """Return the constructor of a wrapper, which leaves torch's options to its base.

    Raises (the constructor):
        ValueError: the wrapper is given one.
    """
    own = inspect.signature(make).parameters

    @functools.wraps(make)
    def constructor(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in (*_TAKEN, *_REFUSED):
            if name in kwargs and name not in own:
                raise ValueError(
                    f"{name}: expected among the arguments of the base, whose steps these are, "
                    f"seen {kwargs[name]!r} among the wrapper's"
                )
        make(self, *args, **kwargs)

    return constructor
