"""Weights are read ahead once and whole, what stays on the disk after all else."""

import contextlib
import errno
import json
import logging
import os
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from loading.read_ahead import memory_bytes, ranges_in, read_ahead
from model_loader import read_weights_ahead
from tests.support.demo_worker import ROOT, demo_settings

TENSORS = {
    "W_dec": torch.full((7, 5), 1.0),
    "W_enc": torch.full((6, 5), 2.0),
    "b_enc": torch.full((3,), 3.0),
}


@pytest.fixture
def transcoder(tmp_path):
    path = tmp_path / "layer_0.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def bytes_read(caplog, files, later=()):
    """What the log says was read, in bytes."""
    caplog.set_level(logging.DEBUG, logger="loading.read_ahead")
    caplog.clear()
    thread = read_ahead(files, later)
    thread.join(timeout=60)
    assert not thread.is_alive()
    return round(caplog.records[-1].args[0] * 1e6)


def test_files_are_read_whole(caplog, transcoder):
    size = transcoder.stat().st_size
    assert bytes_read(caplog, [transcoder, transcoder]) == 2 * size


def test_what_stays_on_the_disk_comes_last_where_all_files_fit(caplog, transcoder, monkeypatch):
    asked = []
    read = os.preadv

    def noted(file, buffers, begin):
        asked.append((begin, len(buffers[0])))
        return read(file, buffers, begin)

    monkeypatch.setattr("os.preadv", noted)
    assert bytes_read(caplog, [transcoder], ["W_dec"]) == 4 * (7 * 5 + 6 * 5 + 3)
    (W_dec,) = ranges_in(transcoder, ("W_dec",), of_those=True)
    assert len(asked) == 3
    assert asked[-1] == (W_dec[0], 4 * 7 * 5)


def test_what_stays_on_the_disk_is_left_there_where_not_all_files_fit(
    caplog, transcoder, monkeypatch
):
    size = transcoder.stat().st_size
    for memory, later, expected in (
        (2 * size, ["W_dec"], 4 * (7 * 5 + 6 * 5 + 3)),
        (2 * size - 2, ["W_dec"], 4 * (6 * 5 + 3)),
        (2 * size - 2, ["W_dec", "W_enc"], 4 * 3),
        (2 * size - 2, [], size - 1),
    ):
        monkeypatch.setattr("loading.read_ahead.memory_bytes", lambda memory=memory: memory)
        assert bytes_read(caplog, [transcoder], later) == expected


def test_ranges_are_where_the_tensors_are(transcoder):
    content = transcoder.read_bytes()

    def held(**which):
        return b"".join(content[b:e] for b, e in ranges_in(transcoder, ("W_enc", "W_d"), **which))

    with safe_open(transcoder, "pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in TENSORS}
    assert held() == tensors["b_enc"]
    either = [tensors["W_enc"] + tensors["W_dec"], tensors["W_dec"] + tensors["W_enc"]]
    assert held(of_those=True) in either


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
    assert bytes_read(caplog, files, ["W_dec"]) == 4 * (7 * 5 + 6 * 5 + 3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to read ahead")
def test_what_is_read_ahead_is_in_the_page_cache_on_any_disk(caplog, tmp_path):
    path = tmp_path / "large.npz"
    with path.open("wb") as file:
        file.write(os.urandom(24 << 20))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert bytes_read(caplog, [path]) == 24 << 20
    content = bytearray(24 << 20)
    with path.open("rb", buffering=0) as file:
        try:
            there = os.preadv(file.fileno(), [content], 0, os.RWF_NOWAIT)
        except OSError as error:  # BlockingIOError is one: it would have to wait for the disk
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip("the file system doesn't say what is in the page cache")
            raise
    assert there == len(content)


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
        for begin, end in ranges_in(path, ("W_dec",)):
            assert isinstance(begin + end, int)


def test_a_worker_reads_its_model_and_its_transcoders_ahead(monkeypatch):
    started = []
    monkeypatch.setattr(
        "model_loader.read_ahead", lambda files, later: started.append((files, later))
    )
    read_weights_ahead(demo_settings())
    read_weights_ahead(demo_settings(transcoder_set="some/thing"))  # refused later, by `load`
    (files, later), *_ = started
    names = [str(file.relative_to(ROOT)) for file in files]
    assert names == [
        *(f"demo/transcoders/layer_{layer}.safetensors" for layer in range(4)),
        "demo/model/model.safetensors",
    ]
    assert later == ["W_dec"]


def test_weights_that_can_not_be_looked_for_are_left_to_load(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": []}')
    monkeypatch.setattr("model_loader.read_ahead", lambda *_: pytest.fail("there is nothing"))
    read_weights_ahead(demo_settings(model_id=str(tmp_path), transcoder_set="some/thing"))
