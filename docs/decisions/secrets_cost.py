"""What secrets cost: sealing, opening, and hiding them in what a rank writes.

Run: ``.venv/bin/python docs/decisions/secrets_cost.py``.
"""

import secrets
import sys
import time
from collections.abc import Callable

from roadless.service.secrets.cipher import Cipher, new_key
from roadless.worker.secrets import Redactor

LINE = "2026-01-01 00:00:00,000 INFO 128 samples of 1.2 MB were read from s3://bucket/data.parquet"


def microseconds(call: Callable[[], object], *, repeats: int) -> float:
    """The best of five means."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        best = min(best, (time.perf_counter() - start) / repeats)
    return best * 1e6


def main() -> None:
    """Print a line for each figure."""
    cipher, place = Cipher([new_key()]), {"project": "default", "name": "A_KEY"}
    for size in (40, 32 * 1024):
        value = secrets.token_urlsafe(size)[:size]
        sealed = cipher.seal(value, **place)
        sealing = microseconds(lambda value=value: cipher.seal(value, **place), repeats=200)
        opening = microseconds(lambda sealed=sealed: cipher.open(sealed, **place), repeats=200)
        sys.stdout.write(f"{size} bytes: sealed in {sealing:.0f} us, opened in {opening:.0f} us\n")
    for count, size in ((2, 40), (32, 40), (32, 32 * 1024)):
        values = [secrets.token_urlsafe(size)[:size] for _ in range(count)]
        start = time.perf_counter()
        redactor = Redactor(values)
        redactor.redact(LINE)
        learning = (time.perf_counter() - start) * 1e3
        hiding = microseconds(lambda redactor=redactor: redactor.redact(LINE), repeats=200)
        sys.stdout.write(
            f"{count} values of {size} bytes: learnt in {learning:.1f} ms, "
            f"a line of {len(LINE)} characters in {hiding:.1f} us\n"
        )


if __name__ == "__main__":
    main()
