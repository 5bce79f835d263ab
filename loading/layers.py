"""A layer of transcoders: the layouts in which files hold its tensors, and reading them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loading.tensor_files import Spec, read_tensor
from loading.transcoder_folder import Kind

if TYPE_CHECKING:
    import torch

# Tensors that every layer has, and those that some have: a k is that of TopK.
REQUIRED = ("W_enc", "W_dec", "b_enc", "b_dec")
OPTIONAL = ("threshold", "W_skip", "k")


@dataclass(frozen=True)
class TensorLayout:
    """How files hold a layer's tensors: under which names, and which of them transposed.

    In circuit-tracer W_enc is (n_features, d_model), W_skip of a layer (d_model written, d_model
    read), and W_skip of a cross-layer transcoder (d_model read, d_model written).
    """

    stored: Mapping[str, str]  # names in files, by circuit-tracer's; "{}" stands for the layer
    transposed: Collection[str] = ()  # the tensors, by circuit-tracer's names
    can_be_lazy: bool = False  # circuit-tracer can leave encoders and decoders on the disk
    all_decoders: bool = False  # cross-layer: decoders to the layers before are stored too

    def names(self, layer: int) -> dict[str, str]:
        """The stored names in a layer, by circuit-tracer's."""
        return {name: stored.format(layer) for name, stored in self.stored.items()}


CIRCUIT_TRACERS_OWN: dict[Kind, TensorLayout] = {
    "transcoder_set": TensorLayout(
        {name: name for name in (*REQUIRED, "W_skip", "k")}
        | {"threshold": "activation_function.threshold"},
        can_be_lazy=True,
    ),
    # circuit-tracer saves no skip connection in this layout; W_skip is the worker's addition.
    "cross_layer_transcoder": TensorLayout(
        {name: f"{name}_{{}}" for name in (*REQUIRED, "threshold", "W_skip")}, can_be_lazy=True
    ),
}
_GEMMA_SCOPE = TensorLayout(
    {name: name for name in (*REQUIRED, "threshold")}, transposed=("W_enc",)
)
_NAMES_IN_SCOPE_2 = {name: name.lower() for name in (*REQUIRED, "threshold")}
_NAMES_IN_SCOPE_2["W_skip"] = "affine_skip_connection"
_GEMMA_SCOPE_2: dict[Kind, TensorLayout] = {
    "transcoder_set": TensorLayout(_NAMES_IN_SCOPE_2, transposed=("W_enc", "W_skip")),
    "cross_layer_transcoder": TensorLayout(
        _NAMES_IN_SCOPE_2, transposed=("W_enc",), all_decoders=True
    ),
}


def layout_of(kind: Kind, file: Path, names: Collection[str]) -> TensorLayout:
    """The layout of a layer, by its file and the names of its tensors."""
    if file.suffix == ".npz":
        return _GEMMA_SCOPE
    return (_GEMMA_SCOPE_2 if "w_enc" in names else CIRCUIT_TRACERS_OWN)[kind]


def file_of(tensor: str, files: Sequence[Path]) -> Path:
    """Of a layer's files, the one that a tensor is in: where there are two, decoders have one."""
    return files[-1] if tensor == "W_dec" else files[0]


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
