"""Writing safetensors files a piece at a time.

The library's own writer needs all tensors of a file in memory, which are gigabytes for a layer of
many features. Importing this module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING

from loading.tensor_files import ITEM_BYTES, Spec

if TYPE_CHECKING:
    import torch

# A tensor is written in pieces of about this size.
PIECE_BYTES = 16 << 20
# The data begins at a multiple of this, so that it can be mapped into memory as numbers.
_ALIGNMENT = 8


def write(
    file: IO[bytes], tensors: Mapping[str, Spec], read: Callable[[str], torch.Tensor]
) -> None:
    """Write a file's header, and its tensors one after the other.

    Args:
        tensors: what the file is to hold, by name.
        read: gives a tensor by its name; it is asked for each once.

    Raises:
        OSError: it can't be written.
    """
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
        _write_tensor(file, read(name))


def _write_tensor(file: IO[bytes], tensor: torch.Tensor) -> None:
    import torch

    tensor = torch.atleast_1d(tensor)
    n_rows = max(1, PIECE_BYTES * len(tensor) // max(1, tensor.nbytes))
    for rows in tensor.split(n_rows):
        file.write(rows.contiguous().view(torch.uint8).numpy().data)
