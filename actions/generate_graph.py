"""generate-graph: attribute a prompt's next-token prediction, prune, write it out, upload it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import delivery
from actions.attributions import Attributed, attributed, attribution_settings, prune
from actions.bounds import check_n_tokens
from actions.graph_file import check_file, write_file
from actions.graph_metadata import metadata, slug_of
from actions.job import Job, prepare_prompt
from actions.supernodes import find_subgraph
from actions.targets import Target, read_targets
from attribution import FeatureTarget
from delivery import Spooled, spool
from delivery.spooling import BINARY, JSON
from errors import InvalidInput, UploadFailed
from graphs import document as graph_document
from graphs.supernodes import Subgraph
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from schemas import FileReceipt, GenerateGraphRequest, UploadReceipt

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

    from attribution import PrunedGraph

# The usual shares of the stages in a job that takes some seconds.
_SHARES = {"tokenise": 1.0, "attribute": 80.0, "prune": 5.0, "group": 2.0, "encode": 10.0}
_TRACED_SHARES = {
    "tokenise": 1.0,
    "attribute": 68.0,
    "trace": 12.0,
    "prune": 5.0,
    "group": 2.0,
    "encode": 10.0,
}


def run(request: GenerateGraphRequest, loaded: LoadedModel, job: Job) -> Spooled | UploadReceipt:
    """The graph itself, a document or a file, or a receipt when it went to `signed_url`.

    A finished attribution is kept: a request that differs only in its thresholds, slug, user or
    URL is pruned and written anew, without the model.

    Raises:
        UploadFailed: the store did not take the graph; a job with a fresh URL finds it kept.
    """
    _check_tracing(request, loaded)
    if request.format == "pt":
        check_file(request, loaded, job)
    target = _target(request, job)
    job.shares = _shares(request)
    check_n_tokens("max_n_logits", request.max_n_logits, loaded)
    with job.stage("tokenise"):
        prompt = prepare_prompt(request, loaded, job)
        targets = read_targets(request.attribution_targets, loaded, prompt, job.check)
    settings = attribution_settings(request, loaded, job)
    made = attributed(request, prompt, targets, settings, loaded, job)
    job.counts["active_features"] = len(made.graph.active_features)
    compress = target is not None and target.compressed
    if request.format == "pt":
        with job.stage("encode"):
            graph = cast("Graph", made.graph)  # what `check_file` lets through
            name = slug_of(request, prompt, loaded)
            spooled = write_file(graph, name, job, compress=compress)
    else:
        spooled = _write_document(
            request, prompt, targets, settings, made, loaded, job, compress=compress
        )
    if target is None:
        return spooled
    with spooled:
        _upload(spooled, target, job, is_kept=made.is_kept)
        receipt = FileReceipt if request.format == "pt" else UploadReceipt
        return receipt(
            url=target.object_url,
            bytes=spooled.size,
            sha256=spooled.sha256,
            compressed=spooled.compressed,
            num_nodes=job.counts["nodes"],
            num_links=job.counts["links"],
            num_tokens=made.graph.n_pos,
            timings_ms=job.timings_ms,
        )


def _write_document(
    request: GenerateGraphRequest,
    prompt: Prompt,
    targets: Sequence[Target] | None,
    settings: Mapping[str, Any],
    made: Attributed,
    loaded: LoadedModel,
    job: Job,
    *,
    compress: bool,
) -> Spooled:
    """The pruned graph's JSON document, and its sizes in the job's counts."""
    with job.stage("prune"):
        pruned = prune(made.graph, request)
    logit_tokens = _logit_tokens(pruned, loaded)
    subgraph = graph_document.NO_SUBGRAPH
    if request.supernodes == "auto":
        with job.stage("group"):
            subgraph = find_subgraph(pruned, prompt, logit_tokens, loaded, job.check)
    with job.stage("encode"):
        fields = metadata(request, loaded, job, prompt, pruned, settings)
        document = _document(pruned, made, targets, fields, logit_tokens, subgraph, loaded)
        job.counts |= {"nodes": document.num_nodes, "links": document.num_links}
        return spool(document.encode(), compress=compress, check=job.check)


def _check_tracing(request: GenerateGraphRequest, loaded: LoadedModel) -> None:
    """Raise InvalidInput when the loaded set has no attention features that could be traced."""
    if request.enable_qk_tracing and not loaded.is_complete:
        raise InvalidInput(
            f"enable_qk_tracing is true, but the loaded set {loaded.entry.transcoder_label} has no "
            "attention features (Lorsas) to trace; leave it out, or ask a worker with a set that "
            "has them"
        )


def _shares(request: GenerateGraphRequest) -> Mapping[str, float]:
    """The usual shares of the stages that this job has, in their order."""
    shares = _TRACED_SHARES if request.enable_qk_tracing else _SHARES
    left_out = {"prune", "group"} if request.format == "pt" else set()
    if request.supernodes == "none":
        left_out.add("group")
    shares = {stage: share for stage, share in shares.items() if stage not in left_out}
    return shares if request.signed_url is None else {**shares, "upload": 20.0}


def _logit_tokens(pruned: "PrunedGraph", loaded: LoadedModel) -> dict[int, str]:
    """The token strings of the logits that stand for tokens, by index in the vocabulary."""
    ids = [target.vocab_idx for target in pruned.graph.logit_targets]
    return {n: loaded.token_text.single(n) for n in ids if n < loaded.d_vocab}


def _document(
    pruned: "PrunedGraph",
    made: Attributed,
    targets: Sequence[Target] | None,
    fields: Mapping[str, object],
    logit_tokens: Mapping[int, str],
    subgraph: Subgraph,
    loaded: LoadedModel,
) -> graph_document.Document:
    """The document in the form of the model's engine."""
    ids = [target.vocab_idx for target in pruned.graph.logit_targets]
    positions = {
        n: target.position
        for n, target in zip(ids, targets or (), strict=targets is not None)
        if isinstance(target, FeatureTarget)
    }
    if loaded.is_complete:
        return graph_document.build_complete(
            pruned, fields, logit_tokens, made.traces, positions, subgraph
        )
    return graph_document.build(pruned, fields, logit_tokens, positions, subgraph)


def _target(request: GenerateGraphRequest, job: Job) -> delivery.Target | None:
    """Where the graph goes; None for the output itself."""
    if request.signed_url is None:
        return None
    return delivery.read_target(
        request.signed_url,
        request.signed_headers,
        compressed=request.compress,
        media_type=BINARY if request.format == "pt" else JSON,
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
