"""What llamascopium makes of a folder of modules, in plain numpy.

Called as Neuronpedia's server calls it: modules loaded in its order, `attribute`, then
`prune_attribution`. It needs llamascopium, which requirements-crm.txt says how to install. A test
that imports this module says this first:

    pytest.importorskip("llamascopium", reason="needs requirements-crm.txt")
    pytestmark = pytest.mark.llamascopium

Any model and modules in these folders will do, not only the tiny cases: `reference_graph(Folders(
model, modules, "8x", "k64"), Case("", prompt, batch_size=16, max_feature_nodes=300))`.
"""

import importlib.util
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

if not hasattr(torch, "npu"):
    # Its timer asks for a device of Huawei's wherever there is no CUDA.
    torch.npu = SimpleNamespace(is_available=lambda: False)  # type: ignore[attr-defined]

from llamascopium.backend.language_model import LanguageModelConfig, TransformerLensLanguageModel
from llamascopium.circuits import attribution
from llamascopium.models.sparse_dictionary import SparseDictionary

from tests.support.complete_cases import CASES, Case, Folders
from tests.support.complete_documents import METADATA
from tests.support.complete_graphs import Node, PlainGraph, Trace

_BIASES = {"b_Q": "bias_q", "b_K": "bias_k", "b_D": "bias_d"}
_KEY = re.compile(r"blocks\.(\d+)\.hook_(attn|mlp)_out\.(error|sae\.hook_(.*))")


def reference_graph(folders: Folders, case: Case, dtype: torch.dtype = torch.float32) -> PlainGraph:
    """Attribute with llamascopium, prune and trace."""
    model, modules = load(folders, dtype)
    result = attributed(model, modules, case)
    return plain_graph(result, pruned(result, case), _active(model, modules, case))


def document(folders: Folders, name: str, neuronpedia: Path) -> dict[str, Any]:
    """The document that Neuronpedia's converter makes of a case.

    Args:
        folders: the case's files.
        name: of the case, in complete_cases.CASES.
        neuronpedia: a checkout of github.com/hijohnnylin/neuronpedia.
    """
    case = CASES[name]
    path = neuronpedia / "apps" / "graph" / "neuronpedia_graph" / "format_converter.py"
    spec = importlib.util.spec_from_file_location("format_converter", path)
    assert spec, path
    assert spec.loader, path
    converter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    model, modules = load(folders)
    result = attributed(model, modules, case)
    converted = converter.convert_to_neuronpedia_graph(
        result,
        pruned(result, case),
        converter._build_sae_metadata(modules),
        prompt=case.prompt,
        node_threshold=case.node_threshold,
        edge_threshold=case.edge_threshold,
        **METADATA,
        generation_settings={
            "max_n_logits": case.max_n_logits,
            "desired_logit_prob": case.desired_logit_prob,
            "batch_size": case.batch_size,
            "max_feature_nodes": case.max_feature_nodes,
            "enable_qk_tracing": True,
            "qk_top_fraction": case.qk_top_fraction,
            "qk_topk": case.qk_topk,
        },
    )
    # As a reader gets it: JSON makes lists of tuples.
    read: dict[str, Any] = json.loads(json.dumps(converted))
    return read


def load(folders: Folders, dtype: torch.dtype = torch.float32) -> tuple[Any, list[Any]]:
    """The language model, and a transcoder and a Lorsa for each layer."""
    with _neutral_name(folders.model) as path:
        model = TransformerLensLanguageModel(
            LanguageModelConfig(model_name=str(path), dtype=dtype, device="cpu")
        )
    return model, [
        load_module(folders.module(kind, layer), dtype)
        for layer in range(model.cfg.n_layers)
        for kind in ("transcoder", "lorsa")
    ]


def load_module(folder: Path, dtype: torch.dtype) -> Any:
    return SparseDictionary.from_pretrained(str(folder), device="cpu", dtype=dtype)


def attributed(model: Any, modules: list[Any], case: Case) -> Any:
    """Llamascopium's AttributionResult of a case."""
    return model.attribute(
        inputs=case.prompt,
        replacement_modules=modules,
        max_n_logits=case.max_n_logits,
        desired_logit_prob=case.desired_logit_prob,
        batch_size=case.batch_size,
        max_features=case.max_feature_nodes,
        enable_qk_tracing=True,
        qk_top_fraction=case.qk_top_fraction,
        qk_topk=case.qk_topk,
    )


def pruned(result: Any, case: Case) -> Any:
    """Llamascopium's adjacency, with 0 where pruning removes a link."""
    return attribution.prune_attribution(
        result.attribution,
        result.probs,
        node_threshold=case.node_threshold,
        edge_threshold=case.edge_threshold,
    )


def plain_graph(result: Any, kept: Any, active: dict[Node, float]) -> PlainGraph:
    """An AttributionResult and its pruned adjacency, without anything of llamascopium."""
    name = _Names(result.prompt_token_ids, result.attribution.dimensions)
    rows, columns = (name.all(dimension) for dimension in result.attribution.dimensions)
    n_logits = len(result.probs)
    return PlainGraph(
        input_ids=list(result.prompt_token_ids),
        logits=rows[:n_logits],
        logit_values=result.activations.data[:n_logits].numpy().astype(np.float32),
        probabilities=result.probs.numpy().astype(np.float32),
        active=active,
        selected=rows[n_logits:],
        columns=columns,
        adjacency=result.attribution.data.numpy().astype(np.float32),
        links={(rows[row], columns[column]) for row, column in kept.data.nonzero().tolist()},
        traces=_traces(result.qk_trace_results, name),
    )


def _traces(results: Any, name: "_Names") -> dict[Node, Trace]:
    if results is None:
        return {}

    def lists(kind: str) -> list[Any]:
        return [
            [
                (*nodes, value)
                for *nodes, value in zip(
                    *(name.all(dimension) for dimension in entries.dimensions),
                    entries.value.tolist(),
                    strict=True,
                )
            ]
            for entries in getattr(results, kind).value
        ]

    q_marginals, k_marginals, pairs = lists("q_marginal"), lists("k_marginal"), lists("pairs")
    targets = name.all(results.pairs.dimensions[0])
    return {
        target: Trace(*trace)
        for target, *trace in zip(targets, q_marginals, k_marginals, pairs, strict=True)
    }


class _Names:
    """Names llamascopium's nodes."""

    def __init__(self, input_ids: list[int], dimensions: Any) -> None:
        self._input_ids = input_ids
        layers = [int(m[1]) for d in dimensions for k in d.node_mappings if (m := _KEY.match(k))]
        self._n_sublayers = 2 * (max(layers) + 1)

    def all(self, dimension: Any) -> list[Node]:
        return [self._one(info.key, *info.indices[0].tolist()) for info in dimension]

    def _one(self, key: str, first: int, second: int = -1) -> Node:
        if key == "hook_embed":
            return Node("embedding", -1, first, self._input_ids[first])
        if key == "logits":
            return Node("logit", self._n_sublayers, len(self._input_ids) - 1, first)
        match = _KEY.fullmatch(key)
        assert match, key
        sublayer = 2 * int(match[1]) + (match[2] == "mlp")
        kind = {"error": "error", "sae.hook_feature_acts": "feature"}.get(match[3])
        return Node(kind or _BIASES[match[4]], sublayer, first, second)


def _active(model: Any, modules: list[Any], case: Case) -> dict[Node, float]:
    """Every active feature by sublayer, position and index, of a pass as `attribute` runs it."""
    tokens = torch.tensor([model.tokenizer(case.prompt).input_ids] * case.batch_size)
    _, cache = attribution.collect_cache(model, tokens, modules)
    found = []
    for module in modules:
        sublayer = 2 * int(module.cfg.hook_point_out.split(".")[1]) + (
            module.cfg.sae_type != "lorsa"
        )
        activations = cache[f"{module.cfg.hook_point_out}.sae.hook_feature_acts.pre"][0].detach()
        found += [
            (Node("feature", sublayer, position, index), float(activations[position, index]))
            for position, index in activations.nonzero().tolist()
        ]
    return dict(sorted(found))


@contextmanager
def _neutral_name(folder: Path) -> Iterator[Path]:
    """The folder under a name that TransformerLens can't take for another architecture's.

    It looks for words such as "llama" in the whole path, and a test's folder has the test's name.
    """
    with tempfile.TemporaryDirectory() as directory:
        link = Path(directory) / "model"
        link.symlink_to(folder.resolve(), target_is_directory=True)
        yield link
