"""Arrays of `.npz` files are those that numpy saved, and never in memory in another dtype too."""

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from loading.npz_files import _PIECE, read_arrays

CPU = torch.device("cpu")
NUMBERS = st.sampled_from(["<f2", "<f4", ">f4", "<f8", "<i4"])


def read(path: Path, name: str = "a", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    (tensor,) = read_arrays(path, [name], device=CPU, dtype=dtype)
    return tensor


@settings(deadline=None)
@given(
    array=NUMBERS.flatmap(
        lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_side=9))
    ),
    in_fortran_s_order=st.booleans(),
    compressed=st.booleans(),
)
def test_whatever_numbers_numpy_saved_are_read(
    array: Any, in_fortran_s_order: bool, compressed: bool, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npz"
    laid_out = np.asfortranarray(array) if in_fortran_s_order and array.ndim else array
    (np.savez_compressed if compressed else np.savez)(path, a=laid_out)
    expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).to(torch.float32)
    torch.testing.assert_close(read(path), expected, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """An array of several pieces, the last one short."""
    array = np.arange(5 * _PIECE // 4 + 100, dtype=np.float32)
    np.savez(tmp_path / "large.npz", a=array)
    return tmp_path / "large.npz"


def test_an_array_of_many_pieces_is_whole(large: Path) -> None:
    assert torch.equal(read(large), torch.arange(5 * _PIECE // 4 + 100, dtype=torch.float32))


def test_no_more_than_a_few_pieces_are_in_memory_beside_the_tensor(large: Path) -> None:
    tracemalloc.start()  # counts what Python and numpy hold, not torch's tensors
    try:
        read(large, dtype=torch.bfloat16)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4.5 * _PIECE


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts what is read")
def test_each_byte_is_read_once(large: Path) -> None:
    def bytes_read() -> int:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["rchar"])

    read(large)  # what is imported on the way
    before = bytes_read()
    read(large)
    assert large.stat().st_size <= bytes_read() - before < 1.02 * large.stat().st_size


def test_a_flipped_bit_is_found(large: Path) -> None:
    content = bytearray(large.read_bytes())
    content[-1000] ^= 1
    large.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        read(large)


@pytest.mark.parametrize("shape", [(7,), (9,)])
def test_more_or_fewer_numbers_than_the_header_says_are_an_error(
    shape: tuple[int], tmp_path: Path
) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (8,)}"
    header += b" " * (117 - len(header)) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content + bytes(4 * shape[0]))
    with pytest.raises(ValueError, match="than 8 numbers"):
        read(tmp_path / "a.npz")


def test_an_array_that_is_not_there_and_one_of_no_numbers_are_errors(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(KeyError, match=r"b\.npy"):
        read(tmp_path / "a.npz", "b")
    with pytest.raises((TypeError, ValueError)):
        read(tmp_path / "a.npz")
