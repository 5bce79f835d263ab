"""safetensors files written in pieces are what the library reads, and half ones are told."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from loading.safetensors_files import Spec, holds, read_header, write

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
SPECS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=5).filter(
        lambda name: name != "__metadata__"
    ),
    st.builds(Spec, st.sampled_from(list(DTYPES)), SHAPES),
    min_size=1,
    max_size=5,
)


def write_in_pieces(path, specs):
    """Tensors of 0, 1, 2, …, written a row at a time."""
    tensors = {
        name: torch.arange(torch.Size(shape).numel()).to(DTYPES[dtype]).reshape(shape)
        for name, (dtype, shape) in specs.items()
    }

    def rows(name):
        return (row.contiguous().view(torch.uint8).numpy() for row in tensors[name][:, None])

    with path.open("wb") as file:
        write(file, specs, rows)
    return tensors


@given(SPECS)
def test_the_library_reads_what_is_written(tmp_path_factory, specs):
    path = tmp_path_factory.getbasetemp() / "pieces.safetensors"
    tensors = write_in_pieces(path, specs)
    found = load_file(path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert read_header(path)[name].begin % tensor.element_size() == 0
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert holds(path, specs)
    assert not holds(path, {**specs, "one more": Spec("F32", (1,))})


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"0", lambda b: b[:4]])
def test_a_file_that_is_not_whole_is_told(tmp_path, change):
    path = tmp_path / "x.safetensors"
    specs = {"a": Spec("F32", (2, 3))}
    write_in_pieces(path, specs)
    path.write_bytes(change(path.read_bytes()))
    assert not holds(path, specs)
    with pytest.raises(ValueError, match=r"instead of|header"):
        read_header(path)


def test_a_shape_that_is_not_that_of_the_bytes_is_told(tmp_path):
    path = tmp_path / "x.safetensors"
    text = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match="'a' has 8 bytes instead of 12"):
        read_header(path)


def test_a_header_that_is_larger_than_the_format_allows_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # takes no room
    with pytest.raises(ValueError, match="no safetensors header"):
        read_header(path)
