"""The benchmark that counts kernels counts each once, under the stage that launched it."""

import torch

from benchmarks.emulated_cuda import Counts, emulated_cuda
from benchmarks.kernels import graph_counts, operations, pass_counts, steer_counts, table
from benchmarks.reference_workload import build


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


def test_tables_are_markdown_with_a_row_a_stage_and_one_for_all():
    counts = Counts()
    counts.kernels.update({"mm": 1200, "add": 34})
    counts.to_device["copy_"] = 2
    stages = {"one": counts, "another": counts.copy()}
    lines = table("a graph", stages).splitlines()
    assert [line.count("|") for line in lines] == [6] * 5
    assert lines[2] == "| one | 1,234 | 2 | 0 | 0 |"
    assert lines[4] == "| **all** | 2,468 | 4 | 0 | 0 |"
    assert operations(stages).splitlines()[0] == "- one, kernels: mm 1,200, add 34"
