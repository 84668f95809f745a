"""When a job ends by itself."""

from typing import Self

from pydantic import Field, model_validator

from service.contract.base import Spec


class BudgetSpec(Spec):
    """When a job ends by itself: at the first of these limits. No budget: it is open-ended."""

    max_steps: int | None = Field(None, ge=1)
    max_samples: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    max_seconds: float | None = Field(None, gt=0, description="seconds in RUNNING, all attempts")
    max_gpu_seconds: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _names_a_limit(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("expected at least one limit; use null for an open-ended job")
        return self
