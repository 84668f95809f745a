"""A bound beside each point of the eval curve: what this room asks of one above it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol

from fastapi import Depends, Request


class CurveBounds(Protocol):
    """Whoever can bound a job's loss."""

    async def __call__(
        self, job_id: str, project: str, steps: Sequence[int]
    ) -> Mapping[int, float | None]:
        """Return the bound after each of the steps that has one."""


async def _bounds(request: Request) -> CurveBounds:
    bounds: CurveBounds = request.app.state.curve_bounds
    return bounds


Bounds = Annotated[CurveBounds, Depends(_bounds)]
