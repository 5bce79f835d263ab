"""Attribution, steering and reading features on a CUDA device, against the CPU's numbers.

Without a GPU the device is emulated; with one the same tests run on it too. Nothing that they run
may be an operation that isn't deterministic on CUDA.
"""

import logging

import pytest
import torch

import attribution
import errors
import steering
from attribution import expansion
from benchmarks.precision import agreement, in_float32
from steering import Intervention, Options
from tests.support.cuda_devices import DEVICES, cuda_device, emulated_only, on_cuda
from tests.support.tiny_models import (
    ARCHITECTURES,
    CROSS_LAYER,
    D_MODEL,
    HOOKS,
    PER_LAYER,
    prompt_tokens,
    tiny_model,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROMPT = prompt_tokens(9).tolist()
BYTES_OF_TARGET = len(PROMPT) * D_MODEL * 4
GRAPH = {"max_feature_nodes": 50, "batch_size": 8, "update_interval": 2}
# Of probabilities, logits and activations: what rounding leaves, in float32 and in 16 bits.
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.06, torch.float16: 0.01}
# Of the edges in 16 bits, against float32.
LARGEST_ERROR = {torch.bfloat16: 0.04, torch.float16: 0.02}


def _cases():
    """Each architecture with each dictionary; the rest goes round.

    So each place, dtype, skip connection and lazy reading meets each architecture and dictionary,
    in 40 cases instead of 8 x 5 x 3 x 3 x 2 x 2.
    """
    for a, architecture in enumerate(ARCHITECTURES):
        for d, dictionary in enumerate((*PER_LAYER, *CROSS_LAYER)):
            hooks = list(HOOKS)[(a + d) % 3]
            if architecture == "parallel" and hooks == "residual":
                hooks = "mlp"  # there is no stream between attention and MLP
            dtype = DTYPES[(a + 2 * d) % 3]
            skip = (a // 3 + d) % 2 == 1
            if hooks == "gemma scope" and dtype != torch.float32:
                skip = False  # circuit-tracer's skip connection multiplies a float32 norm with it
            can_be_lazy = dictionary in ("relu", *CROSS_LAYER) and not skip
            yield architecture, dictionary, hooks, skip, can_be_lazy and a % 2 == 0, dtype


CASES = list(_cases())


def name_of(case):
    architecture, dictionary, hooks, skip, lazy, dtype = case
    parts = [architecture, dictionary, hooks, "skip" * skip, "lazy" * lazy, str(dtype)[6:]]
    return ", ".join(part for part in parts if part)


@pytest.fixture(params=DEVICES)
def cuda(request):
    with cuda_device(request.param) as device:
        yield device


@pytest.fixture(params=CASES, ids=name_of)
def case(request):
    return request.param


@pytest.fixture
def build(case, tmp_path):
    architecture, dictionary, hooks, skip, lazy, _ = case

    def build(dtype):
        lazy_in = tmp_path if lazy else None
        return tiny_model(architecture, dictionary, hooks, skip=skip, lazy_in=lazy_in, dtype=dtype)

    return build


def assert_same_graph(graph, expected, tolerance=1e-6):
    assert torch.equal(graph.selected_features, expected.selected_features)
    assert torch.equal(graph.active_features.cpu(), expected.active_features.cpu())
    assert graph.logit_targets == expected.logit_targets
    for name in ("logit_probabilities", "activation_values"):
        torch.testing.assert_close(getattr(graph, name).cpu(), getattr(expected, name).cpu())
    difference = (graph.adjacency_matrix - expected.adjacency_matrix).abs().max()
    assert difference <= tolerance * expected.adjacency_matrix.abs().max()


def test_the_cases_have_each_pair_of_architecture_dictionary_place_and_dtype():
    for one, other, n in ((0, 1, 40), (0, 2, 23), (0, 5, 24), (1, 2, 15), (1, 5, 15), (2, 5, 9)):
        assert len({(case[one], case[other]) for case in CASES}) == n
    for extra in (3, 4):
        assert {case[0] for case in CASES if case[extra]} >= {"gemma2", "llama", "gpt2"}
    assert {(case[1], case[3]) for case in CASES} == {
        (dictionary, skip) for dictionary in (*PER_LAYER, *CROSS_LAYER) for skip in (False, True)
    }


def test_graphs_are_the_cpus_in_float32_and_as_near_the_truth_in_16_bits(case, build, cuda):
    dtype = case[-1]
    model = build(dtype)
    if cuda is not None and attribution.method_for(model) == "circuit-tracer":
        pytest.skip("circuit-tracer takes gradients, which the emulated device has none of")
    expected = attribution.attribute(
        PROMPT, model if dtype == torch.float32 else in_float32(model, build), **GRAPH
    )
    graph = attribution.attribute(PROMPT, on_cuda(model), **GRAPH)
    assert graph.adjacency_matrix.dtype == torch.float32
    if dtype == torch.float32:
        assert_same_graph(graph, expected)
        pruned, expected_pruned = (attribution.prune(g) for g in (graph, expected))
        assert torch.equal(pruned.node_mask.cpu(), expected_pruned.node_mask)
        assert torch.equal(pruned.edge_targets, expected_pruned.edge_targets)
        assert torch.equal(pruned.edge_sources, expected_pruned.edge_sources)
    else:
        found = agreement(graph, expected)
        assert found.jaccard >= 0.88
        assert found.error <= LARGEST_ERROR[dtype]


def test_steering_reading_and_predicting_give_the_cpus_numbers(case, build, cuda):
    dtype = case[-1]
    features = [(0, 3, 5), (1, 4, 17), (2, 5, 40), (1, 0, 3)]
    interventions = [
        Intervention(0, 5, 3, 4.0),
        Intervention(1, 17, 4, 0.0),
        Intervention(1, 30, 4, 2.0),
        Intervention(2, 40, None, 3.0),
    ]

    def run(model, where):
        generations = [
            generation
            for freeze in (False, True)
            for generation in steering.generate_both(
                model, PROMPT, interventions, Options(2, top_k=10, freeze_attention=freeze)
            )
        ]
        logits = steering.next_token_logits(model, PROMPT)
        assert logits.device.type == where
        return (
            generations,
            logits.cpu().float(),
            steering.feature_activations(model, PROMPT, features),
        )

    expected = run(build(dtype), "cpu")
    generations, logits, activations = run(on_cuda(build(dtype)), "cuda")
    close = {"atol": CLOSE[dtype], "rtol": CLOSE[dtype]}
    torch.testing.assert_close(logits, expected[1], **close)
    torch.testing.assert_close(torch.tensor(activations), torch.tensor(expected[2]), **close)
    for generation, other in zip(generations, expected[0], strict=True):
        assert not generation.top_probs.is_cuda
        torch.testing.assert_close(generation.top_probs[0], other.top_probs[0], **close)
        if dtype == torch.float32:  # in 16 bits a token of equal chances may be the other
            assert generation.token_ids == other.token_ids
            torch.testing.assert_close(generation.top_probs, other.top_probs, **close)


def test_in_16_bits_graphs_are_as_near_the_truth_as_the_librarys_on_a_cpu(cuda):
    import circuit_tracer

    for dtype in (torch.bfloat16, torch.float16):
        ours, theirs = [], []
        for architecture, hooks in (("gemma2", "gemma scope"), ("llama", "residual")):

            def build(dtype, architecture=architecture, hooks=hooks):
                return tiny_model(architecture, hooks=hooks, dtype=dtype)

            model = build(dtype)
            true_model = in_float32(model, build)
            prompts = [prompt_tokens(10, seed) for seed in range(2)]
            truths = [attribution.attribute(prompt, true_model, **GRAPH) for prompt in prompts]
            for prompt, truth in zip(prompts, truths, strict=True):
                graph = circuit_tracer.attribute(prompt, model, **GRAPH)
                theirs.append(agreement(graph, truth))
            on_cuda(model)
            for prompt, truth in zip(prompts, truths, strict=True):
                ours.append(agreement(attribution.attribute(prompt, model, **GRAPH), truth))
        assert sum(a.jaccard for a in ours) >= sum(a.jaccard for a in theirs) - 4 * 2 / 50
        assert sum(a.error for a in ours) <= sum(a.error for a in theirs) * 1.1


@emulated_only
def test_sampling_with_a_seed_draws_the_same_tokens(cuda):
    options = Options(n_tokens=12, top_k=3, temperature=1.3, freq_penalty=0.5, seed=7)

    def sample(model):
        return steering.generate(model, PROMPT, [Intervention(1, 5, None, 3.0)], options)

    expected = sample(tiny_model())
    assert sample(on_cuda(tiny_model())).token_ids == expected.token_ids


@pytest.mark.parametrize("max_feature_nodes", [50, None])
@pytest.mark.parametrize("dictionary", ["jump_relu", "cross_layer_relu"])
def test_rows_on_the_host_give_the_same_graph(
    dictionary, max_feature_nodes, cuda, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "attribution")
    model = on_cuda(tiny_model("gemma2", dictionary))
    settings = {**GRAPH, "max_feature_nodes": max_feature_nodes}
    on_device = attribution.attribute(PROMPT, model, **settings)
    assert "on the host" not in caplog.text
    monkeypatch.setattr(expansion, "_SHARE_OF_DEVICE", 0.0)
    on_host = attribution.attribute(PROMPT, model, **settings)
    if max_feature_nodes is not None:
        assert "of attribution rows on the host" in caplog.text
    assert_same_graph(on_host, attribution.attribute(PROMPT, model.to("cpu"), **settings))
    assert_same_graph(on_host, on_device)


@emulated_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [10**9, 0.0], ids=["rows on the device", "rows on the host"])
def test_batches_are_halved_until_they_fit_and_give_the_same_graph(
    share, dtype, cuda, monkeypatch, caplog
):
    monkeypatch.setattr(expansion, "_SHARE_OF_DEVICE", share)
    model = on_cuda(tiny_model("gemma2", dtype=dtype))

    def graph_and_peak(batch_size):
        torch.cuda.reset_peak_memory_stats()
        settings = {"max_feature_nodes": 40, "batch_size": batch_size, "update_interval": 1}
        return attribution.attribute(PROMPT, model, **settings), cuda.memory.peak

    _, less = graph_and_peak(10)
    whole, more = graph_and_peak(40)
    assert more - less > 10 * BYTES_OF_TARGET
    with cuda.memory_limited_to((less + more) // 2):
        halved, _ = graph_and_peak(40)
    assert cuda.memory.refused > 0
    assert "out of memory: attributing in batches of 20" in caplog.text
    assert_same_graph(halved, whole)


@emulated_only
def test_a_target_that_does_not_fit_alone_is_an_error_to_act_on(cuda, monkeypatch):
    monkeypatch.setattr(expansion, "_SHARE_OF_DEVICE", 0.0)
    model = on_cuda(tiny_model("gemma2", "relu"))
    settings = {**GRAPH, "max_n_logits": 1}

    def fill(*_):  # once the prompt's forward pass is done
        cuda.memory.largest_allocation = BYTES_OF_TARGET - 1

    with (
        cuda.fail_allocations_above(10**9),
        pytest.raises(errors.OutOfMemory, match="shorter prompt"),
    ):
        attribution.attribute(PROMPT, model, **settings, on_progress=fill)
    attribution.attribute(PROMPT, model, **settings)


@emulated_only
def test_nothing_of_a_graph_stays_on_the_device_but_its_features(cuda):
    model = on_cuda(tiny_model())
    before = cuda.memory.allocated
    graph = attribution.attribute(PROMPT, model, **GRAPH)
    held = cuda.memory.allocated - before
    assert held <= 64 * len(graph.active_features) + 4 * len(graph.logit_probabilities) + 100
    del graph
    assert cuda.memory.allocated == before
