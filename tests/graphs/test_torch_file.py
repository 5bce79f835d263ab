"""A graph before pruning as circuit-tracer's own file, beside what circuit-tracer writes."""

import gc
import pickletools
import tempfile
import weakref
import zipfile
from pathlib import Path

import circuit_tracer
import pytest
import torch
from circuit_tracer.graph import Graph, prune_graph

import attribution
from attribution import FeatureTarget, LogitDifference
from attribution.expansion import _host_zeros
from benchmarks.measure import measure
from delivery import spool_saved
from delivery.spooling import MEMORY_LIMIT_BYTES
from errors import Cancelled, Internal
from graphs import torch_file
from tests.support.cuda_devices import DEVICES, cuda_device, on_cuda
from tests.support.hugging_face_models import new_model, shared_model
from tests.support.programs import output_of
from tests.support.same_graph import assert_agree
from tests.support.synthetic_graph import make_graph
from tests.support.tiny_models import D_VOCAB, prompt_tokens, tiny_model

TOKENS = prompt_tokens(7)
HOW = {"max_feature_nodes": 40, "batch_size": 16}
CASES = [("gemma2", "jump_relu", "mlp"), ("llama", "relu", "residual"), ("gpt2", "top_k", "mlp")]
CASES += [("qwen3", "cross_layer_relu", "residual"), ("parallel", "relu", "gemma scope")]
# The difference of 16-bit numbers that the library takes, and of float32 ones, as they are here.
IN_16_BITS = {torch.bfloat16: 0.03, torch.float16: 0.005}


def saved(graph, path, **options):
    """The path, after the graph was written there as the worker writes it."""
    with spool_saved(lambda file: torch_file.save(graph, file), **options) as spooled:
        path.write_bytes(b"".join(spooled.chunks()))
    return path


def both(model, directory, **settings):
    """Our graph and the library's, each read back from its file."""
    ours = attribution.attribute(TOKENS, model, **settings)
    theirs = circuit_tracer.attribute(TOKENS, model, **settings)
    theirs.to_pt(str(directory / "theirs.pt"))
    paths = saved(ours, directory / "ours.pt"), directory / "theirs.pt"
    return [Graph.from_pt(str(path)) for path in paths]


def assert_equal(left, right):
    """Two graphs are the same to the bit, and in the kind of every field."""
    assert vars(left).keys() == vars(right).keys()
    for name, value in vars(left).items():
        other = getattr(right, name)
        assert type(value) is type(other), name
        if isinstance(value, torch.Tensor):
            assert (value.dtype, value.device) == (other.dtype, other.device), name
            assert torch.equal(value, other), name
        else:
            assert value == other, name


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_the_file_holds_what_the_library_saves_of_its_own_attribution(case, tmp_path):
    ours, theirs = both(tiny_model(*case), tmp_path, **HOW)
    assert_agree(ours, theirs)
    assert ours.cfg == theirs.cfg
    kinds = [
        {name: getattr(value, "dtype", type(value)) for name, value in vars(graph).items()}
        for graph in (ours, theirs)
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("which", ["llama", "gemma2"])
def test_the_file_of_the_other_engine_holds_what_the_library_saves(which, tmp_path):
    ours, theirs = both(shared_model("nnsight", which), tmp_path, **{**HOW, "batch_size": 1})
    assert_agree(ours, theirs)
    assert ours.cfg == theirs.cfg


@pytest.mark.parametrize("dtype", IN_16_BITS, ids=str)
def test_in_16_bits_edges_and_activations_are_float32_and_agree_to_rounding(dtype, tmp_path):
    model = tiny_model("gemma2", "jump_relu", "mlp", dtype=dtype)
    ours, theirs = both(model, tmp_path, batch_size=48)
    assert ours.cfg.dtype is theirs.cfg.dtype is dtype
    assert torch.equal(ours.active_features, theirs.active_features)
    assert ours.activation_values.dtype is torch.float32
    assert torch.equal(ours.activation_values, theirs.activation_values.float())
    off = (ours.adjacency_matrix - theirs.adjacency_matrix).abs().max()
    assert off <= IN_16_BITS[dtype] * theirs.adjacency_matrix.abs().max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, *IN_16_BITS], ids=str)
def test_the_file_of_a_cuda_device_is_read_where_there_is_none(dtype, device, tmp_path):
    model = tiny_model("gemma2", "jump_relu", "mlp", dtype=dtype)
    expected = attribution.attribute(TOKENS, model, **HOW)
    with cuda_device(device):
        graph = attribution.attribute(TOKENS, on_cuda(model), **HOW)
        assert graph.active_features.is_cuda
        path = saved(graph, tmp_path / "graph.pt")
    read = Graph.from_pt(str(path))
    tensors = [value for value in vars(read).values() if isinstance(value, torch.Tensor)]
    assert {value.device.type for value in tensors} == {"cpu"}
    if dtype is torch.float32:
        assert_agree(read, expected)
    assert prune_graph(read).node_mask.any()


@pytest.mark.parametrize("engine", ["transformerlens", "nnsight"])
def test_the_file_of_a_graph_without_features_is_read_too(engine, tmp_path):
    model = tiny_model("gemma2", "jump_relu", "mlp")
    if engine == "nnsight":
        model = new_model("nnsight", "llama")
    transcoders = getattr(model.transcoders, "_module", model.transcoders)
    for transcoder in transcoders:
        transcoder.activation_function.threshold.data.fill_(1e4)
    graph = attribution.attribute(TOKENS, model)
    read = Graph.from_pt(str(saved(graph, tmp_path / "graph.pt")))
    assert len(read.active_features) == len(read.selected_features) == 0
    assert prune_graph(read).node_mask[-len(read.logit_targets) :].all()


def test_differences_and_features_keep_their_place_past_the_vocabulary(tmp_path):
    model = tiny_model("gemma2", "jump_relu", "mlp")
    whole = attribution.attribute(TOKENS, model)
    layer, position, index = whole.active_features[-1].tolist()
    targets = [7, LogitDifference((7,), (30,), "w7 - w30"), FeatureTarget(layer, index, position)]
    graph = attribution.attribute(TOKENS, model, attribution_targets=targets, **HOW)
    read = Graph.from_pt(str(saved(graph, tmp_path / "graph.pt")))
    assert_equal(read, graph)
    assert [target.vocab_idx for target in read.logit_targets] == [7, D_VOCAB + 1, D_VOCAB + 2]
    assert read.logit_targets[1].token_str == "w7 - w30"


def test_a_process_without_the_worker_reads_the_file(tmp_path):
    path = saved(make_graph(), tmp_path / "graph.pt")
    program = (
        "import sys; sys.path = [p for p in sys.path if 'site-packages' in p or 'lib/' in p]\n"
        "from circuit_tracer.graph import Graph, prune_graph\n"
        f"graph = Graph.from_pt({str(path)!r})\n"
        "print(int(prune_graph(graph).node_mask.sum()) > 0)\n"
    )
    assert output_of(program, cwd=tmp_path).splitlines()[-1] == "True"


def test_the_file_names_no_class_but_torch_s_and_circuit_tracer_s(tmp_path):
    with zipfile.ZipFile(saved(make_graph(), tmp_path / "graph.pt")) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        operations = pickletools.genops(archive.read(name))
        named = {
            arg.split(".")[0].split(" ")[0] for op, arg, _ in operations if op.name == "GLOBAL"
        }
    assert named == {"torch", "circuit_tracer", "collections"}


def test_equal_graphs_give_equal_files():
    digests = {
        spool_saved(lambda file: torch_file.save(make_graph(), file), compress=compress).sha256
        for compress in (True, True, False)
    }
    assert len(digests) == 2


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder in which temporary files are made, each with a name while it is there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def open_in(directory):
    """The open files of this process that are in the directory, also those without a name."""
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [link for link in links if str(link).startswith(str(directory))]


@pytest.mark.parametrize("compress", [False, True])
def test_a_job_that_is_cancelled_while_it_writes_leaves_no_file(temporary, compress):
    graph = make_graph(adjacency=torch.rand(3_000, 3_000))
    checks, seen = 0, []

    def check():
        nonlocal checks
        checks += 1
        seen.append(bool(open_in(temporary)))
        if checks == 50:
            raise Cancelled("the job was stopped before it was done")

    with pytest.raises(Cancelled):
        spool_saved(lambda file: torch_file.save(graph, file), compress=compress, check=check)
    assert checks == 50
    assert seen[-1] is True
    assert open_in(temporary) == []


def test_a_graph_whose_writing_was_stopped_is_freed():
    held = []

    def save(file):
        graph = make_graph(adjacency=torch.rand(1_000, 1_000))
        held.append(weakref.ref(graph))
        torch_file.save(graph, file)

    def check():
        if held:
            raise Cancelled("the job was stopped before it was done")

    with pytest.raises(Cancelled):
        spool_saved(save, check=check)
    gc.collect()
    assert held[0]() is None


def test_a_full_disk_is_an_error_that_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    graph = make_graph(adjacency=torch.rand(3_000, 3_000))
    with pytest.raises(Internal, match=r"No space left on device.*max_feature_nodes"):
        spool_saved(lambda file: torch_file.save(graph, file), advice="lower max_feature_nodes")


def test_what_fails_in_the_library_is_raised_as_it_is():
    def save(file):
        file.write(b"some")
        raise TypeError("cannot pickle")

    with pytest.raises(TypeError, match="cannot pickle"):
        spool_saved(save)


def test_links_are_the_edges_whose_weight_is_not_zero():
    graph = make_graph(n_features=300)
    expected = int(graph.adjacency_matrix.count_nonzero())
    assert 0 < expected < graph.adjacency_matrix.numel()
    assert torch_file.count_links(graph) == expected


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_large_graph_is_written_without_a_copy_in_memory(temporary):
    """Half of a real graph's matrix was never written to, and takes no memory by being read."""
    n = 10_000
    adjacency = _host_zeros(n, n)
    adjacency[: n // 4, : n // 8] = 1.0
    graph = make_graph(adjacency=adjacency)
    spooled = []

    def write():
        torch_file.count_links(graph)
        spooled.append(spool_saved(lambda file: torch_file.save(graph, file)))

    cost = measure(write)
    with spooled[0] as body:
        assert body.size > 4 * n * n
    assert cost.peak_bytes < MEMORY_LIMIT_BYTES + 48 * 2**20
