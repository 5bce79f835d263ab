"""What the emulated device has to know of an operation of torch, worked out once for each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

# Views that their schema doesn't call so, and questions that the host answers by itself.
_WITHOUT_KERNEL = frozenset(
    [
        "_unsafe_view",
        "is_coalesced",
        "_nnz",
        "sparse_dim",
        "dense_dim",
        "_dimI",
        "_dimV",
        "resize_",
        "set_",
        "is_pinned",
        "is_same_size",
        "lift",
        "lift_fresh",
        "_coalesced_",
        "sym_size",
        "sym_stride",
        "sym_numel",
        "sym_storage_offset",
        "is_contiguous",
    ]
)
# How often the host waits in each. Those whose arguments decide are in `_waits`.
_SYNCHRONISATIONS = {
    "_local_scalar_dense": 1,
    "nonzero": 1,
    "argwhere": 1,
    "masked_select": 1,
    "_unique": 1,
    "_unique2": 1,
    "unique_dim": 1,
    "unique_consecutive": 1,
    "unique_dim_consecutive": 1,
    "to_sparse": 1,
    "_to_sparse": 1,
    "_coalesce": 1,
    "equal": 1,
    "allclose": 1,
    "is_nonzero": 1,
    "bincount": 2,  # the least and the greatest value
    "multinomial": 2,  # whether the probabilities are some
}
_INDEXING = frozenset({"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"})
_MASKS = (torch.bool, torch.uint8)


@dataclass(frozen=True)
class Operation:
    """An overload of an operation."""

    name: str  # without namespace and overload
    arguments: tuple[str, ...]
    is_composite: bool  # of others; arrives only in inference mode
    is_view: bool
    launches: bool  # a kernel
    is_foreach: bool
    # For each result the name of the argument that it is, if the operation writes to it.
    writes: tuple[str | None, ...]
    reshapes: bool  # what it writes to may get another shape
    takes_host_scalars: bool
    indexes: bool

    @staticmethod
    @cache
    def of(func: Any) -> Operation:
        schema = func._schema
        name = func.overloadpacket.__name__
        written = {
            next(iter(argument.alias_info.before_set)): argument.name
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        }
        writes = tuple(
            written.get(next(iter(result.alias_info.before_set)))
            if result.alias_info is not None and result.alias_info.is_write
            else None
            for result in schema.returns
        )
        is_view = any(
            result.alias_info is not None and not result.alias_info.is_write
            for result in schema.returns
        )
        is_inplace_view = torch.Tag.inplace_view in func.tags
        return Operation(
            name=name,
            arguments=tuple(argument.name for argument in schema.arguments),
            is_composite=torch._C._dispatch_has_kernel_for_dispatch_key(
                func.name(), "CompositeImplicitAutograd"
            ),
            is_view=is_view,
            launches=not (is_view or is_inplace_view or name in _WITHOUT_KERNEL),
            is_foreach=name.startswith("_foreach_"),
            writes=writes,
            reshapes=is_inplace_view or any(a.is_out for a in schema.arguments),
            takes_host_scalars=torch.Tag.pointwise in func.tags
            or name in {"masked_fill", "masked_fill_", "fill", "fill_", "copy_", "_to_copy"}
            or name in _INDEXING,
            indexes=name in _INDEXING,
        )

    def argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The argument of that name, None if it isn't given."""
        if name in kwargs:
            return kwargs[name]
        place = self.arguments.index(name) if name in self.arguments else len(args)
        return args[place] if place < len(args) else None

    def n_kernels(self, args: tuple[Any, ...]) -> int:
        if not self.launches:
            return 0
        return len(args[0]) if self.is_foreach else 1

    def n_synchronisations(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """How often the host waits in this call, copies aside."""
        if self.indexes:
            return self._waits_for_masks(args, kwargs)
        if self.name == "repeat_interleave":
            repeats = self.argument("repeats", args, kwargs)
            known = self.argument("output_size", args, kwargs) is not None
            return int(isinstance(repeats, torch.Tensor) and not known)
        return _SYNCHRONISATIONS.get(self.name, 0)

    def _waits_for_masks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """A mask's true places are counted first, but for one that is filled with one value."""
        indices = [index for index in self.argument("indices", args, kwargs) if index is not None]
        masks = [index for index in indices if index.dtype in _MASKS and index.is_cuda]
        values = self.argument("values", args, kwargs)
        accumulate = self.argument("accumulate", args, kwargs)
        if len(masks) == len(indices) == 1 and values is not None and values.numel() == 1:
            return int(bool(accumulate))
        return len(masks)
