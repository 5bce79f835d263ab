"""Edges from a layer's features, a product a position and padded to one batched product."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attribution.contraction import PositionGroups, arranged, padded


def layer(sizes, d=6, n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    decoders = torch.randn(sum(sizes), d, generator=generator)
    gradients = torch.randn(n, len(sizes), d, generator=generator)
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return decoders, gradients, starts


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    n_reached=st.integers(1, 6),
)
def test_both_arrangements_give_each_features_product_with_its_positions_gradient(sizes, n_reached):
    decoders, gradients, starts = layer(sizes)
    gradients = gradients[:, :n_reached]
    position_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    reached = position_of < gradients.shape[1]
    expected = torch.zeros(len(gradients), len(decoders))
    expected[:, reached] = torch.einsum(
        "nfd,fd->nf", gradients[:, position_of[reached]], decoders[reached]
    )
    for arrangement in (PositionGroups(decoders, starts), padded(decoders, starts)):
        rows = torch.zeros(len(gradients), len(decoders))
        arrangement.write_edges(gradients, rows)
        torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [[0, 0, 0], [0]])
def test_a_layer_without_active_features_has_no_edges(sizes):
    decoders, gradients, starts = layer(sizes)
    for arrangement in (PositionGroups(decoders, starts), padded(decoders, starts)):
        arrangement.write_edges(gradients, torch.zeros(len(gradients), 0))


def test_on_a_cpu_nothing_is_padded():
    decoders, _, _ = layer([3, 0, 2])
    arrangement = arranged(decoders[:, None], [3, 0, 2])
    assert isinstance(arrangement, PositionGroups)
    assert arrangement.decoders.data_ptr() == decoders.data_ptr()
