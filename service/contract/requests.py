"""Request bodies of the actions on an existing job."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from roadless.service.contract.base import Spec
from roadless.service.contract.job.budget import BudgetSpec
from roadless.service.contract.job.extensions import ExtensionPlan
from roadless.service.contract.job.spec import Label

#: The largest amount that a budget grows by at once; every sum of two stays exact as a float.
_MOST = 2**52

Amount = Annotated[int, Field(ge=1, le=_MOST)]
Seconds = Annotated[float, Field(gt=0, le=_MOST)]


class Pause(Spec):
    """How to pause."""

    checkpoint: Literal["save", "latest"] = Field(
        "save",
        description="save: evaluate and save first; latest: leave now and later resume from "
        "the newest training state",
    )


class Extend(Spec):
    """By how much the budget grows. Without any amount the job becomes open-ended."""

    steps: Amount | None = None
    samples: Amount | None = None
    tokens: Amount | None = None
    seconds: Seconds | None = None
    gpu_seconds: Seconds | None = None
    plan: ExtensionPlan | None = Field(
        None,
        description="how the rates continue, for a schedule that depends on the number of steps",
    )

    @property
    def amounts(self) -> dict[str, int | float]:
        """What is added to each limit of the budget."""
        return {
            f"max_{name}": value
            for name, value in self.model_dump(exclude={"plan"}).items()
            if value is not None
        }


class JobPatch(Spec):
    """The fields of a job that may change at any time; one that is absent stays as it is."""

    name: str | None = Field(None, min_length=1, max_length=100)
    labels: dict[Label, Annotated[str, StringConstraints(max_length=255)]] | None = Field(
        None, max_length=64
    )
    priority: int | None = Field(None, ge=-1000, le=1000)
    budget: BudgetSpec | None = Field(None, description="absolute; null: open-ended")
