"""The updates of `roadless.optim.backends.form` as loops that read and write each element once.

A loop is one function for all dtypes; a job of a multi-tensor step is a table of addresses, which
the threads of one parallel region share. Importing this module compiles nothing.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, float32, float64, int64, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

#: Columns of a job: where the counter, the rows, the numbers are, and how many rows there are.
COUNTER, ROWS, NUMBERS, NUM_ROWS, JOB_LENGTH = range(5)
#: How many of `roadless.optim.backends.form.numbers` there are: s, those of the move, then a, those
#: of Adam.
NUM_NUMBERS = 13

#: The last columns of a row, after the addresses: that of the low part or 0, the key and the first
#: element's index for rounding, and how many elements.
LOW, KEY, INDEX, LENGTH = -4, -3, -2, -1
NUM_MORE = 4

#: bfloat16 as numba sees it: its bits.
_DTYPES = {"float32": float32, "float64": float64, "bfloat16": types.uint16}
#: Makes a float32 NaN quiet.
_QUIET = np.uint32(0x400000)
#: Division by zero is inf, as in torch, and costs no test; nothing else departs from IEEE rules.
_OPTIONS = {"error_model": "numpy", "nogil": True}


@intrinsic
def _words_at(_context: Any, address: Any) -> Any:
    """The pointer to int64 of an address or of a pointer to something else."""
    signature = types.CPointer(int64)(address)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = context.get_value_type(signature.return_type)
        if isinstance(arguments[0].type, ir.PointerType):
            return builder.bitcast(arguments[0], target)
        return builder.inttoptr(arguments[0], target)

    return signature, generate


@intrinsic
def _values_at(_context: Any, address: Any, like: Any) -> Any:
    """The pointer at an address, of the type of ``like``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return like(address, like), generate


@intrinsic
def _states_at(_context: Any, address: Any, like: Any) -> Any:
    """The same for a state or number, which is float32 beside narrow points."""
    result = types.CPointer(float32) if like.dtype == types.uint16 else like

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return result(address, like), generate


@intrinsic
def _parts_at(_context: Any, address: Any) -> Any:
    """The same for low parts."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int16)(address), generate


@intrinsic
def _float_of(_context: Any, bits: Any) -> Any:
    """The float32 of these bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return float32(types.uint32), generate


@intrinsic
def _bits_of(_context: Any, value: Any) -> Any:
    """The bits of a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(float32), generate


@intrinsic
def _take_next(_context: Any, address: Any) -> Any:
    """Add one to the int64 at an address, atomically; return what was there."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = cgutils.intp_t
        counter = builder.inttoptr(arguments[0], word.as_pointer())
        return builder.atomic_rmw("add", counter, word(1), "monotonic")

    return int64(address), generate


@njit(**_OPTIONS)
def _moved(y: Any, z: Any, u: Any, s: Any) -> tuple[Any, Any]:
    """Return the new y and z: `Move`, and torch's rule for lerp, so that c = 1 gives y = z."""
    lr, decay, lr_y, c, rest = s
    u += decay * y
    z -= lr * u
    y -= lr_y * u
    is_near_y = c < rest
    start = y if is_near_y else z
    end = z if is_near_y else y
    share = c if is_near_y else rest
    return start + share * (end - start), z


@njit(**_OPTIONS)
def _second_moment(g: Any, v: Any, a: Any) -> Any:
    return a[0] * v + a[1] * (g * g)


@njit(**_OPTIONS)
def _first_moment(g: Any, m: Any, a: Any) -> Any:
    return a[5] * m + a[6] * g


@njit(**_OPTIONS)
def _denominator(v: Any, a: Any) -> Any:
    root = np.sqrt(a[2] * v)
    return (a[3] if root < a[3] else root) + a[4]  # NaN stays NaN


@njit(**_OPTIONS)
def _random_bits(key: Any, index: Any) -> Any:
    """The 16 bits of `roadless.optim.numerics.rounding` for one element: a quarter of an output of
    SplitMix64.
    """
    word = np.uint64(key) + np.uint64((index >> 2) + 1) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return np.uint32(word >> np.uint64((index & 3) << 4)) & np.uint32(0xFFFF)


@njit(**_OPTIONS)
def _from_narrow(bits: Any) -> Any:
    return _float_of(np.uint32(bits) << np.uint32(16))


@njit(**_OPTIONS)
def _part_of_ulp(bits: Any) -> Any:
    """The unit of the low part: `roadless.optim.numerics.precision`'s gap above, over 2¹⁵."""
    power = _from_narrow(np.uint32(bits) & np.uint32(0x7F80))
    return min(max(power * np.float32(2.0**-22), np.float32(2.0**-148)), np.float32(2.0**105))


def _wide(value: Any) -> Any:
    """A point or gradient in the dtype of the arithmetic."""


@overload(_wide, inline="always")
def _wide_of(value: Any) -> Any:
    def narrow(value: Any) -> Any:
        return _from_narrow(value)

    def same(value: Any) -> Any:
        return value

    return narrow if value == types.uint16 else same


def _point(points: Any, low: Any, i: Any) -> Any:
    """A point in the dtype of the arithmetic, with what rounding took from it."""


@overload(_point)
def _point_of(points: Any, low: Any, i: Any) -> Any:
    def narrow(points: Any, low: Any, i: Any) -> Any:
        point = _from_narrow(points[i])
        return point + np.float32(low[i]) * _part_of_ulp(points[i]) if low.size else point

    def same(points: Any, low: Any, i: Any) -> Any:
        return points[i]

    return narrow if points.dtype == types.uint16 else same


def _place(points: Any, low: Any, i: Any, value: Any, key: Any, index: Any) -> None:
    """Write a point; a narrow one is rounded, and what that took is kept."""


@overload(_place)
def _place_of(points: Any, low: Any, i: Any, value: Any, key: Any, index: Any) -> Any:
    def narrow(points: Any, low: Any, i: Any, value: Any, key: Any, index: Any) -> None:
        carried = _bits_of(value) + _random_bits(key, index)
        pattern = carried if value == value else _bits_of(value) | _QUIET
        bits = np.uint16(pattern >> np.uint32(16))
        points[i] = bits
        if low.size:
            parts = np.rint((value - _from_narrow(bits)) / _part_of_ulp(bits))
            parts = parts if parts == parts else np.float32(0)
            low[i] = np.int16(min(max(parts, np.float32(1 - 2**15)), np.float32(2**15 - 1)))

    def same(points: Any, low: Any, i: Any, value: Any, key: Any, index: Any) -> None:
        points[i] = value

    return narrow if points.dtype == types.uint16 else same


@njit(**_OPTIONS)
def _sgd_span(y: Any, g: Any, z: Any, low: Any, key: Any, index: Any, s: Any) -> None:
    for i in range(y.size):
        point, z[i] = _moved(_point(y, low, i), z[i], _wide(g[i]), s)
        _place(y, low, i, point, key, index + i)


@njit(**_OPTIONS)
def _adam_span(
    y: Any, g: Any, z: Any, v: Any, low: Any, key: Any, index: Any, s: Any, a: Any
) -> None:
    for i in range(y.size):
        gradient = _wide(g[i])
        second = _second_moment(gradient, v[i], a)
        v[i] = second
        u = gradient / _denominator(second, a)
        point, z[i] = _moved(_point(y, low, i), z[i], u, s)
        _place(y, low, i, point, key, index + i)


@njit(**_OPTIONS)
def _momentum_span(
    y: Any, g: Any, z: Any, v: Any, m: Any, low: Any, key: Any, index: Any, s: Any, a: Any
) -> None:
    for i in range(y.size):
        gradient = _wide(g[i])
        second, first = _second_moment(gradient, v[i], a), _first_moment(gradient, m[i], a)
        v[i], m[i] = second, first
        u = a[7] * first / _denominator(second, a)
        point, z[i] = _moved(_point(y, low, i), z[i], u, s)
        _place(y, low, i, point, key, index + i)


@njit(**_OPTIONS)
def _descent_span(
    p: Any, g: Any, v: Any, m: Any, low: Any, key: Any, index: Any, s: Any, a: Any
) -> None:
    for i in range(p.size):
        gradient, point = _wide(g[i]), _point(p, low, i)
        second, first = _second_moment(gradient, v[i], a), _first_moment(gradient, m[i], a)
        v[i], m[i] = second, first
        u = a[7] * first / _denominator(second, a) + s[1] * point
        _place(p, low, i, point - s[0] * u, key, index + i)


@njit(**_OPTIONS)
def _row(job: Any, width: Any) -> Any:
    """The next row of the job that nobody has taken: addresses, then `LOW` and what follows it."""
    index = _take_next(job[COUNTER])
    if index >= job[NUM_ROWS]:
        return carray(_words_at(job[ROWS]), (0,))
    return carray(_words_at(job[ROWS] + 8 * width * index), (width,))


@njit(**_OPTIONS)
def _numbers(job: Any, like: Any) -> Any:
    s = carray(_states_at(job[NUMBERS], like), (NUM_NUMBERS,))
    return (s[0], s[1], s[2], s[3], s[4]), (s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12])


@njit(**_OPTIONS)
def _values(row: Any, column: Any, like: Any) -> Any:
    return carray(_values_at(row[column], like), (row[LENGTH],))


@njit(**_OPTIONS)
def _states(row: Any, column: Any, like: Any) -> Any:
    return carray(_states_at(row[column], like), (row[LENGTH],))


@njit(**_OPTIONS)
def _low(row: Any) -> Any:
    return carray(_parts_at(row[LOW]), (row[LENGTH] if row[LOW] else 0,))


def _sgd(like: Any) -> None:
    job = carray(_words_at(like), (JOB_LENGTH,))
    s, _ = _numbers(job, like)
    row = _row(job, 3 + NUM_MORE)
    while row.size:
        y, g, z = _values(row, 0, like), _values(row, 1, like), _states(row, 2, like)
        _sgd_span(y, g, z, _low(row), row[KEY], row[INDEX], s)
        row = _row(job, 3 + NUM_MORE)


def _adam(like: Any) -> None:
    job = carray(_words_at(like), (JOB_LENGTH,))
    s, a = _numbers(job, like)
    row = _row(job, 4 + NUM_MORE)
    while row.size:
        y, g = _values(row, 0, like), _values(row, 1, like)
        z, v = _states(row, 2, like), _states(row, 3, like)
        _adam_span(y, g, z, v, _low(row), row[KEY], row[INDEX], s, a)
        row = _row(job, 4 + NUM_MORE)


def _momentum(like: Any) -> None:
    job = carray(_words_at(like), (JOB_LENGTH,))
    s, a = _numbers(job, like)
    row = _row(job, 5 + NUM_MORE)
    while row.size:
        y, g, z = _values(row, 0, like), _values(row, 1, like), _states(row, 2, like)
        v, m = _states(row, 3, like), _states(row, 4, like)
        _momentum_span(y, g, z, v, m, _low(row), row[KEY], row[INDEX], s, a)
        row = _row(job, 5 + NUM_MORE)


def _descent(like: Any) -> None:
    job = carray(_words_at(like), (JOB_LENGTH,))
    s, a = _numbers(job, like)
    row = _row(job, 4 + NUM_MORE)
    while row.size:
        p, g = _values(row, 0, like), _values(row, 1, like)
        v, m = _states(row, 2, like), _states(row, 3, like)
        _descent_span(p, g, v, m, _low(row), row[KEY], row[INDEX], s, a)
        row = _row(job, 4 + NUM_MORE)


_BODIES = {"sgd": _sgd, "adam": _adam, "momentum": _momentum, "descent": _descent}
#: The updates that have a kernel.
KINDS = tuple(_BODIES)


def compiled(kind: str, dtype: str, *, is_cached: bool) -> Any:
    """Return the C function of an update, compiled now or read from numba's cache on disk.

    Args:
        kind: "sgd" (y, g, z), "adam" (y, g, z, v), "momentum" (y, g, z, v, m) or "descent"
            (p, g, v, m).
        dtype: "float32", "float64" or "bfloat16", of the points.
        is_cached: whether to use the disk.

    Returns:
        numba's C function ``void (job *)``, to be run by any number of threads on one job.

    Raises:
        RuntimeError: no folder for the cache can be written.
    """
    signature = types.void(types.CPointer(_DTYPES[dtype]))
    return cfunc(signature, cache=is_cached, nopython=True, error_model="numpy")(_BODIES[kind])
