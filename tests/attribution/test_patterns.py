"""Attention patterns in blocks give what whole patterns give, and keep no more than they need."""

import circuit_tracer
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import attribution
from attribution import patterns
from attribution.freezing import build_local_replacement_model
from attribution.patterns import FrozenPattern
from benchmarks.emulated_cuda import emulated_cuda
from tests.support.cuda_devices import on_cuda
from tests.support.tiny_models import ARCHITECTURES, prompt_tokens, tiny_model

N_VALUES, N_GROUPED, D_HEAD = 2, 3, 4


def causal(n_pos, window=None, seed=0):
    """A random pattern (n_values, n_grouped, n_pos to, n_pos from)."""
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.rand(N_VALUES, N_GROUPED, n_pos, n_pos, generator=generator).tril()
    return pattern if window is None else pattern.triu(1 - window)


def whole_back(pattern, results):
    n, n_pos, _ = results.shape
    results = results.view(n, n_pos, N_VALUES, N_GROUPED, D_HEAD)
    return torch.einsum("vgtf,ntvgd->nfvd", pattern[..., :n_pos, :n_pos], results).flatten(2)


@pytest.fixture
def blocks_of_four(monkeypatch):
    monkeypatch.setattr(patterns, "BLOCK_LENGTH", {"cpu": 4, "cuda": 4})


@given(
    n_pos=st.integers(1, 14),
    n_reached=st.integers(1, 14),
    window=st.none() | st.integers(1, 14),
    length=st.integers(1, 14),
)
def test_blocks_give_what_the_whole_pattern_gives(n_pos, n_reached, window, length):
    n_reached = min(n_pos, n_reached)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(patterns.BLOCK_LENGTH, "cpu", length)
        frozen = FrozenPattern.of(causal(n_pos, window), window)
    generator = torch.Generator().manual_seed(0)
    results = torch.randn(5, n_reached, N_VALUES * N_GROUPED * D_HEAD, generator=generator)
    expected = whole_back(causal(n_pos, window), results)
    torch.testing.assert_close(frozen.back(results, torch.float32), expected)
    assert frozen.back(results, torch.bfloat16).dtype == torch.bfloat16

    where = torch.arange(5) % n_reached
    columns = causal(n_pos, window)[:, :, where, :n_reached].permute(0, 3, 2, 1)
    assert torch.equal(frozen.columns(where, n_reached), columns)


@pytest.mark.parametrize(("window", "kept"), [(None, 4 * (12 + 8 + 4)), (4, 4 * (7 + 7 + 4))])
def test_no_more_is_kept_than_can_be_other_than_zero(window, kept, blocks_of_four):
    frozen = FrozenPattern.of(causal(12, window), window)
    assert sum(block.numel() for block in frozen.blocks) == N_VALUES * N_GROUPED * kept


def test_local_attention_is_cut_to_its_window(blocks_of_four):
    local = build_local_replacement_model(tiny_model("gemma2"), prompt_tokens(12))
    widths = [attention.pattern.blocks[0].shape[2] // 2 for attention in local.attention]
    assert widths == [7, 12, 7]  # a window of 4 in the first and the last


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "parallel"])
def test_graphs_of_several_blocks_match_the_library(architecture, blocks_of_four):
    model, tokens = tiny_model(architecture), prompt_tokens(14)
    settings = {"max_feature_nodes": 60, "batch_size": 16}
    ours = attribution.attribute(tokens, model, **settings)
    theirs = circuit_tracer.attribute(tokens, model, **settings)
    assert torch.equal(ours.selected_features, theirs.selected_features)
    difference = (ours.adjacency_matrix - theirs.adjacency_matrix).abs().max()
    assert difference <= 1e-5 * theirs.adjacency_matrix.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_the_device_several_blocks_give_what_one_gives(dtype, monkeypatch):
    def graph(length):
        monkeypatch.setitem(patterns.BLOCK_LENGTH, "cuda", length)
        with emulated_cuda():
            model = on_cuda(tiny_model("gemma2", dtype=dtype))
            return attribution.attribute(prompt_tokens(14), model, max_feature_nodes=60)

    whole, cut = graph(64), graph(4)
    assert torch.equal(whole.selected_features, cut.selected_features)
    off = (whole.adjacency_matrix - cut.adjacency_matrix).abs().max()
    assert off <= (1e-6 if dtype == torch.float32 else 1e-3) * whole.adjacency_matrix.abs().max()
