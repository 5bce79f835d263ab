"""safetensors files that are written in pieces are what the library reads."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from loading import tensor_files
from loading.tensor_files import Spec, tensors_in, write_safetensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)
SPECS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=5).filter(
        lambda name: name != "__metadata__"
    ),
    st.builds(Spec, st.sampled_from(list(DTYPES)), SHAPES),
    min_size=1,
    max_size=5,
)


def write_in_pieces(path, specs):
    """Tensors of 0, 1, 2, …, written a few bytes at a time."""
    tensors = {
        name: torch.arange(torch.Size(shape).numel()).to(DTYPES[dtype]).reshape(shape)
        for name, (dtype, shape) in specs.items()
    }
    with pytest.MonkeyPatch.context() as patch, path.open("wb") as file:
        patch.setattr(tensor_files, "WRITTEN_BYTES", 20)
        write_safetensors(file, specs, tensors.__getitem__)
    return tensors


@given(SPECS)
def test_the_library_reads_what_is_written(tmp_path_factory, specs):
    path = tmp_path_factory.getbasetemp() / "pieces.safetensors"
    tensors = write_in_pieces(path, specs)
    found = load_file(path)
    assert set(found) == set(tensors)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert (start + header[name]["data_offsets"][0]) % tensor.element_size() == 0
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert tensors_in(path) == specs
