"""A tensor that says it is on `cuda:0` and keeps its numbers in a tensor on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch

if TYPE_CHECKING:
    from benchmarks.emulated_cuda.device import EmulatedCuda

DEVICE = torch.device("cuda:0")


class DeviceTensor(torch.Tensor):
    """What every operation on the device takes and gives.

    torch's own dispatcher, autograd and composite operations see a CUDA tensor. Below them
    `__torch_dispatch__` hands the operation to the emulated device.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _host: torch.Tensor
    _emulation: EmulatedCuda
    _allocations: tuple[object, ...]  # kept, so that their bytes count as allocated

    @staticmethod
    def __new__(cls, host: torch.Tensor, emulation: EmulatedCuda) -> DeviceTensor:
        layout: dict[str, Any] = {"layout": host.layout}
        if host.layout == torch.strided:
            layout = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        allocations = emulation.memory.allocation_of(host)
        tensor: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls, host.size(), dtype=host.dtype, device=DEVICE, **layout
        )
        tensor._host, tensor._emulation, tensor._allocations = host, emulation, allocations
        return tensor

    def __init__(self, *_: object) -> None:
        """Made by `__new__`."""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        from benchmarks.emulated_cuda.device import running

        return running().dispatch(func, args, kwargs or {})

    def take_host_shape(self) -> None:
        """Take over the shape that an operation in place has given to the host's tensor."""
        host = self._host
        reshaped = DeviceTensor(host, self._emulation)
        self._allocations = reshaped._allocations
        if (self.size(), self.stride()) != (host.size(), host.stride()):
            torch.Tensor.data.__set__(self, reshaped)  # type: ignore[attr-defined]

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, new: torch.Tensor) -> None:
        if not isinstance(new, DeviceTensor):
            raise RuntimeError(
                "Attempted to call `variable.set_data(tensor)`, but `variable` and `tensor` have "
                "incompatible tensor type."
            )
        torch.Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self._host, self._allocations = new._host, new._allocations

    def numpy(self, **_: object) -> NoReturn:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    def tolist(self) -> Any:
        self._emulation.count_read("tolist")
        return self._host.tolist()

    def data_ptr(self) -> int:
        return self._host.data_ptr()

    def untyped_storage(self) -> Any:
        """The host's storage: its size and address are the device's, its device is not."""
        return self._host.untyped_storage()

    def backward(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError(
            "there are no gradients on the emulated CUDA device: torch's autograd asks the driver "
            "for the streams of a CUDA tensor's gradient"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        self._emulation.count_read("repr")
        return f"{repr(self._host)[:-1]}, device='{DEVICE}')"
