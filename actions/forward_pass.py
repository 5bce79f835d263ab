"""forward-pass: the likeliest next tokens of a prompt."""

import steering
from actions.job import Job, check_max_n_logits, prepare_prompt
from attribution.salient_logits import salient_logits
from loading.loaded_model import LoadedModel
from schemas import ForwardPassRequest, ForwardPassResponse, SalientLogit


def run(request: ForwardPassRequest, loaded: LoadedModel, job: Job) -> ForwardPassResponse:
    """The salient logits: as few of the likeliest as reach `desired_logit_prob` together.

    The same selection as an attribution graph's logit nodes, of the same logits, at most
    `max_n_logits`.
    """
    check_max_n_logits(request.max_n_logits, loaded)
    # Callers count the tokens of a long prompt before they ask for its graph.
    prompt = prepare_prompt(request, loaded, job, up_to_context=True)
    with job.model(loaded), job.stage("forward"):
        logits = steering.next_token_logits(loaded.model, prompt.ids)
        salient = salient_logits(logits, request.max_n_logits, request.desired_logit_prob)
    named = [
        SalientLogit(token=loaded.token_text.single(token_id), token_id=token_id, probability=p)
        for token_id, p in zip(
            salient.token_ids.tolist(), salient.probabilities.tolist(), strict=True
        )
    ]
    return ForwardPassResponse(
        prompt=prompt.text,
        input_tokens=loaded.token_text.strings(prompt.ids),
        salient_logits=named,
        total_salient_tokens=len(named),
        cumulative_probability=float(salient.probabilities.sum()),
    )
