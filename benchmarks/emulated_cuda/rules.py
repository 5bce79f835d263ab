"""What CUDA refuses, as the RuntimeError that it raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.emulated_cuda.operations import Operation

_PRODUCTS = frozenset(
    [
        "mm",
        "bmm",
        "addmm",
        "addmm_",
        "baddbmm",
        "baddbmm_",
        "addmv",
        "addmv_",
        "mv",
        "dot",
        "vdot",
        "addbmm",
        "addbmm_",
        "addr",
        "addr_",
        "_addmm_activation",
    ]
)
_16_BITS = (torch.float16, torch.bfloat16)

# Operations of two kinds give results that depend on the order in which CUDA's threads come. For
# these `torch.use_deterministic_algorithms` has no other kernel.
_NEVER_DETERMINISTIC = frozenset(
    [
        "put",
        "put_",
        "kthvalue",
        "histc",
        "max_unpool2d",
        "max_unpool3d",
        "nll_loss_forward",
        "nll_loss2d_forward",
        "avg_pool3d_backward",
        "_adaptive_avg_pool2d_backward",
        "_adaptive_avg_pool3d_backward",
        "max_pool3d_with_indices_backward",
        "adaptive_max_pool2d_backward",
        "fractional_max_pool2d_backward",
        "fractional_max_pool3d_backward",
        "upsample_linear1d_backward",
        "upsample_bilinear2d_backward",
        "upsample_bicubic2d_backward",
        "upsample_trilinear3d_backward",
        "reflection_pad1d_backward",
        "reflection_pad2d_backward",
        "reflection_pad3d_backward",
        "_ctc_loss_backward",
        "grid_sampler_2d_backward",
        "grid_sampler_3d_backward",
    ]
)
# For these `torch.use_deterministic_algorithms` has a slower kernel with one result.
_DETERMINISTIC_IF_ASKED = frozenset(
    [
        "index_add",
        "index_add_",
        "scatter_add",
        "scatter_add_",
        "index_reduce",
        "index_reduce_",
        "_unsafe_masked_index_put_accumulate",
        "replication_pad1d_backward",
        "replication_pad2d_backward",
        "replication_pad3d_backward",
    ]
)


def check_devices(
    op: Operation,
    on_host: Sequence[torch.Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Raise RuntimeError for an operation on the device that doesn't take these CPU tensors.

    Args:
        on_host: the arguments that are CPU tensors.
    """
    if op.name in ("copy_", "_to_copy", "_copy_from", "set_"):
        return
    first = op.argument("self", args, kwargs)
    if op.indexes:
        if not first.is_cuda:
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        indices = op.argument("indices", args, kwargs)
        on_host = [t for t in on_host if not any(t is index for index in indices)]
    written = [op.argument(name, args, kwargs) for name in op.writes if name is not None]
    for tensor in on_host:
        is_scalar = op.takes_host_scalars and tensor.dim() == 0
        if not is_scalar or any(tensor is target for target in written):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! (when checking arguments in method {op.name})"
            )


def check_dtypes(op: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise RuntimeError for products that CUDA has no kernel for. The rest CPUs refuse too."""
    if op.name not in _PRODUCTS:
        return
    operands = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    for operand in operands:
        if not (operand.is_floating_point() or operand.is_complex()):
            kind = str(operand.dtype).removeprefix("torch.")
            raise RuntimeError(f"\"{op.name}_cuda\" not implemented for '{kind}'")


def check_out_dtype(
    op: Operation, out_dtype: torch.dtype, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise RuntimeError for a product into another dtype that CUDA has no kernel for."""
    adds = op.name in ("addmm", "baddbmm")
    added, left, right = args[:3] if adds else (None, *args[:2])
    if left.dtype != right.dtype:
        raise RuntimeError("input dtypes must be the same")
    if out_dtype != left.dtype and not (out_dtype == torch.float32 and left.dtype in _16_BITS):
        raise RuntimeError("out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs")
    if added is not None and added.dtype not in (out_dtype, left.dtype):
        raise RuntimeError("self dtype must match either out_dtype or mat1 dtype")
    out = op.argument("out", args, kwargs)
    if out is not None and out.dtype != out_dtype:
        raise RuntimeError("out_dtype must be the same as the dtype of the provided out tensor")


def check_deterministic(
    op: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], *, hosts: Sequence[Any]
) -> None:
    """Raise RuntimeError for an operation that may give other numbers each time it is run.

    Args:
        hosts: the same arguments with the device's tensors as host tensors, to look at places
            that are written to twice.
    """
    reason = _why_never(op, args, kwargs)
    if reason is None and not torch.are_deterministic_algorithms_enabled():
        reason = _why_unless_asked(op, args, kwargs, hosts)
    if reason is not None:
        raise RuntimeError(
            f"{op.name} does not have a deterministic implementation on CUDA: {reason}"
        )


def _why_never(op: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if op.name in _NEVER_DETERMINISTIC:
        return "its threads add, or write, in any order"
    if op.name in ("cumsum", "cumsum_") and _is_float(op, args, kwargs):
        return "the sums of its blocks are rounded in any order"
    if op.name in ("median", "nanmedian") and "dim" in op.arguments:
        return "of equal values any may be the one that is indexed"
    if op.name == "bincount" and op.argument("weights", args, kwargs) is not None:
        return "weights are added in any order"
    if op.name in ("scatter_reduce", "scatter_reduce_"):
        reduce = op.argument("reduce", args, kwargs)
        if reduce == "prod" or not torch.are_deterministic_algorithms_enabled():
            return "values of one place are reduced in any order"
    return None


def _why_unless_asked(
    op: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], hosts: Sequence[Any]
) -> str | None:
    if op.name in _DETERMINISTIC_IF_ASKED:
        return "values of one place are added in any order"
    twice = False
    if op.name in ("index_put", "index_put_", "_index_put_impl_"):
        if op.argument("accumulate", args, kwargs):
            return "values of one place are added in any order"
        twice = _repeats_places(hosts[0], hosts[1], hosts[2])
    elif op.name in ("scatter", "scatter_") and "src" in op.arguments:
        twice = _repeats(hosts[2], hosts[1])
    elif op.name in ("index_copy", "index_copy_"):
        twice = _repeats(hosts[2].reshape(-1), 0)
    return "a place is written to twice, and either value may stay" if twice else None


def _is_float(op: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    dtype = op.argument("dtype", args, kwargs) or args[0].dtype
    return bool(dtype.is_floating_point or dtype.is_complex)


def _repeats(index: torch.Tensor, dim: int) -> bool:
    """Whether an index has a value twice along a dimension."""
    ordered = index.sort(dim).values
    return bool((ordered.diff(dim=dim) == 0).any())


def _repeats_places(
    target: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor
) -> bool:
    """Whether different values are put to one place. Masks and one value for all never do."""
    given = [(i, size) for i, size in zip(indices, target.shape, strict=False) if i is not None]
    if values.numel() == 1 or any(i.dtype in (torch.bool, torch.uint8) for i, _ in given):
        return False
    broadcast = torch.broadcast_tensors(*(i for i, _ in given))
    places = torch.zeros_like(broadcast[0])
    for index, (_, size) in zip(broadcast, given, strict=True):
        places = places * size + index % size
    return _repeats(places.reshape(-1), 0)
