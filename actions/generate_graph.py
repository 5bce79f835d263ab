"""generate-graph: attribute a prompt's next-token prediction, prune, write it out, upload it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

import attribution
import delivery
from actions.graph_metadata import metadata
from actions.job import Job, check_max_n_logits, prepare_prompt
from delivery import Spooled, spool
from errors import InvalidInput, UploadFailed
from graphs import document as graph_document
from loading.loaded_model import LoadedModel
from prompting.prompts import MAX_CHARACTERS_PER_TOKEN, Prompt
from prompting.token_text import joined
from schemas import GenerateGraphRequest, UploadReceipt

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

# Of the time of a job of some seconds; `upload` counts only where there is one.
_SHARES = {"tokenise": 1.0, "attribute": 80.0, "prune": 5.0, "encode": 10.0}


def run(request: GenerateGraphRequest, loaded: LoadedModel, job: Job) -> Spooled | UploadReceipt:
    """The graph document itself, or a receipt when it went to `signed_url`.

    A finished attribution is kept: a request that differs only in its thresholds, slug, user or
    URL is pruned and written anew, without the model.

    Raises:
        UploadFailed: the store did not take the graph; a job with a fresh URL finds it kept.
    """
    target = _target(request, job)
    job.shares = _SHARES if target is None else {**_SHARES, "upload": 20.0}
    check_max_n_logits(request.max_n_logits, loaded)
    with job.stage("tokenise"):
        prompt = prepare_prompt(request, loaded, job)
        targets = _target_ids(request.attribution_targets, loaded)
    settings = _attribution_settings(request, job)
    graph, is_kept = _attribution(prompt, targets, settings, loaded, job)
    job.counts["active_features"] = len(graph.active_features)
    with job.stage("prune"):
        pruned = attribution.prune(graph, request.node_threshold, request.edge_threshold)
    with job.stage("encode"):
        fields = metadata(request, loaded, job, prompt, pruned, settings)
        document = graph_document.build(pruned, fields, _logit_tokens(graph, loaded))
        job.counts |= {"nodes": document.num_nodes, "links": document.num_links}
        spooled = spool(
            document.encode(),
            compress=target is not None and target.compressed,
            check=job.check,
        )
    if target is None:
        return spooled
    with spooled:
        _upload(spooled, target, job, is_kept=is_kept)
        return UploadReceipt(
            url=target.object_url,
            bytes=spooled.size,
            sha256=spooled.sha256,
            compressed=spooled.compressed,
            num_nodes=document.num_nodes,
            num_links=document.num_links,
            num_tokens=document.num_tokens,
            timings_ms=job.timings_ms,
        )


def _target_ids(targets: Sequence[str] | None, loaded: LoadedModel) -> list[int] | None:
    """The id of each attribution target, which is given as a token string of a document."""
    if targets is None:
        return None
    ids: dict[int, None] = {}
    for i, target in enumerate(targets):
        n_characters = len(joined([target]))
        if n_characters > MAX_CHARACTERS_PER_TOKEN:
            raise InvalidInput(
                f"attribution_targets[{i}] has {n_characters} characters, a token has at most "
                f"{MAX_CHARACTERS_PER_TOKEN}"
            )
        found = loaded.token_text.id_of(target)
        if found is None:
            raise InvalidInput(_no_token(f"attribution_targets[{i}]", target, loaded))
        if found in ids:
            raise InvalidInput(f"attribution_targets[{i}] names {target!r} twice; name it once")
        ids[found] = None
    return list(ids)


def _no_token(field: str, target: str, loaded: LoadedModel) -> str:
    """Why a target is no token, and what the model reads instead."""
    read = loaded.token_text.read_as(target)
    if len(read) == 1:
        return f"{field} is {target[:60]!r}, for which the model has no token of its own"
    listed = ", ".join(repr(token) for token in read[:8])
    more = ", ..." if len(read) > 8 else ""
    return (
        f"{field} is {target[:60]!r}, which the model reads as {len(read)} tokens "
        f"({listed}{more}); each target must be one (mind the leading space)"
    )


def _attribution_settings(request: GenerateGraphRequest, job: Job) -> dict[str, Any]:
    """What decides, besides the tokens, what `attribution.attribute` computes.

    Batch size and update interval belong here: they decide when features are ranked, and so which
    are selected.
    """
    return {
        "max_n_logits": request.max_n_logits,
        "desired_logit_prob": request.desired_logit_prob,
        "batch_size": request.batch_size,
        "max_feature_nodes": request.max_feature_nodes or job.settings.max_feature_nodes,
        "update_interval": job.settings.update_interval,
    }


def _attribution(
    prompt: Prompt,
    targets: list[int] | None,
    settings: Mapping[str, Any],
    loaded: LoadedModel,
    job: Job,
) -> tuple["Graph", bool]:
    """The attribution that was kept for these inputs or a new one, and whether it is kept now."""
    key = (tuple(prompt.ids), None if targets is None else tuple(targets), *settings.values())
    kept = loaded.graphs.get(key)
    job.counts["cached"] = int(kept is not None)
    if kept is not None:
        return kept, True
    with job.model(loaded), job.stage("attribute"):
        graph = attribution.attribute(
            torch.tensor(prompt.ids),
            loaded.model,
            attribution_targets=None if targets is None else torch.tensor(targets),
            **settings,
            on_progress=lambda done, total: job.report(
                "attribute", done / max(total, 1), f"{done} of {total} feature nodes"
            ),
            check=job.check,
        )
    if not graph.logit_probabilities.sum() > 0:
        raise InvalidInput(
            "attribution_targets: the model gives none of them any probability after this prompt"
        )
    return graph, loaded.graphs.put(key, graph)


def _logit_tokens(graph: "Graph", loaded: LoadedModel) -> dict[int, str]:
    """The token string of each logit node that stands for a token."""
    ids = [target.vocab_idx for target in graph.logit_targets]
    return {n: loaded.token_text.single(n) for n in ids if n < loaded.d_vocab}


def _target(request: GenerateGraphRequest, job: Job) -> delivery.Target | None:
    """Where the graph goes; None for the output itself."""
    if request.signed_url is None:
        return None
    return delivery.read_target(
        request.signed_url,
        request.signed_headers,
        compressed=request.compress,
        allowed_hosts=job.settings.upload_allowed_hosts,
    )


def _upload(spooled: Spooled, target: delivery.Target, job: Job, *, is_kept: bool) -> None:
    try:
        with job.stage("upload"):
            delivery.upload(
                spooled,
                target,
                timeout_s=job.settings.upload_timeout_s,
                deadline=job.deadline,
                check=job.check,
            )
    except UploadFailed as error:
        if not is_kept:
            raise
        raise UploadFailed(
            f"{error.sentence}; the attribution is kept, so the same request with a fresh "
            "signed_url is answered without computing it again"
        ) from None
