"""One layer of a set of transcoders: its tensors as files hold them and as circuit-tracer does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loading.tensor_files import Spec, read_tensor
from loading.tensor_layouts import TensorLayout

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    path: Path
    name: str  # in the file
    spec: Spec

    def __str__(self) -> str:
        return f"{self.path} has {self.name} of {sides(self.spec.shape)}"


@dataclass(frozen=True)
class Layer:
    """The tensors of one layer, by circuit-tracer's names."""

    number: int
    layout: TensorLayout
    stored: Mapping[str, StoredTensor]

    def spec(self, name: str) -> Spec:
        """A tensor's dtype as stored, and its shape in circuit-tracer."""
        dtype, shape = self.stored[name].spec
        if name in self.layout.transposed:
            shape = shape[::-1]
        if self._part(name):
            shape = (shape[0], shape[1] - self.number, *shape[2:])
        return Spec(dtype, shape)

    def read(
        self, name: str, *, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A tensor in circuit-tracer's shape, with the values that are stored.

        One that is stored transposed is a view, not contiguous.

        Args:
            dtype: None keeps the dtype in which it is stored.

        Raises:
            WeightsError: the file can't be read, or is damaged.
        """
        stored = self.stored[name]
        tensor = read_tensor(stored.path, stored.name, self._part(name), device=device, dtype=dtype)
        return tensor.T if name in self.layout.transposed else tensor

    def _part(self, name: str) -> tuple[slice, ...]:
        """The decoders that circuit-tracer has of those stored: not to the layers before."""
        if name == "W_dec" and self.layout.all_decoders:
            return (slice(None), slice(self.number, None))
        return ()


def sides(shape: tuple[int, ...]) -> str:
    """A shape, for messages."""
    return " x ".join(map(str, shape)) or "one number"
