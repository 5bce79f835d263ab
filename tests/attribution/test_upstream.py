"""With upstream's circuit-tracer in the place of PyPI's fork everything here holds as well.

The variable CIRCUIT_TRACER_SRC names a checkout of decoderesearch/circuit-tracer. What compares the
worker with circuit-tracer runs again in processes in which that is what `import circuit_tracer`
gives, unchanged; and upstream's own tests of edges run on this project's graphs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_tokenizers
from tests.support.model_cache import files_of, write_repository
from tests.support.programs import ROOT

SOURCE = os.environ.get("CIRCUIT_TRACER_SRC", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not SOURCE, reason="CIRCUIT_TRACER_SRC names no checkout of decoderesearch/circuit-tracer"
    ),
]

# With what circuit-tracer computes these compare, on models of every architecture and dictionary.
COMPARISONS = {
    "graphs": [
        f"attribution/test_{name}.py" for name in ("attribute", "target_kinds", "truth", "conduct")
    ],
    "pruning": [f"attribution/test_{name}.py" for name in ("pruning", "demo_model")],
    "steering": [
        f"steering/test_{name}.py" for name in ("against_the_library", "features", "recovery")
    ],
    "loading": ["loading/test_transcoders.py", "loading/test_transformerlens_engine.py"],
    "nnsight": [
        "loading/test_nnsight_engine.py",
        "loading/test_nnsight_recovery.py",
        "attribution/test_nnsight_numbers.py",
        "attribution/test_library_contrast.py",
        "steering/test_nnsight_interventions.py",
    ],
    "actions": [
        f"actions/test_{name}.py" for name in ("generate_graph", "steer", "forward_pass", "gemma3")
    ],
    "documents": ["graphs/test_document.py", "serving/test_fitness.py"],
}
EDGE_TESTS = [
    ("test_attributions_gemma", "test_small_gemma_model"),
    ("test_attributions_llama", "test_small_llama_model"),
    ("test_attributions_llama", "test_large_llama_model"),
    ("test_attributions_gemma_nnsight", "test_small_gemma_model"),
    ("test_attributions_llama_nnsight", "test_small_llama_model"),
]

RUN_TESTS = """
import json, sys
import circuit_tracer, pytest

code = pytest.main(["-n", "0", "-q", "-rN", *sys.argv[1:]])
print(json.dumps({"code": code, "library": circuit_tracer.__file__}))
"""
# Upstream's function calls `attribute` of its module, which is this project's meanwhile.
RUN_EDGE_TEST = """
import importlib, json, sys
import circuit_tracer, torch
import attribution

module, test = sys.argv[1:]
module = importlib.import_module(f"tests.{module}")
graphs = []

def attribute(*arguments):
    graphs.append(attribution.attribute(*arguments))
    return graphs[-1]

module.attribute = attribute
torch.manual_seed(0)
getattr(module, test)()
edges = sum(int(graph.adjacency_matrix.count_nonzero()) for graph in graphs)
print(json.dumps({"edges": edges, "library": circuit_tracer.__file__}))
"""
RUN_JOBS = """
import json, sys
import circuit_tracer
import model_loader; from serving import fitness
from tests.support.demo_worker import FORWARD, GRAPH, ask, demo_settings

settings = demo_settings(model_engine=sys.argv[1], model_dtype="bfloat16")
model_loader._loaded = model_loader.load(settings)
for check in fitness.checks(settings):
    check()
graph, forward = ask(GRAPH, settings), ask(FORWARD, settings)
likeliest = next(node["token_prob"] for node in graph["nodes"] if node["is_target_logit"])
print(json.dumps({
    "graph": likeliest,
    "forward-pass": forward["salient_logits"][0]["probability"],
    "library": circuit_tracer.__file__,
}))
"""
PRINT_GENERATOR = """
import dataclasses, json
import circuit_tracer
from actions.graph_metadata import GENERATOR

print(json.dumps({**dataclasses.asdict(GENERATOR), "library": circuit_tracer.__file__}))
"""


def run_with_upstream(
    program: str, *arguments: str, path: list[Path], **variables: str
) -> dict[str, Any]:
    """Run a program in which circuit_tracer is upstream's; return the last line of its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), **variables}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    *log, last = done.stdout.splitlines()
    result: dict[str, Any] = json.loads(last)
    assert Path(result.pop("library")).resolve().is_relative_to(Path(SOURCE).resolve())
    return {**result, "log": "\n".join(log)}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with upstream's package alone: its checkout has `tests` as this project has."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    (folder / "circuit_tracer").symlink_to(Path(SOURCE).resolve() / "circuit_tracer")
    return folder


@pytest.mark.parametrize("subject", COMPARISONS)
def test_what_compares_with_the_library_holds_with_upstream(subject: str, package: Path) -> None:
    files = [f"tests/{name}" for name in COMPARISONS[subject]]
    result = run_with_upstream(RUN_TESTS, *files, path=[package])
    assert result["code"] == 0, result["log"][-5000:]
    assert "%]" in result["log"]


@pytest.mark.parametrize(("module", "test"), EDGE_TESTS)
def test_upstream_s_own_tests_of_edges_pass_on_our_graphs(
    module: str, test: str, tmp_path: Path
) -> None:
    # Its models take the tokenizer of GPT-2, and set its special token's id to 0.
    tiny_tokenizers.gpt2().save_pretrained(tmp_path / "gpt2")
    files = {"config.json": b'{"model_type": "gpt2"}', **files_of(tmp_path / "gpt2")}
    for name in ("gpt2", "openai-community/gpt2"):
        write_repository(tmp_path / "hub", name, files)
    path = [Path(SOURCE).resolve(), ROOT]  # in this order: `tests` is upstream's
    result = run_with_upstream(
        RUN_EDGE_TEST, module, test, path=path, HF_HUB_CACHE=str(tmp_path / "hub")
    )
    assert result["edges"] > 100


@pytest.mark.parametrize("engine", ["transformerlens", "nnsight"])
def test_the_worker_passes_its_checks_and_answers_with_upstream(engine: str, package: Path) -> None:
    answers = run_with_upstream(RUN_JOBS, engine, path=[package])
    assert answers["graph"] == pytest.approx(answers["forward-pass"], abs=1e-6)


def test_graphs_are_credited_to_upstream(package: Path) -> None:
    generator = run_with_upstream(PRINT_GENERATOR, path=[package])
    assert generator["name"] == "circuit-tracer by Hanna & Piotrowski"
    assert generator["url"] == "https://github.com/decoderesearch/circuit-tracer"
    project = (Path(SOURCE) / "pyproject.toml").read_text()
    assert f'version = "{generator["version"]}"' in project
