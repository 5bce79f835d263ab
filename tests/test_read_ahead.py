"""Weights are read ahead once and whole, but for what nobody will read soon."""

import contextlib
import json
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from loading.read_ahead import memory_bytes, read_ahead, wanted_ranges
from model_loader import read_weights_ahead
from tests.demo_worker import ROOT, demo_settings


@pytest.fixture
def transcoder(tmp_path):
    path = tmp_path / "layer_0.safetensors"
    tensors = {"W_dec": torch.ones(7, 5), "W_enc": torch.ones(6, 5), "b_enc": torch.ones(3)}
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def bytes_asked_for(caplog, files, skip=()):
    """What the log says the system was asked for, in bytes."""
    caplog.set_level(logging.DEBUG, logger="loading.read_ahead")
    caplog.clear()
    thread = read_ahead(files, skip)
    thread.join(timeout=60)
    assert not thread.is_alive()
    return round(caplog.records[-1].args[0] * 1e6)


def test_files_are_read_whole(caplog, transcoder):
    size = transcoder.stat().st_size
    assert bytes_asked_for(caplog, [transcoder, transcoder]) == 2 * size


def test_tensors_to_be_skipped_are_not_read(caplog, transcoder):
    assert bytes_asked_for(caplog, [transcoder], ["W_dec"]) == 4 * (6 * 5 + 3)
    assert bytes_asked_for(caplog, [transcoder], ["W_dec", "W_enc"]) == 4 * 3


def test_ranges_are_where_the_tensors_are(transcoder):
    content = transcoder.read_bytes()
    found = b"".join(content[begin:end] for begin, end in wanted_ranges(transcoder, ("W_",)))
    with safe_open(transcoder, "pt") as file:
        assert found == file.get_tensor("b_enc").numpy().tobytes()


def test_a_container_s_limit_counts_where_it_is_below_the_machine_s_memory(tmp_path):
    machine = memory_bytes([])
    limit = tmp_path / "memory.max"
    assert memory_bytes([limit]) == machine
    for text, expected in (("1000000\n", 10**6), ("max\n", machine), (str(2**63 - 4096), machine)):
        limit.write_text(text)
        assert memory_bytes([tmp_path / "none", limit]) == expected


def test_a_file_that_cannot_be_read_is_passed_over(caplog, transcoder, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\xff" * 20)
    files = [tmp_path / "missing.safetensors", damaged, tmp_path, transcoder]
    assert bytes_asked_for(caplog, files, ["W_dec"]) == 4 * (6 * 5 + 3)


HEADERS = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["W_enc", "W_dec", "data_offsets"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def with_header(value):
    header = json.dumps(value).encode()
    return len(header).to_bytes(8, "little") + header + bytes(100)


@given(st.binary(max_size=40) | st.builds(with_header, HEADERS))
def test_whatever_a_file_holds_only_a_value_error_comes_of_it(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        for begin, end in wanted_ranges(path, ("W_dec",)):
            assert isinstance(begin + end, int)


def test_a_worker_reads_its_model_and_its_transcoders_ahead(monkeypatch):
    started = []
    monkeypatch.setattr(
        "model_loader.read_ahead", lambda files, skip: started.append((files, skip))
    )
    read_weights_ahead(demo_settings())
    read_weights_ahead(demo_settings(transcoder_set="some/thing"))  # refused later, by `load`
    (files, skip), *_ = started
    names = [str(file.relative_to(ROOT)) for file in files]
    assert names == [
        *(f"demo/transcoders/layer_{layer}.safetensors" for layer in range(4)),
        "demo/model/model.safetensors",
    ]
    assert skip == ["W_dec"]


def test_weights_that_can_not_be_looked_for_are_left_to_load(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": []}')
    monkeypatch.setattr("model_loader.read_ahead", lambda *_: pytest.fail("there is nothing"))
    read_weights_ahead(demo_settings(model_id=str(tmp_path), transcoder_set="some/thing"))
