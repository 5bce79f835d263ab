"""Transcoders in the layouts that Google publishes, as the files they become when converted.

GemmaScope's `.npz` files and Gemma Scope 2's safetensors have encoders the other way round, and
other names, than circuit-tracer's own layout, the only one that it can leave on the disk. Here is
which tensor becomes which; nothing is computed, so the numbers stay what they are, in the dtype
they are in. Importing this module imports no torch.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from loading.references import WeightsError
from loading.safetensors_files import ITEM_BYTES, Spec, read_header
from loading.sources import TranscoderFiles

# A tensor is copied in pieces of about this size.
PIECE_BYTES = 16 << 20

_NUMPY_DTYPES = {"f8": "F64", "f4": "F32", "f2": "F16"}
_DAMAGES = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class _From(NamedTuple):
    """Where a tensor of the converted layout comes from."""

    name: str
    transposed: bool = False
    optional: bool = False


_SCOPE = {
    "W_enc": _From("W_enc", transposed=True),
    "W_dec": _From("W_dec"),
    "b_enc": _From("b_enc"),
    "b_dec": _From("b_dec"),
    "activation_function.threshold": _From("threshold"),
}
_SCOPE_2 = {
    "W_enc": _From("w_enc", transposed=True),
    "W_dec": _From("w_dec"),
    "b_enc": _From("b_enc"),
    "b_dec": _From("b_dec"),
    "activation_function.threshold": _From("threshold"),
    "W_skip": _From("affine_skip_connection", transposed=True, optional=True),
}
_CROSS_LAYER_ENCODER = {
    "W_enc": _From("w_enc", transposed=True),
    "b_enc": _From("b_enc"),
    "b_dec": _From("b_dec"),
    "threshold": _From("threshold"),
    # circuit-tracer has no name for it in a file; `loading.transcoders` reads it.
    "W_skip": _From("affine_skip_connection", optional=True),
}
_CROSS_LAYER_DECODER = {"W_dec": _From("w_dec")}


@dataclass(frozen=True)
class ConvertedFile:
    """A file of the converted layout, and what it is made from."""

    name: str
    original: Path
    tensors: Mapping[str, Spec]
    _origins: Mapping[str, _From]
    _first: int = 0  # of the layers that a cross-layer feature writes to

    @property
    def n_bytes(self) -> int:
        """Of its tensors; the header is a kilobyte."""
        return sum(spec.n_bytes for spec in self.tensors.values())

    def pieces(self, name: str) -> Iterator[Any]:
        """A tensor's bytes, some rows at a time.

        Raises:
            WeightsError: the original is damaged.
        """
        origin = self._origins[name]
        try:
            array = np.atleast_1d(_tensor(self.original, origin.name))
        except _DAMAGES as error:
            raise _damaged(self.original, error) from error
        n_rows = len(array.T if origin.transposed else array)
        rows = max(1, PIECE_BYTES * n_rows // max(1, self.tensors[name].n_bytes))
        for begin in range(0, n_rows, rows):
            if origin.transposed:
                piece = array[:, begin : begin + rows].T
            else:
                piece = array[begin : begin + rows]
                piece = piece[:, self._first :] if self._first else piece
            yield np.ascontiguousarray(piece).reshape(-1).view(np.uint8)


def needs_conversion(files: TranscoderFiles) -> bool:
    """Whether a set is in a layout that circuit-tracer reads whole, whatever is asked for.

    Raises:
        WeightsError: its first file can't be read.
    """
    if any(path.suffix == ".npz" for path in files.layers):
        return True
    return bool(files.layers) and "w_enc" in _specs(files.layers[0])


def layers_of(files: TranscoderFiles) -> list[Path]:
    """A set's files, one a layer."""
    layers = list(files.layers)
    # circuit-tracer leaves the last of a cross-layer list out, so some name it twice.
    if files.kind == "cross_layer_transcoder" and layers[-1:] == layers[-2:-1]:
        return layers[:-1]
    return layers


def plan(files: TranscoderFiles) -> list[ConvertedFile]:
    """The files that a set becomes, the originals' headers checked.

    Raises:
        WeightsError: an original is damaged, or isn't in its layout.
    """
    layers = layers_of(files)
    widths = None
    planned = []
    for layer, path in enumerate(layers):
        if files.kind == "cross_layer_transcoder":
            made, found = _cross_layer_files(path, layer, len(layers))
        else:
            made, found = _layer_file(path, layer)
        widths = widths or found
        if found != widths:
            raise WeightsError(
                f"{path} has {found.features} features of width {found.model}, {layers[0].name} "
                f"has {widths.features} of {widths.model}: list files of one set"
            )
        planned += made
    return planned


class _Widths(NamedTuple):
    features: int
    model: int


def _layer_file(path: Path, layer: int) -> tuple[list[ConvertedFile], _Widths]:
    there = _specs(path)
    if path.suffix == ".npz":
        origins = _SCOPE
        if unknown := sorted(set(there) - {origin.name for origin in origins.values()}):
            raise WeightsError(f"{path} has {unknown[0]!r}, which no transcoder of its layout has")
    elif "W_enc" in there:  # one of a mixed list is in circuit-tracer's own layout
        origins = {name: _From(name) for name in there}
    else:
        origins = _SCOPE_2
    widths = _widths(path, there)
    shapes = _shapes(widths) | {"W_dec": (widths.features, widths.model)}
    file = _converted_file(f"layer_{layer}.safetensors", path, there, origins, shapes)
    return [file], widths


def _cross_layer_files(
    path: Path, layer: int, n_layers: int
) -> tuple[list[ConvertedFile], _Widths]:
    there = _specs(path)
    widths = _widths(path, there)
    shapes = _shapes(widths) | {"W_dec": (widths.features, n_layers, widths.model)}
    made = []
    for part, origins in (("enc", _CROSS_LAYER_ENCODER), ("dec", _CROSS_LAYER_DECODER)):
        first = layer if part == "dec" else 0
        name = f"W_{part}_{layer}.safetensors"
        made.append(_converted_file(name, path, there, origins, shapes, layer, first))
    return made, widths


def _converted_file(
    name: str,
    path: Path,
    there: Mapping[str, Spec],
    origins: Mapping[str, _From],
    shapes: Mapping[str, tuple[int, ...]],
    layer: int | None = None,
    first: int = 0,
) -> ConvertedFile:
    tensors, used = {}, {}
    for tensor, origin in origins.items():
        if origin.name not in there and origin.optional:
            continue
        dtype, shape = _one(path, there, origin.name)
        full = shapes.get(tensor, shape)
        expected = full[::-1] if origin.transposed else full
        if shape != expected:
            raise WeightsError(
                f"{path}: {origin.name!r} is {shape} and should be {expected}, by its biases and "
                "the number of layers: replace it"
            )
        kept = (full[0], full[1] - first, *full[2:]) if first else full
        called = tensor if layer is None else f"{tensor}_{layer}"
        tensors[called], used[called] = Spec(dtype, kept), origin
    return ConvertedFile(name, path, tensors, used, first)


def _shapes(widths: _Widths) -> dict[str, tuple[int, ...]]:
    features, model = widths
    return {
        "W_enc": (features, model),
        "b_enc": (features,),
        "b_dec": (model,),
        "threshold": (features,),
        "activation_function.threshold": (features,),
        "W_skip": (model, model),
    }


def _widths(path: Path, there: Mapping[str, Spec]) -> _Widths:
    sizes = []
    for name in ("b_enc", "b_dec"):
        shape = _one(path, there, name).shape
        if len(shape) != 1:
            raise WeightsError(f"{path}: {name!r} is {shape} and should be a vector: replace it")
        sizes.append(shape[0])
    return _Widths(*sizes)


def _one(path: Path, there: Mapping[str, Spec], name: str) -> Spec:
    if name not in there:
        raise WeightsError(f"{path} has no {name!r}: it is no transcoder of its set's layout")
    spec = there[name]
    if spec.dtype not in ITEM_BYTES:
        raise WeightsError(
            f"{path}: {name!r} is in {spec.dtype}; one of {', '.join(ITEM_BYTES)} is converted"
        )
    return spec


def _specs(path: Path) -> dict[str, Spec]:
    """What a file holds, by its headers alone."""
    try:
        if path.suffix == ".npz":
            return _npz_specs(path)
        return {name: stored.spec for name, stored in read_header(path).items()}
    except _DAMAGES as error:
        raise _damaged(path, error) from error


def _npz_specs(path: Path) -> dict[str, Spec]:
    specs = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(file)
            named = _NUMPY_DTYPES.get(dtype.newbyteorder("=").str[1:], str(dtype))
            specs[name.removesuffix(".npy")] = Spec(named, shape)
    return specs


def _tensor(path: Path, name: str) -> Any:
    """A tensor's numbers, as unsigned integers of their width: numpy knows no bfloat16."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            array = arrays[name]
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return little.view(f"<u{array.dtype.itemsize}")
    (dtype, shape), begin, _ = read_header(path)[name]
    width = f"<u{ITEM_BYTES[dtype]}"
    return np.memmap(path, dtype=width, mode="r", offset=begin, shape=shape)


def _damaged(path: Path, error: BaseException) -> WeightsError:
    if isinstance(error, OSError) and error.strerror:
        return WeightsError(f"{path} can't be read: {error.strerror}")
    return WeightsError(
        f"{path} is damaged: remove it, and get it again ({type(error).__name__}: {error})"
    )
