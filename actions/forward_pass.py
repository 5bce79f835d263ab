"""forward-pass: the likeliest next tokens of a prompt."""

import torch

import steering
from actions.job import Job, check_max_n_logits, prepare_prompt
from model_loader import LoadedModel
from schemas import ForwardPassRequest, ForwardPassResponse, SalientLogit


def run(request: ForwardPassRequest, loaded: LoadedModel, job: Job) -> ForwardPassResponse:
    """The salient logits: as few of the likeliest as reach `desired_logit_prob` together.

    The same selection as an attribution graph's logit nodes (circuit-tracer's
    `AttributionTargets`), at most `max_n_logits`.
    """
    check_max_n_logits(request.max_n_logits, loaded)
    prompt = prepare_prompt(request, loaded, job)
    with job.model(loaded), job.stage("forward"):
        probabilities = next_token_probabilities(loaded, prompt.ids)
    top = torch.topk(probabilities, request.max_n_logits)
    reached = torch.searchsorted(torch.cumsum(top.values, 0), request.desired_logit_prob)
    count = min(int(reached) + 1, request.max_n_logits)
    salient = [
        SalientLogit(token=loaded.token_text.single(token_id), token_id=token_id, probability=p)
        for token_id, p in zip(
            top.indices[:count].tolist(), top.values[:count].tolist(), strict=True
        )
    ]
    return ForwardPassResponse(
        prompt=prompt.text,
        input_tokens=prompt.tokens,
        salient_logits=salient,
        total_salient_tokens=count,
        cumulative_probability=float(top.values[:count].sum()),
    )


def next_token_probabilities(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """Softmax of the logits after the last token, (d_vocab,) float32 on the CPU."""
    with torch.inference_mode():
        logits = steering.next_token_logits(loaded.model, ids)
        return torch.softmax(logits, dim=-1).float().cpu()
