"""After any failing job the next one answers as a fresh process would, bit for bit."""

import shutil
import sys
import threading
import time

import pytest
import torch

import attribution.expansion
import attribution.pruning
import model_loader
from attribution.device_errors import is_out_of_memory
from attribution.sweep import attribution_rows
from errors import Cancelled, DeadlineExceeded, Internal, OutOfMemory, WorkerError
from graphs import document as graph_document
from loading.registry import DEMO
from prompting import prompts
from tests.support.demo_worker import (
    FORWARD,
    GRAPH,
    PARSE,
    PROMPT,
    ask,
    ask_fresh_process,
    demo_settings,
    forget_graphs,
    without_times,
)
from tests.support.programs import run

FEATURE = {"layer": 2, "index": 5, "token_active_position": 4, "steer_position": 4, "delta": 20.0}
STEER = {"action": "steer", "prompt": PROMPT, "features": [FEATURE], "n_tokens": 6}
SAMPLED = {**STEER, "temperature": 1.5, "seed": 11}
# Distinct from GRAPH, so that no kept attribution answers for it.
OTHER_GRAPH = {**GRAPH, "prompt": "Rafael Nadal juega al", "max_n_logits": 3}
# Nothing listens on this port; the URL may be used where its host is allowed.
UPLOADED = {**OTHER_GRAPH, "signed_url": "http://127.0.0.1:1/key?X-Amz-Signature=feed"}
UPLOADING = demo_settings(upload_allowed_hosts=("127.0.0.1",))
GOOD = [GRAPH, STEER, SAMPLED, FORWARD, PARSE]

BAD = [
    {**GRAPH, "batch_size": 0},
    {**GRAPH, "prompt": "a " * 80},
    {**GRAPH, "model_id": "gpt2"},
    {**GRAPH, "attribution_targets": ["not one token"]},
    {**GRAPH, "max_n_logits": 10**6},
    {**STEER, "features": [{**FEATURE, "layer": 40}]},
    {**STEER, "features": [{**FEATURE, "delta": 1e300}]},
    {**STEER, "n_tokens": 10**6},
    {**FORWARD, "max_n_logits": 10**6},
    {**PARSE, "prompt": 5},
    {"action": "nothing"},
    "not an object",
]


def comparable(output):
    return without_times(output) if "nodes" in output else output


@pytest.fixture(scope="module")
def fresh():
    """What a process that has done nothing else answers to each good request."""
    return [comparable(output) for output in ask_fresh_process(GOOD)]


@pytest.fixture(autouse=True)
def _as_fresh_afterwards(fresh):
    """Whatever a test did to the process, good requests are answered as by a fresh one."""
    yield
    forget_graphs()
    assert [comparable(ask(body)) for body in GOOD] == fresh


@pytest.fixture
def model():
    return model_loader.get_model(demo_settings()).model


@pytest.fixture
def failing_block(model):
    """Make the third block raise on its nth run from now on."""
    handles = []

    def fail(exception, on_run=1):
        runs = iter(range(1, 1000))

        def raise_on_run(*_):
            if next(runs) >= on_run:
                raise exception

        handles.append(model.blocks[2].register_forward_pre_hook(raise_on_run))

    yield fail
    for handle in handles:
        handle.remove()


def test_refused_requests_leave_nothing_behind():
    for body in BAD:
        with pytest.raises(WorkerError):
            ask(body)


# Where a fault strikes: the request, then a function of the code or a run of the model.
FAULTS = {
    "graph, tokenise": (OTHER_GRAPH, (prompts, "tokenize")),
    "graph, attribute, the model": (OTHER_GRAPH, 1),
    "graph, attribute, the sweep": (
        OTHER_GRAPH,
        (sys.modules["attribution.attribute"], "attribution_rows"),
    ),
    "graph, attribute, the matrix": (
        {**OTHER_GRAPH, "max_feature_nodes": 20},
        (attribution.expansion.Expansion, "_adjacency"),
    ),
    "graph, prune": (OTHER_GRAPH, (attribution.pruning, "drop_dead_ends")),
    "graph, encode": (OTHER_GRAPH, (graph_document, "_link_chunks")),
    "graph, upload": (UPLOADED, (sys.modules["delivery.upload"], "put")),
    "steer, tokenise": (STEER, (prompts, "tokenize")),
    "steer, activations": (STEER, 1),
    "steer, prompt": (STEER, 2),
    "steer, both generations": (STEER, 5),
    "steer, steered generation": ({**SAMPLED, "steered_output_only": True}, 5),
    "forward-pass, tokenise": (FORWARD, (prompts, "tokenize")),
    "forward-pass, the model": (FORWARD, 1),
}


@pytest.fixture(params=list(FAULTS))
def inject(request, monkeypatch, failing_block):
    """Put an exception where the parameter says, and return the request that meets it."""
    body, place = FAULTS[request.param]

    def put_in(exception):
        if isinstance(place, int):
            failing_block(exception, on_run=place)
        else:

            def fail(*_arguments, **_named):
                raise exception

            monkeypatch.setattr(*place, fail)
        return body

    return put_in


def test_an_exception_in_any_stage_is_internal_and_tells_nothing(inject):
    body = inject(ValueError(f"{PROMPT} https://store/key?X-Amz-Signature=feed"))
    with pytest.raises(Internal) as raised:
        ask(body, UPLOADING)
    assert "feed" not in str(raised.value)
    assert PROMPT not in str(raised.value)
    assert raised.value.__cause__ is None


LIGHTER = {
    "generate-graph": "max_feature_nodes",
    "steer": "n_tokens",
    "forward-pass": "shorten the prompt",
}


@pytest.mark.parametrize(
    "exception",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
    ids=["device", "host"],
)
def test_out_of_memory_in_any_stage_names_what_to_lower(inject, exception):
    body = inject(exception)
    with pytest.raises(OutOfMemory, match=LIGHTER[body["action"]]):
        ask(body, UPLOADING)


def test_an_allocation_that_the_host_refuses_is_out_of_memory(model):
    handle = model.blocks[1].register_forward_pre_hook(lambda *_: torch.empty(10**15))
    try:
        with pytest.raises(OutOfMemory):
            ask(FORWARD)
    finally:
        handle.remove()


FILE_MAPPED_WITHOUT_ROOM = """
import resource, sys, torch
from attribution.device_errors import is_out_of_memory
from safetensors import safe_open
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
try:
    if sys.argv[1].endswith(".bin"):
        torch.from_file(sys.argv[1], shared=False, size=2**40 // 4)
    else:
        safe_open(sys.argv[1], framework="pt")
except Exception as error:
    print(is_out_of_memory(error), type(error).__name__, error)
"""


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_a_file_that_no_memory_is_left_to_map_is_out_of_memory(tmp_path, name):
    file = tmp_path / name
    with file.open("wb") as sparse:
        sparse.truncate(2**40)
    done = run("-c", FILE_MAPPED_WITHOUT_ROOM, file)
    assert done.stdout.startswith("True "), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (RuntimeError("unable to mmap 16 bytes from file <w>: Cannot allocate memory (12)"), True),
        (RuntimeError("unable to mmap 16 bytes from file <w>: Permission denied (13)"), False),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(13, "Permission denied"), False),
        (RuntimeError("CUDA error: CUSOLVER_STATUS_ALLOC_FAILED when calling `x`"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("the size of tensor a (12) must match"), False),
        (ValueError("Cannot allocate memory (12)"), False),
    ],
)
def test_what_says_that_memory_is_full(error, is_full):
    assert is_out_of_memory(error) is is_full


def test_a_graph_whose_batches_do_not_fit_is_computed_in_halves(monkeypatch):
    expected, sizes = ask(OTHER_GRAPH), []
    forget_graphs()

    def little_memory(local, layers, positions, reads, rows):
        sizes.append(len(reads))
        if len(reads) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        attribution_rows(local, layers, positions, reads, rows)

    monkeypatch.setattr(sys.modules["attribution.attribute"], "attribution_rows", little_memory)
    halved = ask(OTHER_GRAPH)
    assert max(sizes) > 12
    assert max(sizes[-3:]) <= 12
    assert [node["node_id"] for node in halved["nodes"]] == [
        node["node_id"] for node in expected["nodes"]
    ]
    weights = [[link["weight"] for link in graph["links"]] for graph in (halved, expected)]
    assert weights[0] == pytest.approx(weights[1], rel=1e-3, abs=1e-6)


def test_an_exception_between_two_batches_of_attribution_is_internal(monkeypatch):
    batches = []

    def rows_of_the_first_batch_only(*arguments):
        batches.append(arguments)
        if len(batches) == 2:
            raise RuntimeError("broken")
        attribution_rows(*arguments)

    monkeypatch.setattr(
        sys.modules["attribution.attribute"], "attribution_rows", rows_of_the_first_batch_only
    )
    with pytest.raises(Internal):
        ask(OTHER_GRAPH)
    assert len(batches) == 2


@pytest.fixture
def transcoder_files(tmp_path):
    """A copy of the demo's transcoders that the process's model reads when it needs them."""
    directory = tmp_path / "demo" / "transcoders"
    shutil.copytree(DEMO.transcoder_set, directory)
    before = model_loader.get_model(demo_settings())
    settings = demo_settings(
        model_id=DEMO.model,
        transcoder_set=str(directory),
        lazy_encoder=True,
        lazy_decoder=True,
    )
    model_loader._loaded = model_loader.load(settings)
    yield directory
    model_loader._loaded = before


def test_a_transcoder_file_that_turns_bad_under_way_fails_jobs_until_it_is_whole(
    transcoder_files,
):
    before = [comparable(ask(body)) for body in GOOD]
    forget_graphs()
    path = transcoder_files / "layer_2.safetensors"
    whole = path.rename(transcoder_files / "whole")
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for body in (GRAPH, STEER):
        with pytest.raises(Internal, match="SafetensorError"):
            ask(body)
    assert ask(FORWARD) == before[GOOD.index(FORWARD)]
    whole.rename(path)
    assert [comparable(ask(body)) for body in GOOD] == before


@pytest.mark.parametrize("body", [OTHER_GRAPH, STEER, FORWARD], ids=["graph", "steer", "forward"])
def test_a_job_that_starts_after_its_deadline_is_refused(body):
    with pytest.raises(DeadlineExceeded, match="deadline"):
        ask({**body, "deadline": time.time() - 5})


@pytest.mark.parametrize("body", [OTHER_GRAPH, STEER], ids=["graph", "steer"])
def test_a_job_stops_when_its_deadline_passes_under_way(model, body, pass_the_deadline):
    handle = model.blocks[0].register_forward_pre_hook(pass_the_deadline)
    try:
        with pytest.raises(DeadlineExceeded):
            ask({**body, "deadline": time.time() + 600})
    finally:
        handle.remove()


@pytest.mark.parametrize("body", [OTHER_GRAPH, STEER], ids=["graph", "steer"])
def test_a_cancelled_job_stops_before_its_end(model, body):
    cancelled = threading.Event()
    handle = model.blocks[1].register_forward_pre_hook(lambda *_: cancelled.set())
    try:
        with pytest.raises(Cancelled):
            ask(body, cancelled=cancelled)
    finally:
        handle.remove()


def test_a_job_that_waits_for_the_model_can_be_cancelled():
    loaded = model_loader.get_model(demo_settings())
    cancelled = threading.Event()
    with loaded.lock:
        threading.Timer(0.2, cancelled.set).start()
        with pytest.raises(Cancelled):
            ask(FORWARD, cancelled=cancelled)


def test_parsing_a_prompt_does_not_wait_for_the_model():
    with model_loader.get_model(demo_settings()).lock:
        assert ask(PARSE)["prompt"] == PROMPT
