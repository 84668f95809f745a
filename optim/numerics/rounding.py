"""Stochastic rounding without a random state: each decision is a function of where it is made.

The random word of an element depends on (seed, step, parameter, element) alone, so that a run
repeats bit for bit on resume and for any split of the tensor over ranks.
"""

from functools import lru_cache

import torch
from torch import Tensor

from roadless.optim.numerics.sharding import blocks, element_index, first_index, local

_MASK = 2**64 - 1
#: SplitMix64's constants: the increment (2⁶⁴ over the golden ratio) and the two multipliers.
_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
#: Random bits per element, and elements per word: the first element gets its lowest bits.
_NUM_BITS, _PER_WORD = 16, 4
#: The bit of a float32 that makes a NaN quiet; bfloat16 keeps it.
_QUIET = 0x400000


def rounding_key(*, seed: int, step: int, parameter: int) -> int:
    """Return the 64-bit key of one rounding of one parameter.

    Args:
        seed: of the run, any integer.
        step: counted from 1.
        parameter: index among all parameters of the optimizer, >= 0.
    """
    return _with(parameter, key=_step_key(seed, step))


@lru_cache(maxsize=64)
def _step_key(seed: int, step: int) -> int:
    return _with(step, key=_with(seed, key=0))


def random_words(key: int, index: Tensor) -> Tensor:
    """Return one random 64-bit word for each element index: output ``index`` of SplitMix64(key).

    Args:
        key: from `rounding_key`, in [0, 2⁶⁴).
        index: int64, >= 0, of any shape.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", section 5.

    >>> [hex(w & 2**64 - 1) for w in random_words(0, torch.arange(2)).tolist()]
    ['0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4']
    """
    words = (index + 1) * _signed(_INCREMENT) + _signed(key)
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        words = (words ^ _shifted(words, shift)) * _signed(multiplier)
    words ^= _shifted(words, 31)
    return words


def stochastically_rounded(
    values: Tensor, dtype: torch.dtype, *, key: int, index: Tensor | int = 0
) -> Tensor:
    """Round at random to one of the two neighbours in ``dtype``, so that the mean is the value.

    ::

        P(upper) = (|value| - lower) / (upper - lower)

    in magnitude, to 16 bits. Values that ``dtype`` can represent are unchanged. A value above all
    finite ones becomes the largest of them or infinite.

    Args:
        values: float32, of any shape.
        dtype: bfloat16 or float16.
        key: from `rounding_key`.
        index: of each element in the whole parameter, int64, of the shape of ``values``; or that of
            the first, >= 0, if the others follow it.

    Source: Connolly, Higham and Mary 2021, "Stochastic rounding and its probabilistic backward
    error analysis", SIAM J. Sci. Comput. 43(1), mode 1.

    >>> values = torch.full((100_000,), 1 + 2**-9)  # between 1 and 1 + 2⁻⁷, a quarter of the way
    >>> rounded = stochastically_rounded(values, torch.bfloat16, key=1)
    >>> rounded.unique().tolist(), round((rounded > 1).float().mean().item(), 2)
    ([1.0, 1.0078125], 0.25)
    """
    bits = _bits_at(key, index) if isinstance(index, Tensor) else _bits_from(key, index, values)
    if dtype == torch.bfloat16:
        return _rounded_to_bfloat16(values, bits)
    return _rounded_between_neighbours(values, dtype, bits)


def stochastically_round_into(parameter: Tensor, point: Tensor, *, key: int) -> None:
    """Round ``point`` into ``parameter``, in blocks; for distributed tensors, this rank's part.

    Each element is rounded by its index in the whole tensor, so that the split does not matter.
    """
    narrow, wide = local(parameter), local(point)
    start = first_index(point)
    if start is None or not (narrow.is_contiguous() and wide.is_contiguous()):
        index = element_index(point)
        narrow.copy_(stochastically_rounded(wide, narrow.dtype, key=key, index=index))
        return
    for into, values in zip(blocks(narrow), blocks(wide), strict=True):
        into.copy_(stochastically_rounded(values, narrow.dtype, key=key, index=start))
        start += values.numel()


def _rounded_to_bfloat16(values: Tensor, bits: Tensor) -> Tensor:
    """Add the random bits to those that bfloat16 drops from a float32: a carry rounds up.

    A NaN is made quiet instead: a carry through its payload gives -0, and a payload in the dropped
    bits alone gives an infinity. Its pattern is kept by hand, because torch's own conversion (2.13,
    x86) gives NaN one pattern in vector code and another in the last elements.
    """
    pattern = values.view(torch.int32)
    pattern = torch.where(values.isnan(), pattern | _QUIET, pattern + bits)
    return (pattern >> _NUM_BITS).to(torch.int16).view(torch.bfloat16)


def _rounded_between_neighbours(values: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    magnitude = values.abs()
    nearest = magnitude.to(dtype)
    lower = nearest.view(torch.int16) - (nearest.to(values.dtype) > magnitude).to(torch.int16)
    floor, ceiling = (pattern.view(dtype).to(values.dtype) for pattern in (lower, lower + 1))
    share = (magnitude - floor) / (ceiling - floor)
    up = (bits.to(values.dtype) < share * 2**_NUM_BITS).to(torch.int16)
    rounded = torch.copysign((lower + up).view(dtype), values.to(dtype))
    return torch.where(nearest.isfinite(), rounded, values.to(dtype))


def _bits_at(key: int, index: Tensor) -> Tensor:
    """The 16 random bits of each element, a quarter of a word, as int32 in [0, 2¹⁶)."""
    words = random_words(key, index // _PER_WORD)
    bits = words >> (index % _PER_WORD) * _NUM_BITS
    return torch.bitwise_and(bits, 2**_NUM_BITS - 1).to(torch.int32)


def _bits_from(key: int, start: int, like: Tensor) -> Tensor:
    """The same for consecutive elements, with each word computed once."""
    first, skipped = divmod(start, _PER_WORD)
    num_words = -(-(skipped + like.numel()) // _PER_WORD)
    words = random_words(key, torch.arange(first, first + num_words, device=like.device))
    bits = words.view(torch.int16)[skipped : skipped + like.numel()].view(like.shape)
    return torch.bitwise_and(bits.to(torch.int32), 2**_NUM_BITS - 1)


def _with(part: int, *, key: int) -> int:
    return _mixed((key + part * _INCREMENT + _INCREMENT) & _MASK)


def _mixed(word: int) -> int:
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        word = (word ^ word >> shift) * multiplier & _MASK
    return word ^ word >> 31


def _shifted(words: Tensor, shift: int) -> Tensor:
    """Shift right, filling with zeros, which torch lacks for signed dtypes; its products wrap."""
    return torch.bitwise_and(words >> shift, 2 ** (64 - shift) - 1)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
