"""Ever longer pauses between the tries of a call that nobody answers."""

from collections.abc import Iterator
from typing import Final

#: The first pause, and the longest, which each next one doubles up to.
FIRST_SECONDS: Final = 0.05
LONGEST_SECONDS: Final = 2.0


def pauses() -> Iterator[float]:
    """Yield the seconds to wait after each try that failed, without end."""
    seconds = FIRST_SECONDS
    while True:
        yield seconds
        seconds = min(2 * seconds, LONGEST_SECONDS)
