"""The arithmetic of matrix products and the memory traffic of kernels, from their operands."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.emulated_cuda.operations import Operation

_ALLOCATES = frozenset(["empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"])
# What these write to they don't read first.
_SCATTERS = frozenset(["index_put_", "_index_put_impl_"])
_OVERWRITES = _SCATTERS | {"copy_", "fill_", "zero_", "normal_", "uniform_"}
_CREATES = frozenset(
    ["new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like", "zeros", "ones"]
)
_GATHERS = frozenset(["index", "_unsafe_index", "index_select", "gather", "embedding"])


def flop_of(op: Operation, func: Any, args: tuple[Any, ...], result: Any) -> tuple[str, int] | None:
    """The dtype that a matrix product multiplies in and its FLOP; None for another operation."""
    if op.name in ("addmv", "addmv_", "mv", "dot"):
        matrix = next(a for a in args if isinstance(a, torch.Tensor) and a.dim() == 2)
        return str(matrix.dtype).removeprefix("torch."), 2 * matrix.numel()
    packet = getattr(torch.ops.aten, op.name.removesuffix("_"), func.overloadpacket)
    if packet not in flop_registry:
        return None
    operands = args[1:3] if op.name.startswith(("addmm", "baddbmm")) else args[:2]
    added = (args[0],) if len(operands) < len(args[:3]) and operands[0] is not args[0] else ()
    flop = flop_registry[packet](*added, *operands, out_val=result)
    return str(operands[0].dtype).removeprefix("torch."), int(flop)


def bytes_of(op: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """What a kernel reads and writes, each operand once."""
    if op.name in _ALLOCATES:
        return 0
    results = _tensors(result)
    written = sum(n_bytes(t) for t in results)
    if op.name in _CREATES:
        return written
    inputs = {name: value for name, value in kwargs.items() if name != "out"}
    operands = _tensors((args[op.name in _OVERWRITES :], inputs))
    if op.name in _GATHERS:
        return written + sum(n_bytes(t) for t in (*operands[1:], *results))
    if op.name in _SCATTERS:
        written = n_bytes(op.argument("values", args, kwargs))
    return written + sum(n_bytes(t) for t in operands)


def n_bytes(tensor: torch.Tensor) -> int:
    """The bytes of a tensor's elements, those that it repeats once."""
    if tensor.layout != torch.strided:
        return sum(n_bytes(part) for part in (tensor._indices(), tensor._values()))
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in sizes if stride) * tensor.element_size()


def _tensors(values: Any) -> Sequence[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
