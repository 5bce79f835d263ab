"""Files of tensors: what safetensors and `.npz` files hold, reading it, and writing safetensors.

Importing this module imports no torch. Reading a tensor does, reading headers does not.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open

from loading import WeightsError
from loading.bounds import ARRAY_HEADER_BYTES, SAFETENSORS_HEADER_BYTES

if TYPE_CHECKING:
    import torch

# Bytes of a number, by safetensors' names for the dtypes in which transcoders are stored.
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

# Bytes of an array that are read, checked and converted at once: they fit into a CPU's cache.
_PIECE_BYTES = 1 << 20
# A tensor is written in pieces of about this size.
WRITTEN_BYTES = 16 << 20
# The data of a safetensors file begins at a multiple of this, so that it can be mapped as numbers.
_ALIGNMENT = 8
_NUMPY_DTYPES = {"f8": "F64", "f4": "F32", "f2": "F16"}
_NPY_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_MOST_DEFLATED = 1100  # bytes that one of deflate's can stand for, and some
_DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, TypeError, EOFError, KeyError),
    *(SafetensorError, zipfile.BadZipFile, zlib.error),
)


class Spec(NamedTuple):
    """A tensor's dtype, by safetensors' name for it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def tensors_in(path: Path) -> dict[str, Spec]:
    """The tensors that a file holds, by name. Only headers are read.

    Raises:
        WeightsError: the file can't be read, or is damaged.
    """
    with damage_named(path, RuntimeError):  # zipfile's for archives that numpy doesn't write
        if path.suffix == ".npz":
            return dict(_arrays_in(path))
        _check_header(path)
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Spec(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}


def read_tensor(
    path: Path,
    name: str,
    part: tuple[slice, ...] = (),
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A tensor of a file, or a part of it, read once.

    On a CPU, a tensor of a safetensors file that has the dtype already is the file's own pages.

    Args:
        dtype: None keeps the dtype in which it is stored.

    Raises:
        WeightsError: the file can't be read, is damaged, or lacks the tensor.
    """
    with damage_named(path):
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as array:
                return _read_array(array, device, dtype)[part]
        _check_header(path)
        with safe_open(path, framework="pt", device=device) as file:
            tensor: torch.Tensor = file.get_slice(name)[part] if part else file.get_tensor(name)
            return tensor.to(dtype=dtype)


def write_safetensors(
    file: IO[bytes], tensors: Mapping[str, Spec], read: Callable[[str], torch.Tensor]
) -> None:
    """Write a safetensors file, a piece of a tensor at a time.

    The library's own writer needs all tensors of a file in memory, which are gigabytes for a layer
    of many features.

    Args:
        tensors: what the file is to hold, by name.
        read: gives a tensor by its name; it is asked for each once.

    Raises:
        OSError: it can't be written.
    """
    import torch

    # Tensors of wide numbers come first, so that each begins at a multiple of its number's width.
    names = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].n_bytes
        header[name] = {**tensors[name]._asdict(), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        tensor = torch.atleast_1d(read(name))
        n_rows = max(1, WRITTEN_BYTES * len(tensor) // max(1, tensor.nbytes))
        for rows in tensor.split(n_rows):
            file.write(rows.contiguous().view(torch.uint8).numpy().data)


def _refuse_pipes(path: Path) -> None:
    """Raise ValueError for what is there and is no file, such as a pipe, which opening waits on."""
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")


def _check_header(path: Path) -> None:
    """Raise ValueError for a header larger than any model's; the library takes 100 MB of it."""
    _refuse_pipes(path)
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > SAFETENSORS_HEADER_BYTES:
        raise ValueError(
            f"header too large: {size} bytes, and {SAFETENSORS_HEADER_BYTES} are the most"
        )


def _arrays_in(path: Path) -> Iterator[tuple[str, Spec]]:
    _refuse_pipes(path)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as file:
                shape, _, dtype = _array_header(file)
            _check_size(info, math.prod(shape) * dtype.itemsize)
            named = _NUMPY_DTYPES.get(dtype.newbyteorder("=").str[1:], str(dtype))
            yield info.filename.removesuffix(".npy"), Spec(named, shape)


def _check_size(info: zipfile.ZipInfo, n_bytes: int) -> None:
    """Raise ValueError unless an array's file in an archive can hold as many bytes."""
    if not n_bytes <= info.file_size <= n_bytes + ARRAY_HEADER_BYTES:
        raise ValueError(f"{info.filename} has {info.file_size} bytes, its shape {n_bytes}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed in a way that numpy doesn't write")
    if info.file_size > _MOST_DEFLATED * info.compress_size + ARRAY_HEADER_BYTES:
        raise ValueError(f"{info.filename} can't have {info.file_size} bytes")


class _HeaderOnly:
    """A file of which no more is read at once than the header of an array has."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= ARRAY_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)


def _array_header(file: IO[bytes]) -> Any:
    """An array's shape, whether it is in Fortran's order, and its dtype.

    numpy reads as many bytes of a header as the file says, up to 4 GB, before it checks them.
    """
    header = _HeaderOnly(file)
    return _NPY_HEADERS[npy.read_magic(header)](header)


def _read_array(file: Any, device: str, dtype: torch.dtype | None) -> torch.Tensor:
    """Read an array a piece at a time: numpy would put it together in memory first."""
    import torch

    shape, is_fortran, stored = _array_header(file)
    native = stored.newbyteorder("=")
    dtype = dtype or torch.from_numpy(np.empty(0, native)).dtype
    # An array in Fortran's order is stored as its transpose is in C's order.
    tensor = torch.empty(shape[::-1] if is_fortran else shape, device=device, dtype=dtype)
    flat = tensor.view(-1)
    buffer = np.empty(_PIECE_BYTES // stored.itemsize, stored)
    for begin in range(0, len(flat), len(buffer)):
        part = buffer[: len(flat) - begin]
        if file.readinto(part.view(np.uint8)) < part.nbytes:
            raise ValueError(f"fewer than {len(flat)} numbers")
        piece = torch.from_numpy(part.astype(native, copy=False))
        flat[begin : begin + len(part)].copy_(piece.to(device))
    if file.read(1):  # at the end of the data zipfile compares the checksum
        raise ValueError(f"more than {len(flat)} numbers")
    return tensor.permute(*reversed(range(len(shape)))) if is_fortran else tensor


@contextmanager
def damage_named(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Raise WeightsError that names the file, for errors that mean that it is damaged."""
    try:
        yield
    except _DAMAGE + more as error:
        if isinstance(error, OSError):
            raise WeightsError(f"{path} can't be read: {error.strerror or error}") from error
        raise WeightsError(
            f"{path} is damaged: replace it ({type(error).__name__}: {error})"
        ) from error
