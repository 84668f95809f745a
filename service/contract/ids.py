"""Identifiers: a prefix that tells the kind, and a ULID that sorts by time of creation."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_LENGTH = 26

#: What follows the prefix in every id, for path and field validation.
PATTERN_TAIL = f"[{_ALPHABET}]{{{_LENGTH}}}"

CHECKPOINT_ID_PATTERN = f"^ckpt_{PATTERN_TAIL}$"
DATASET_ID_PATTERN = f"^ds_{PATTERN_TAIL}$"
WHEEL_ID_PATTERN = f"^whl_{PATTERN_TAIL}$"


def new_id(prefix: str) -> str:
    """Return ``prefix_`` followed by 26 characters: 48 bits of milliseconds, 80 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    digits = (_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))
    return f"{prefix}_{''.join(digits)}"
