"""The benchmark that counts kernels counts each once, under the stage that launched it."""

import pytest
import torch

from benchmarks.emulated_cuda import Counts, emulated_cuda
from benchmarks.families import FAMILIES
from benchmarks.kernels import (
    complete_graph_counts,
    family_counts,
    graph_counts,
    intervention_counts,
    operations,
    pass_counts,
    steer_counts,
    table,
)
from benchmarks.reference_workload import build

OTHER_FAMILIES = ("Gemma 2", "Gemma 3", "Llama, TopK", "Gemma 2, cross-layer")


def test_a_graphs_stages_have_all_its_counts_and_the_same_each_time():
    with emulated_cuda() as cuda:
        model, tokens, settings = build("R0", device="cuda", dtype=torch.bfloat16)
        runs = []
        for _ in range(2):
            with cuda.counts.during() as all_of_it:
                _, stages = graph_counts(cuda, model, tokens, **settings)
            assert sum(stages.values(), Counts()) == all_of_it
            runs.append(stages)
    assert runs[0] == runs[1]
    assert all(counts.n_kernels > 0 for counts in runs[0].values())
    assert runs[0]["forward pass"].kernels["_softmax"] == model.cfg.n_layers
    assert runs[0]["forward pass"].n_synchronisations == 0
    assert runs[0]["sweep"].n_synchronisations == 0


def test_a_steers_stages_have_all_its_counts():
    with emulated_cuda() as cuda:
        model, tokens, _ = build("R0", device="cuda")
        with cuda.counts.during() as all_of_it:
            stages = steer_counts(cuda, model, tokens, n_tokens=3)
        bare = pass_counts(cuda, model, tokens)
    assert sum(stages.values(), Counts()) == all_of_it
    # The prompt's pass and one for each of three tokens; those read activations in one more.
    softmaxes = stages["passes and sampling"].kernels["_softmax"]
    assert softmaxes >= 4 * model.cfg.n_layers
    assert all(counts.kernels["_softmax"] == model.cfg.n_layers for counts in bare.values())


def test_a_graph_of_26_layers_64_tokens_and_5000_features_keeps_within_its_budget():
    graph, stages = family_counts("reference")
    total = sum(stages.values(), Counts())
    assert (graph.cfg.n_layers, len(graph.input_tokens)) == (26, 64)
    assert len(graph.selected_features) == 5000 < len(graph.active_features)
    assert total.n_kernels <= 15_000
    assert total.n_synchronisations <= 200
    assert stages["forward pass"].n_kernels <= 2_500
    assert stages["sweep"].n_synchronisations == stages["ranking"].n_synchronisations == 0


def test_a_complete_graph_waits_and_launches_by_layers_and_batches_alone():
    graph, traces, stages = complete_graph_counts("K6", torch.bfloat16)
    n_layers, n_batches = graph.cfg.n_layers, 200 / 16
    assert len(graph.selected_features) == 200 < len(graph.active_features)
    assert traces
    assert stages["forward pass"].n_synchronisations == 0
    assert stages["edges"].n_synchronisations == stages["ranking"].n_synchronisations == 0
    # With 28 layers and 188 batches these are within the larger graph's bounds.
    total = sum(stages.values(), Counts())
    assert total.n_kernels <= 500 * n_layers + 115 * n_batches
    assert total.n_synchronisations <= 20 + 4.5 * n_layers + 1.25 * n_batches


@pytest.mark.slow
def test_a_complete_graph_of_28_layers_10_tokens_and_3000_features_keeps_within_its_budget():
    graph, traces, stages = complete_graph_counts("K10", torch.bfloat16)
    total = sum(stages.values(), Counts())
    assert (graph.cfg.n_layers, graph.n_pos) == (28, 10)
    assert len(graph.selected_features) == 3000 < len(graph.active_features)
    assert len(traces) > 500
    assert total.n_kernels <= 40_000
    assert total.n_synchronisations <= 400


# The default run has one of each kind of norm, transcoder and head; the soak has the rest.
@pytest.mark.parametrize(
    "family",
    [
        "Qwen 3",
        "Llama, skip connections",
        "GPT-2",
        "Gemma 3, cross-layer",
        *(pytest.param(name, marks=pytest.mark.soak) for name in OTHER_FAMILIES),
    ],
)
def test_every_family_keeps_within_its_budget(family):
    graph, stages = family_counts(family)
    total = sum(stages.values(), Counts())
    assert len(graph.selected_features) == 5000
    assert total.n_kernels <= 20_000
    assert total.n_synchronisations <= 200


def test_the_families_are_those_that_the_budget_is_about():
    configs = [family.config for family in FAMILIES.values()]
    assert {config["normalization_type"] for config in configs} == {"RMS", "LN"}
    for option in ("use_qk_norm", "use_normalization_before_and_after", "use_local_attn"):
        assert {bool(config.get(option)) for config in configs} == {True, False}
    assert {family.skip for family in FAMILIES.values()} == {True, False}
    assert len({family.dictionary for family in FAMILIES.values()}) == 5


def test_a_steer_launches_little_more_than_the_passes_it_needs():
    n_tokens = 6
    with emulated_cuda() as cuda:
        model, tokens, _ = build("K64-", device="cuda", dtype=torch.bfloat16)
        total = sum(steer_counts(cuda, model, tokens, n_tokens).values(), Counts())
        over_prompt, over_one = pass_counts(cuda, model, tokens).values()
    # One that reads, one over the prompt and one for each further token.
    needed = 2 * over_prompt.n_kernels + n_tokens * over_one.n_kernels
    assert total.n_kernels <= 1.3 * needed


@pytest.mark.parametrize("family", ["reference", "Gemma 2, cross-layer"])
def test_experiments_and_a_contrast_launch_little_more_than_the_passes_they_need(family):
    with emulated_cuda() as cuda:
        model, tokens, _ = build("K24", family=family, device="cuda", dtype=torch.bfloat16)
        stages = intervention_counts(cuda, model, tokens)
        over_prompt, _ = pass_counts(cuda, model, tokens).values()
    needed = over_prompt.n_kernels
    assert stages["reading activations"].n_kernels <= 1.2 * needed
    assert stages["experiments"].n_kernels <= 1.7 * needed
    assert stages["contrast"].n_kernels <= 3 * needed
    for counts in stages.values():
        assert counts.n_synchronisations <= 10 + 5 * model.cfg.n_layers


def test_tables_are_markdown_with_a_row_a_stage_and_one_for_all():
    counts = Counts()
    counts.kernels.update({"mm": 1200, "add": 34})
    counts.to_device["copy_"] = 2
    stages = {"one": counts, "another": counts.copy()}
    lines = table("a graph", stages).splitlines()
    assert [line.count("|") for line in lines] == [8] * 5
    assert lines[2] == "| one | 1,234 | 2 | 0 | 0 | 0.0 | 0.00 |"
    assert lines[4] == "| **all** | 2,468 | 4 | 0 | 0 | 0.0 | 0.00 |"
    assert operations(stages).splitlines()[0] == "- one, kernels: mm 1,200, add 34"
