"""Names and shapes of the tensors in a file, from its header. Importing this imports no torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

from loading.references import WeightsError

Shape = tuple[int, ...]


def shapes_in(file: Path) -> dict[str, Shape]:
    """The tensors of a safetensors or `.npz` file, by name.

    Raises:
        WeightsError: the file can't be read, or is damaged.
    """
    if file.suffix == ".npz":
        return _shapes_in_npz(file)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            names = opened.keys()
            return {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{file} can't be read ({type(error).__name__}: {error}): replace it"
        ) from None


def _shapes_in_npz(file: Path) -> dict[str, Shape]:
    from numpy.lib import format as npy

    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shapes = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                with archive.open(name) as array:
                    shape, _, _ = readers[npy.read_magic(array)](array)
                shapes[name.removesuffix(".npy")] = tuple(shape)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{file} can't be read ({error}): replace it") from None
    return shapes
