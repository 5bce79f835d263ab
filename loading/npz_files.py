"""Arrays of `.npz` files, a piece at a time and straight into the dtype and onto the device wanted.

`numpy.load` puts an array together in memory before anything can be done with it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy

# Bytes that are read, checked and converted at once, so that they stay in a CPU's cache meanwhile.
_PIECE = 1 << 20
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_arrays(
    path: Path, names: Iterable[str], *, device: torch.device, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """The arrays of those names, as tensors. Each byte is read once, and checked.

    Raises:
        OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile: the file is
            damaged, lacks one, or holds something else than numbers.
    """
    with zipfile.ZipFile(path) as archive:
        for name in names:
            with archive.open(f"{name}.npy") as file:
                shape, is_fortran, stored = _HEADERS[npy.read_magic(file)](file)
                # The other order is that of the transposed array.
                tensor = torch.empty(
                    shape[::-1] if is_fortran else shape, device=device, dtype=dtype
                )
                _fill(tensor.view(-1), file, stored)
            yield tensor.permute(*reversed(range(len(shape)))) if is_fortran else tensor


def _fill(flat: torch.Tensor, file: Any, stored: Any) -> None:
    native = stored.newbyteorder("=")
    buffer = np.empty(_PIECE // stored.itemsize, stored)
    begin = 0
    while begin < len(flat):
        part = buffer[: len(flat) - begin]
        if file.readinto(part.view(np.uint8)) < part.nbytes:
            raise ValueError(f"fewer than {len(flat)} numbers")
        piece = torch.from_numpy(part.astype(native, copy=False))
        flat[begin : begin + len(part)].copy_(piece.to(flat.device))
        begin += len(part)
    if file.read(1):  # the end is where the checksum is compared
        raise ValueError(f"more than {len(flat)} numbers")
