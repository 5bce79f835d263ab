"""Which files a set becomes in circuit-tracer's own layout, and which tensor becomes which.

That layout is the only one that circuit-tracer can leave on the disk. Nothing is computed, so the
numbers stay what they are, in the dtype they are in. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loading import WeightsError
from loading.inspection import Layer, inspect
from loading.safetensors_files import ITEM_BYTES, Spec
from loading.sources import TranscoderFiles
from loading.tensor_files import numbers
from loading.tensor_layouts import CIRCUIT_TRACERS_OWN, file_of

# A tensor is copied in pieces of about this size.
PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class ConvertedFile:
    """A file of the converted set, and the layer that it is made from."""

    name: str
    tensors: Mapping[str, Spec]
    layer: Layer
    of_layer: Mapping[str, str]  # circuit-tracer's name of each tensor, as the layer has it
    skipped: int  # decoders that a cross-layer file has for the layers before its own

    @property
    def original(self) -> Path:
        """The file that it is read from."""
        return self.layer.files[next(iter(self.of_layer.values()))]

    @property
    def n_bytes(self) -> int:
        """Of its tensors; the header is a kilobyte."""
        return sum(spec.n_bytes for spec in self.tensors.values())

    def pieces(self, name: str) -> Iterator[Any]:
        """A tensor's bytes, some rows at a time.

        Raises:
            WeightsError: the original is damaged.
        """
        tensor = self.of_layer[name]
        array = np.atleast_1d(numbers(self.layer.files[tensor], self.layer.stored[tensor]))
        if tensor in self.layer.layout.transposed:
            array = array.T
        elif tensor == "W_dec" and self.skipped:
            array = array[:, self.skipped :]
        rows = max(1, PIECE_BYTES * len(array) // max(1, self.tensors[name].n_bytes))
        for begin in range(0, len(array), rows):
            yield np.ascontiguousarray(array[begin : begin + rows]).reshape(-1).view(np.uint8)


def plan(files: TranscoderFiles) -> list[ConvertedFile]:
    """The files that a set becomes, the originals' headers checked.

    Raises:
        WeightsError: an original is damaged, or isn't in its layout.
    """
    layers = enumerate(inspect(files).layers)
    return [file for number, layer in layers for file in _files(files, number, layer)]


def _files(files: TranscoderFiles, number: int, layer: Layer) -> list[ConvertedFile]:
    becomes = CIRCUIT_TRACERS_OWN[files.kind]
    names, called = becomes.file_names(number), becomes.names(number)
    skipped = number if layer.layout.all_decoders else 0
    made = []
    for name in names:
        inside = [tensor for tensor in layer.specs if file_of(tensor, names) == name]
        specs = {called[tensor]: _spec(layer, tensor, skipped) for tensor in inside}
        of_layer = {called[tensor]: tensor for tensor in inside}
        made.append(ConvertedFile(name, specs, layer, of_layer, skipped))
    return made


def _spec(layer: Layer, tensor: str, skipped: int) -> Spec:
    dtype, shape = layer.specs[tensor].dtype, layer.shape(tensor)
    if dtype not in ITEM_BYTES:
        raise WeightsError(
            f"{layer.files[tensor]} has {layer.stored[tensor]} in {dtype}; one of "
            f"{', '.join(ITEM_BYTES)} is converted"
        )
    if tensor == "W_dec" and skipped:
        shape = (shape[0], shape[1] - skipped, *shape[2:])
    return Spec(dtype, shape)
