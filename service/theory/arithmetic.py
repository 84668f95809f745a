"""Which numbers make the arithmetic of bounds meaningless: judged here, for plans and for jobs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from pydantic import ValidationError

from roadless.service.errors import ServiceError


@contextmanager
def within_doubles(refused: Callable[[str], ServiceError]) -> Iterator[None]:
    """Compute with numbers of users or ranks; raise ``refused(reason)`` if they give no answer.

    What overflows, divides by 0 or is undefined is an error here instead of continuing as infinity
    or NaN. So is what ``optim`` refuses, and an answer with a number that its class
    (``service/contract/theory``) does not allow. Underflow is no error by itself: a small term of a
    sum may vanish.
    """
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            yield
    except ValidationError as error:
        raise refused(_explain(error)) from error
    except ArithmeticError as error:
        raise refused(f"expected a bound within double precision, saw {error}") from error
    except ValueError as error:
        raise refused(str(error)) from error


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"expected a bound within double precision, saw {field} = {first['input']!r}"
