"""How SOAP views a tensor: which neighbouring dimensions are merged, and which are rotated."""

from dataclasses import dataclass

from torch import Tensor

#: Order of the dimensions of a channels-last 4-D weight that puts channels second.
_CHANNELS_SECOND = (0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class Layout:
    """A tensor's shape as seen by the preconditioner."""

    #: Order of the tensor's own dimensions before they are merged.
    order: tuple[int, ...]
    #: Sizes in that order.
    ordered: tuple[int, ...]
    #: Sizes after merging.
    shape: tuple[int, ...]
    #: The dimensions of `shape` that have a factor, and are rotated.
    rotated: tuple[int, ...]

    def fold(self, tensor: Tensor) -> Tensor:
        """Return the tensor in this layout; a view where its memory allows."""
        return tensor.permute(self.order).reshape(self.shape)

    def unfold(self, folded: Tensor) -> Tensor:
        """Return what `fold` made, in its own shape again."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return folded.reshape(self.ordered).permute(inverse)


def layout_of(
    shape: tuple[int, ...],
    *,
    max_precond_dim: int,
    merge_dims: bool,
    precondition_1d: bool,
    data_format: str = "channels_first",
) -> Layout:
    """Decide how a tensor is preconditioned.

    A dimension is rotated when its size is > 1 and <= ``max_precond_dim``; in a vector (a tensor
    with at most one dimension of a size > 1) only if ``precondition_1d``.

    Args:
        shape: the tensor's.
        max_precond_dim: largest size of a factor, >= 1; larger dimensions are left unrotated.
        merge_dims: whether to merge dimensions first, by `merged`.
        precondition_1d: whether to rotate vectors.
        data_format: "channels_last" if 4-D weights are stored as (out, height, width, in), so that
            merging must put "in" second first; otherwise "channels_first".

    >>> layout_of((8, 4, 3, 3), max_precond_dim=64, merge_dims=True, precondition_1d=False).shape
    (8, 36)
    >>> layout_of((9000, 64), max_precond_dim=64, merge_dims=True, precondition_1d=False).rotated
    (1,)
    """
    is_channels_last = merge_dims and data_format == "channels_last" and len(shape) == 4
    order = _CHANNELS_SECOND if is_channels_last else tuple(range(len(shape)))
    ordered = tuple(shape[i] for i in order)
    folded = merged(ordered, max_precond_dim=max_precond_dim) if merge_dims else ordered
    is_vector = sum(size > 1 for size in shape) <= 1
    rotated = tuple(i for i, size in enumerate(folded) if 1 < size <= max_precond_dim)
    has_factors = 0 not in shape and (precondition_1d or not is_vector)
    return Layout(order, ordered, folded, rotated if has_factors else ())


def merged(shape: tuple[int, ...], *, max_precond_dim: int) -> tuple[int, ...]:
    """Merge dimensions from the right while the product stays below ``max_precond_dim``.

    Dimension 0, the outputs of a layer, is never merged into another. HeavyBall 0.7.4 does the
    same, but puts the last group it formed at the end instead of second, which mixes unrelated
    entries where three or more groups remain.

    >>> merged((128, 64, 3, 3), max_precond_dim=2048)
    (128, 576)
    >>> merged((128, 64, 3, 3), max_precond_dim=576)
    (128, 64, 9)
    >>> merged((4, 3, 5, 7), max_precond_dim=10)
    (4, 3, 5, 7)
    """
    groups: list[int] = []
    for size in reversed(shape[1:]):
        if groups and groups[-1] * size < max_precond_dim:
            groups[-1] *= size
        elif size != 1:
            groups.append(size)
    return (*shape[:1], *reversed(groups))
