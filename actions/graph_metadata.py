"""The metadata of a graph document: what was asked of which model, and how good the graph is."""

import hashlib
import re
import time
from collections.abc import Mapping

from actions.attributions import method_of
from actions.job import Job
from attribution import PrunedGraph
from attribution.provenance import Provenance, circuit_tracer_in_use
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from schemas import GenerateGraphRequest

GENERATOR = circuit_tracer_in_use()
_OWN_URL = "https://github.com/attribution-worker/attribution-worker"


def metadata(
    request: GenerateGraphRequest,
    loaded: LoadedModel,
    job: Job,
    prompt: Prompt,
    pruned: PrunedGraph,
    attribution_settings: Mapping[str, object],
) -> dict[str, object]:
    """Everything that the document says besides its nodes and links.

    What is unknown is left out: Neuronpedia's schema has strings there and refuses null.
    """
    entry = loaded.entry
    fields: dict[str, object] = {
        "slug": slug_of(request, prompt, loaded),
        "scan": entry.neuronpedia_id,
        "transcoder_list": [],
        "prompt_tokens": loaded.token_text.strings(prompt.ids),
        # What the model saw, the leading special token included, as the library writes it.
        "prompt": loaded.token_text.text(prompt.ids),
        "node_threshold": request.node_threshold,
        "schema_version": 1,
        "info": _info(request, loaded, job),
        "generation_settings": {
            **attribution_settings,
            **_tracing_settings(request),
            "attribution_method": method_of(loaded),
        },
        "pruning_settings": {
            "node_threshold": request.node_threshold,
            "edge_threshold": request.edge_threshold,
        },
        "graph_scores": {
            "replacement_score": pruned.replacement_score,
            "completeness_score": pruned.completeness_score,
        },
    }
    if request.attribution_targets is not None:
        asked = request.model_dump(include={"attribution_targets"}, exclude_unset=True)
        fields |= asked
    source_sets = {
        "neuronpedia_source_set": entry.source_set,
        "neuronpedia_lorsa_source_set": entry.lorsa_source_set if loaded.is_complete else None,
    }
    known = {field: name for field, name in source_sets.items() if name is not None}
    if known:
        fields["feature_details"] = known
    return fields


def _info(request: GenerateGraphRequest, loaded: LoadedModel, job: Job) -> dict[str, object]:
    """Who asked for the graph, and what made it, of which weights and when."""
    revisions = {"weight_revisions": loaded.revisions} if loaded.revisions else {}
    return {
        "creator_name": request.user_id or "Anonymous",
        "creator_url": "https://www.neuronpedia.org",
        "source_urls": loaded.entry.source_urls,
        "transcoder_set": loaded.entry.transcoder_label,
        **revisions,
        "generator": _generator(loaded, job),
        "create_time_ms": int(time.time() * 1000),
        "timings_ms": job.timings_ms,  # of the stages before this one
    }


def _generator(loaded: LoadedModel, job: Job) -> Provenance:
    """The program that made the graph. Complete replacement models need no circuit-tracer."""
    if loaded.is_complete:
        return Provenance("attribution-worker", job.settings.worker_version, _OWN_URL)
    return GENERATOR


def _tracing_settings(request: GenerateGraphRequest) -> dict[str, object]:
    if not request.enable_qk_tracing:
        return {}
    return {
        "enable_qk_tracing": True,
        "qk_top_fraction": request.qk_top_fraction,
        "qk_topk": request.qk_topk,
    }


def slug_of(request: GenerateGraphRequest, prompt: Prompt, loaded: LoadedModel) -> str:
    """The graph's name: the request's, or a readable one from the prompt's letters and the time."""
    if request.slug_identifier is not None:
        return request.slug_identifier
    text = loaded.token_text.text(prompt.ids, start=prompt.text_start)
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")
    digest = hashlib.sha256(prompt.text.encode()).hexdigest()[:8]
    return f"{words or digest}-{int(time.time())}"
