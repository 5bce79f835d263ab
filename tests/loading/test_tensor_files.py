"""Tensors are those that were saved, never in memory in another dtype too; damage is named."""

import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.torch import save_file

from loading import WeightsError
from loading.tensor_files import _PIECE_BYTES, read_tensor, tensors_in

NUMBERS = st.sampled_from(["<f2", "<f4", ">f4", "<f8", "<i4"])


def read(path: Path, name: str = "a", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return read_tensor(path, name, dtype=dtype)


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
    array = np.arange(5 * _PIECE_BYTES // 4 + 100, dtype=np.float32)
    np.savez(tmp_path / "large.npz", a=array)
    return tmp_path / "large.npz"


def test_an_array_of_many_pieces_is_whole(large: Path) -> None:
    assert torch.equal(read(large), torch.arange(5 * _PIECE_BYTES // 4 + 100, dtype=torch.float32))


def test_no_more_than_a_few_pieces_are_in_memory_beside_the_tensor(large: Path) -> None:
    tracemalloc.start()  # counts what Python and numpy hold, not torch's tensors
    try:
        read(large, dtype=torch.bfloat16)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4.5 * _PIECE_BYTES


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
    with pytest.raises(WeightsError, match=r"large\.npz is damaged.*CRC"):
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
    with pytest.raises(WeightsError, match="than 8 numbers"):
        read(tmp_path / "a.npz")


def test_an_array_that_is_not_there_and_one_of_no_numbers_are_errors(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(WeightsError, match=r"b\.npy"):
        read(tmp_path / "a.npz", "b")
    with pytest.raises(WeightsError, match=r"a\.npz is damaged"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_array_s_own_dtype_is_kept_where_none_is_asked_for(dtype: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(3, np.float16))
    save_file({"a": torch.ones(3, dtype=torch.float16)}, tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        assert read_tensor(path, "a", dtype=dtype).dtype == (dtype or torch.float16)
        assert tensors_in(path)["a"] == ("F16", (3,))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2, 3)}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"0", lambda b: b[:4]])
def test_a_safetensors_file_that_is_not_whole_is_named(change: Any, small: Path) -> None:
    small.write_bytes(change(small.read_bytes()))
    with pytest.raises(WeightsError, match=r"x\.safetensors is damaged: replace it"):
        tensors_in(small)
    with pytest.raises(WeightsError, match=r"x\.safetensors is damaged: replace it"):
        read_tensor(small, "a")


def test_a_shape_that_is_not_that_of_the_bytes_is_refused(small: Path) -> None:
    text = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    small.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(WeightsError, match=r"is damaged: .*invalid shape"):
        tensors_in(small)


def test_a_header_that_is_larger_than_the_format_allows_is_not_read(small: Path) -> None:
    with small.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # takes no room
    with pytest.raises(WeightsError, match="header too large"):
        tensors_in(small)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("none.safetensors", "none.npz"):
        with pytest.raises(WeightsError, match=f"{name} can't be read: No such file"):
            tensors_in(tmp_path / name)
