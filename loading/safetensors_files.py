"""safetensors files read by their headers, and written a piece at a time.

The library's own writer takes all tensors of a file at once, which are gigabytes in a wide layer.
Importing this module imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

# Bytes of a number, by the names that the format has for what transcoders are stored in.
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Where the data begins, so that it can be mapped into memory as numbers.
_ALIGNMENT = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own bound


class Spec(NamedTuple):
    """A tensor's dtype, as the format names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Stored(NamedTuple):
    """A tensor in a file."""

    spec: Spec
    begin: int  # of its bytes in the file
    end: int


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file, by name.

    Raises:
        OSError: it can't be read.
        ValueError: it is no safetensors file, or not a whole one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if not 0 < header_size < size or header_size > _MAX_HEADER_BYTES:
            raise ValueError("no safetensors header")
        header = json.loads(file.read(header_size))
    start = 8 + header_size
    try:
        tensors = {
            name: Stored(
                Spec(str(tensor["dtype"]), tuple(tensor["shape"])),
                *(start + offset for offset in tensor["data_offsets"]),
            )
            for name, tensor in header.items()
            if name != "__metadata__"
        }
        for name, (spec, begin, end) in tensors.items():
            if spec.dtype in ITEM_BYTES and end - begin != spec.n_bytes:
                raise ValueError(f"{name!r} has {end - begin} bytes instead of {spec.n_bytes}")
        expected = max((tensor.end for tensor in tensors.values()), default=start)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("no safetensors header") from error
    if size != expected:
        raise ValueError(f"{size} bytes instead of {expected}")
    return tensors


def write(
    file: IO[bytes], tensors: Mapping[str, Spec], pieces: Callable[[str], Iterable[Any]]
) -> None:
    """Write a file's header, and its tensors one after the other.

    Args:
        tensors: what the file is to hold.
        pieces: a tensor's bytes by its name, in order, as contiguous buffers.

    Raises:
        OSError: it can't be written.
    """
    begins = dict(_begins(tensors))
    header = {"__metadata__": {"format": "pt"}} | {
        name: {
            "dtype": tensors[name].dtype,
            "shape": tensors[name].shape,
            "data_offsets": [begin, begin + tensors[name].n_bytes],
        }
        for name, begin in begins.items()
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in begins:
        for piece in pieces(name):
            file.write(piece)


def _begins(tensors: Mapping[str, Spec]) -> Iterator[tuple[str, int]]:
    """Where each tensor begins: those of wide numbers first, so that all are aligned."""
    begin = 0
    for name in sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name)):
        yield name, begin
        begin += tensors[name].n_bytes


def holds(path: Path, tensors: Mapping[str, Spec]) -> bool:
    """Whether a file is there, whole, with these tensors and no others."""
    try:
        return {name: stored.spec for name, stored in read_header(path).items()} == dict(tensors)
    except (OSError, ValueError):
        return False
