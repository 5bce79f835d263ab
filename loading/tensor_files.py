"""Tensors in safetensors and `.npz` files alike: which there are, by headers, and their numbers.

Importing this module imports no torch.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from loading import WeightsError
from loading.safetensors_files import ITEM_BYTES, Spec, read_header

_NUMPY_DTYPES = {"f8": "F64", "f4": "F32", "f2": "F16"}
_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_DAMAGES = (
    *(OSError, ValueError, EOFError, KeyError),
    *(zipfile.BadZipFile, zlib.error, RuntimeError),  # of files that are no `.npz` of numpy's
)


def tensors_in(path: Path) -> dict[str, Spec]:
    """The tensors that a file holds, by name. Headers alone are read.

    Raises:
        WeightsError: the file can't be read, or is damaged.
    """
    try:
        if path.suffix == ".npz":
            return _tensors_in_npz(path)
        return {name: stored.spec for name, stored in read_header(path).items()}
    except _DAMAGES as error:
        raise _unreadable(path, error) from error


def numbers(path: Path, name: str) -> Any:
    """A tensor of floats as an array of unsigned integers of their width: numpy has no bfloat16.

    Raises:
        WeightsError: the file can't be read, or is damaged.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                array = arrays[name]
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            return little.view(f"<u{array.dtype.itemsize}")
        (dtype, shape), begin, _ = read_header(path)[name]
        width = f"<u{ITEM_BYTES[dtype]}"
        return np.memmap(path, dtype=width, mode="r", offset=begin, shape=shape)
    except _DAMAGES as error:
        raise _unreadable(path, error) from error


def _tensors_in_npz(path: Path) -> dict[str, Spec]:
    specs = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                shape, _, dtype = _HEADER_READERS[npy.read_magic(file)](file)
            named = _NUMPY_DTYPES.get(dtype.newbyteorder("=").str[1:], str(dtype))
            specs[name.removesuffix(".npy")] = Spec(named, shape)
    return specs


def _unreadable(path: Path, error: Exception) -> WeightsError:
    if isinstance(error, OSError) and error.strerror:
        return WeightsError(f"{path} can't be read: {error.strerror}")
    return WeightsError(f"{path} is damaged: replace it ({type(error).__name__}: {error})")
