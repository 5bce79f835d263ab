"""The metadata of a graph document: what was asked of which model, and how good the graph is."""

import hashlib
import re
import time
from collections.abc import Mapping

import attribution
from actions.job import Job
from attribution import PrunedGraph
from attribution.provenance import circuit_tracer_in_use
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from schemas import GenerateGraphRequest

GENERATOR = circuit_tracer_in_use()


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
    revisions = {"weight_revisions": loaded.revisions} if loaded.revisions else {}
    fields: dict[str, object] = {
        "slug": request.slug_identifier or _slug(prompt, loaded),
        "scan": entry.neuronpedia_id,
        "transcoder_list": [],
        "prompt_tokens": loaded.token_text.strings(prompt.ids),
        # What the model saw, the leading special token included, as the library writes it.
        "prompt": loaded.token_text.text(prompt.ids),
        "node_threshold": request.node_threshold,
        "schema_version": 1,
        "info": {
            "creator_name": request.user_id or "Anonymous",
            "creator_url": "https://www.neuronpedia.org",
            "source_urls": entry.source_urls,
            "transcoder_set": entry.transcoder_label,
            **revisions,
            "generator": GENERATOR,
            "create_time_ms": int(time.time() * 1000),
            "timings_ms": job.timings_ms,  # of the stages before this one
        },
        "generation_settings": {
            **attribution_settings,
            "attribution_method": attribution.method_for(loaded.model),
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
    if entry.source_set is not None:
        fields["feature_details"] = {"neuronpedia_source_set": entry.source_set}
    return fields


def _slug(prompt: Prompt, loaded: LoadedModel) -> str:
    """A readable name from the prompt's letters and the time."""
    text = loaded.token_text.text(prompt.ids, start=1)
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")
    digest = hashlib.sha256(prompt.text.encode()).hexdigest()[:8]
    return f"{words or digest}-{int(time.time())}"
