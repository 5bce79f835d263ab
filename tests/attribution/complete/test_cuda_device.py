"""Complete graphs on a CUDA device, emulated where there is none, against the CPU's numbers."""

import pytest

from attribution.complete import prune, trace_attention
from tests.support.complete_cases import CASES, write_case
from tests.support.complete_engine import attributed, complete_model, plain_graph
from tests.support.complete_graphs import assert_same_graph, fixture
from tests.support.cuda_devices import DEVICES, cuda_device


@pytest.fixture(params=DEVICES)
def cuda(request):
    with cuda_device(request.param) as device:
        yield device


@pytest.mark.parametrize("name", ["topk-9", "relu-6", "jumprelu-12", "glu-9", "no-rotary-6"])
def test_a_graph_on_the_device_is_llamascopiums(name, cuda, tmp_path):
    case, theirs = CASES[name], fixture(name)
    model = complete_model(write_case(tmp_path, case), device="cuda:0")

    local, graph = attributed(model, case)
    pruned = prune(graph, case.node_threshold, case.edge_threshold)
    traces = trace_attention(graph, local, top_fraction=case.qk_top_fraction, topk=case.qk_topk)

    ours = plain_graph(graph, pruned, traces, theirs.logit_values, theirs.selected)
    assert_same_graph(ours, theirs)
